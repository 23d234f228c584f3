"""What steering adds to a layer, beside the matrix products of that layer.

Starts no server: it calls `steering_kernels` on states of its own, in the shape of a model, layer by layer.
The yardstick is what a layer multiplies (attention's projections and the MLP), with weights that no cache
holds, measured in the same rounds. A server's step does more than that, so its throughput falls by less than
the share that is shown.

On a GPU all layers are one CUDA graph, as in a server, so no launch waits for the host.
"""

import argparse
import statistics
import sys
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bench.load.timing import quantile
from bench.report.record import Record, append_record
from bench.run.device_timing import FLUSH_BYTES, flush_buffer, measure
from bench.run.question import (
    RECORDS,
    Measure,
    Reporting,
    add_out_argument,
    main_of,
    options_of,
    question_parser,
)
from bench.servers.environment import describe_environment
from steering_kernels import (
    ConditionTable,
    Form,
    Probe,
    ScoreLedger,
    SteeringTable,
    StepRequests,
    TokenRows,
    decide_,
    score_tokens_,
    steer_layer_,
)

QUESTION = "steer-layer"
YARDSTICK = "products"

#: Layers whose products are measured, at most; fewer where their weights are more than any cache holds.
MAX_MEASURED_LAYERS = 4

EPILOG = """\
examples:
  python -m bench.steer_layer
  python -m bench.steer_layer --tokens 8,64 --vectors 1,64 --rounds 40 --out bench/out
  python -m bench.steer_layer --layers 30 --hidden-size 576 --mlp-size 1536 --kv-size 192 --dtype float32
"""


@dataclass(frozen=True)
class SteerOptions:
    """A model's shape, and the steps that are steered; the defaults are an 8B Llama."""

    num_tokens: tuple[int, ...] = (8, 64, 512)
    num_vectors: tuple[int, ...] = (1, 64)
    num_layers: int = 32
    hidden_size: int = 4096
    mlp_size: int = 14336
    kv_size: int = 1024
    dtype: str = "bfloat16"
    device: str = "auto"
    num_rounds: int = 20

    def __post_init__(self) -> None:
        for flag, number in (
            ("--tokens", min(self.num_tokens, default=0)),
            ("--vectors", min(self.num_vectors, default=0)),
            ("--layers", self.num_layers),
            ("--rounds", self.num_rounds),
        ):
            if number < 1:
                raise ValueError(f"{flag}: expected 1 or more, got {number}")

    @property
    def weight_shapes(self) -> tuple[tuple[int, int], ...]:
        """Of a layer: attention's projection in and out, the MLP's up and down."""
        size, mlp_size = self.hidden_size, self.mlp_size
        return ((size + 2 * self.kv_size, size), (size, size), (2 * mlp_size, size), (size, mlp_size))

    @property
    def num_measured_layers(self) -> int:
        """Layers whose products are measured."""
        itemsize: int = getattr(torch, self.dtype).itemsize
        layer_bytes = itemsize * sum(rows * columns for rows, columns in self.weight_shapes)
        return min(self.num_layers, MAX_MEASURED_LAYERS, -(-FLUSH_BYTES // layer_bytes))

    @property
    def resolved_device(self) -> torch.device:
        """The device to measure on."""
        name = ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device
        return torch.device(name)


class Workload:
    """The states of one step, tables with every vector that a step may need, and weights to multiply by."""

    def __init__(self, options: SteerOptions, num_tokens: int) -> None:
        self._options, self._device = options, options.resolved_device
        self._dtype: torch.dtype = getattr(torch, options.dtype)
        self._num_tokens = num_tokens
        torch.manual_seed(0)
        self._initial = [self._random(num_tokens, options.hidden_size) for _ in range(2)]
        self.hidden, self.residual = (state.clone() for state in self._initial)
        self._rows = TokenRows.allocate(num_tokens, self._device)
        self._table = SteeringTable.allocate(
            options.num_layers, max(options.num_vectors) + 2, options.hidden_size, self._device
        )
        for row in range(1, max(options.num_vectors) + 1):
            self._table.put(row, self._vector(), Form("residual", relative=0.05))
        self._gained = max(options.num_vectors) + 1
        self._table.put(self._gained, self._vector(), Form("mlp", relative=0.012, opposed_gain=1.0))
        self._weights = [
            [self._random(*shape) for shape in options.weight_shapes]
            for _ in range(options.num_measured_layers)
        ]
        self._condition()

    def _random(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=torch.float32).to(self._device, self._dtype)

    def _vector(self) -> torch.Tensor:
        return torch.nn.functional.normalize(torch.randn(self._options.num_layers, self._options.hidden_size))

    def _condition(self) -> None:
        """One request whose prompt the step is, and a probe on four layers in the middle."""
        options, device = self._options, self._device
        middle = options.num_layers // 2
        layers = tuple(range(max(0, middle - 2), min(options.num_layers, middle + 2)))
        self._conditions = ConditionTable.allocate(options.num_layers, 2, options.hidden_size, device)
        self._conditions.put(1, self._vector()[: len(layers)], [Probe(layers)], 1, False)
        block_table = torch.arange(-(-self._num_tokens // 16), dtype=torch.int32, device=device)[None]
        self._ledger = ScoreLedger.allocate(block_table.numel() * 16, device)
        self._requests = StepRequests.allocate(1, block_table, 16, device)
        ends = torch.tensor([0, self._num_tokens], dtype=torch.int32)
        zero, one = torch.zeros(1, dtype=torch.int32), torch.ones(1, dtype=torch.int32)
        self._requests.assign(ends, zero, one, zero, ends[1:])
        self._scored = TokenRows.allocate(self._num_tokens, device)
        self._scored.assign(torch.ones(self._num_tokens, dtype=torch.int32))
        self._slots = torch.arange(self._num_tokens, device=device)

    def reset(self) -> None:
        """Put the states back, so that no sample sees what many steps have made of them."""
        self.hidden.copy_(self._initial[0])
        self.residual.copy_(self._initial[1])

    def multiply(self) -> None:
        """Multiply as the layers do whose weights there are."""
        for qkv, out, up, down in self._weights:
            self.hidden @ qkv.t()
            self.hidden @ out.t()
            wide = self.hidden @ up.t()
            wide[:, : self._options.mlp_size] @ down.t()

    def begin(self, arm: "Arm") -> None:
        """Assign the rows of an arm: which tokens are steered, and by what."""
        tokens = torch.arange(self._num_tokens)
        rows = torch.zeros_like(tokens)
        if arm.num_vectors:
            rows = 1 + (tokens + arm.is_new) % arm.num_vectors
        if arm.name == "half, 1 vector":
            rows[1::2] = 0
        if arm.name == "mlp, opposed":
            rows[:] = self._gained
        self._rows.assign(rows.int())

    def steer(self) -> None:
        """Steer at every layer."""
        for layer in range(self._options.num_layers):
            steer_layer_(self.hidden, self.residual, self._rows, self._table, layer)

    def steer_plainly(self) -> None:
        """Steer at every layer as a first version would: rows are looked for in each of them."""
        for layer in range(self._options.num_layers):
            tokens = self._rows.tensor.nonzero().flatten()
            vectors = self._table.vectors[layer, self._rows.tensor[tokens].long()]
            x = self.hidden[tokens].float() + self.residual[tokens].float()
            norm = x.norm(dim=-1, keepdim=True)
            cosine = torch.nn.functional.cosine_similarity(x, vectors, dim=-1)[:, None]
            moved = x + 0.05 * norm * (1 + 0.0 * (-cosine).clamp(min=0)) * vectors
            moved = moved * norm / moved.norm(dim=-1, keepdim=True)
            self.residual[tokens] = moved.to(self._dtype)
            self.hidden[tokens] = 0

    def condition(self) -> None:
        """Score and decide after every layer, of which four are read."""
        for layer in range(self._options.num_layers):
            score_tokens_(
                self.hidden, self.residual, self._scored, self._conditions, self._ledger, self._slots, layer
            )
            decide_(self._requests, self._conditions, self._ledger, self._rows, layer)


@dataclass(frozen=True)
class Arm:
    """One thing that is timed, and the layers that it goes through."""

    name: str
    run: Callable[[Workload], None]
    num_layers: int
    num_vectors: int = 0
    #: Whether the step before was another, as where a prompt comes in; else it was the same, as in decoding.
    is_new: bool = False


def arms_of(options: SteerOptions, num_tokens: int) -> list[Arm]:
    """List what is compared: the yardstick first."""
    layers = options.num_layers
    arms = [
        Arm(YARDSTICK, Workload.multiply, options.num_measured_layers),
        Arm("none", Workload.steer, layers),
        Arm("half, 1 vector", Workload.steer, layers, 1),
    ]
    counts = sorted({min(count, num_tokens) for count in options.num_vectors})
    arms += [Arm(f"all, {n} vector{'s' * (n > 1)}", Workload.steer, layers, n) for n in counts]
    if counts[-1] > 1:
        arms.append(Arm(f"{arms[-1].name}, new", Workload.steer, layers, counts[-1], is_new=True))
    arms += [Arm("mlp, opposed", Workload.steer, layers), Arm("condition", Workload.condition, layers)]
    if options.resolved_device.type != "cuda":
        # Its look for rows waits for the device, which no graph can do.
        arms.append(Arm("plain torch", Workload.steer_plainly, layers, 1))
    return arms


def runner_of(workload: Workload, arm: Arm, device: torch.device) -> Callable[[], None]:
    """Return what runs an arm once; on a GPU a graph of it, captured after a run that compiles."""
    workload.begin(arm)
    arm.run(workload)
    if device.type != "cuda":

        def run() -> None:
            arm.run(workload)

        return run
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        arm.run(workload)
    return graph.replay


@torch.inference_mode()
def run_steer_layer(options: SteerOptions, command: str, folder: Path) -> None:
    """Measure every arm for every number of tokens."""
    environment = describe_environment()
    device, run_id = options.resolved_device, uuid.uuid4().hex[:12]
    flush = flush_buffer(device)
    shape = {k: v for k, v in asdict(options).items() if k not in ("num_tokens", "num_vectors", "device")}
    for num_tokens in options.num_tokens:
        print(f"bench {QUESTION}: {num_tokens} tokens on {device.type}", file=sys.stderr, flush=True)
        workload, arms = Workload(options, num_tokens), arms_of(options, num_tokens)
        runs = {arm.name: runner_of(workload, arm, device) for arm in arms}
        samples: dict[str, list[float]] = {arm.name: [] for arm in arms}
        # Interleaved; the first round warms up.
        for round_idx in range(options.num_rounds + 1):
            for arm in arms:
                workload.begin(arm)
                if not arm.is_new:
                    runs[arm.name]()
                workload.reset()
                sample = measure(runs[arm.name], device, flush)["device_s"] / arm.num_layers
                if round_idx:
                    samples[arm.name].append(sample)
        for arm in arms:
            setup = shape | {"command": command, "device": device.type}
            setup |= {"arm": arm.name, "num_tokens": num_tokens}
            result = _result(samples[arm.name], samples[YARDSTICK])
            append_record(folder / RECORDS, Record(QUESTION, run_id, setup, result, environment))


def _result(samples: Sequence[float], yardstick: Sequence[float]) -> dict[str, Any]:
    return {
        "layer_s": {f"p{round(100 * q)}": quantile(samples, q) for q in (0.2, 0.5, 0.8)},
        "best_s": min(samples),
        "share": statistics.median(samples) / statistics.median(yardstick),
        "best_share": min(samples) / min(yardstick),
    }


def markdown_report(records: Sequence[Record]) -> str:
    """Render the table, and where it was measured."""
    setup, where = records[0].setup, records[0].environment
    lines = [
        f"# {QUESTION}",
        "",
        "| tokens | what | µs a layer (p20 to p80) | of the products | best, µs | of the best products |",
        "| --: | :-- | --: | --: | --: | --: |",
    ]
    for record in records:
        r, layer = record.result, {k: 1e6 * v for k, v in record.result["layer_s"].items()}
        lines.append(
            f"| {record.setup['num_tokens']} | {record.setup['arm']} "
            f"| {layer['p50']:.1f} ({layer['p20']:.1f} to {layer['p80']:.1f}) | {r['share']:.2%} "
            f"| {1e6 * r['best_s']:.1f} | {r['best_share']:.2%} |"
        )
    versions = ", ".join(f"{name} {version}" for name, version in where["packages"].items())
    lines += [
        "",
        f"- {setup['num_layers']} layers, hidden size {setup['hidden_size']}, MLP {setup['mlp_size']}, "
        f"K and V {setup['kv_size']}, {setup['dtype']}, {setup['num_rounds']} rounds",
        f"- {where['cpu_model']}, {where['num_usable_cores']} cores, load {where['load_average_1m']:.1f}, "
        f"{'; '.join(where['gpus']) or 'no GPU'}; Python {where['python']}, {versions}",
        "",
    ]
    return "\n".join(lines)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def build_parser() -> argparse.ArgumentParser:
    """Build the command line; defaults are those of ``SteerOptions``."""
    d = SteerOptions
    parser = question_parser(QUESTION, __doc__, EPILOG)
    for flag, name, meaning in (
        ("--tokens", "num_tokens", "tokens in a step"),
        ("--vectors", "num_vectors", "different vectors in a step, at most one a token"),
    ):
        default = getattr(d, name)
        parser.add_argument(
            flag,
            dest=name,
            type=_numbers,
            default=default,
            metavar="N,N",
            help=f"{meaning} (default: {','.join(map(str, default))})",
        )
    for flag, name, meaning in (
        ("--layers", "num_layers", "layers"),
        ("--hidden-size", "hidden_size", "elements of a hidden state"),
        ("--mlp-size", "mlp_size", "elements inside the MLP"),
        ("--kv-size", "kv_size", "elements of the K of a token"),
        ("--rounds", "num_rounds", "rounds that count"),
    ):
        default = getattr(d, name)
        parser.add_argument(
            flag, dest=name, type=int, default=default, metavar="N", help=f"{meaning} (default: {default})"
        )
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float16", "float32"), default=d.dtype, help="(default: %(default)s)"
    )
    parser.add_argument(
        "--device", choices=("auto", "cuda", "cpu"), default=d.device, help="(default: %(default)s)"
    )
    add_out_argument(parser)
    return parser


def prepare(args: argparse.Namespace, command: str) -> Measure:
    """Return what measures.

    Raises:
        ValueError: a number is out of range.
    """
    options = options_of(SteerOptions, args)
    return lambda folder: run_steer_layer(options, command, folder)


def summary_of(records: Sequence[Record]) -> dict[str, Any]:
    """Return the figures of the last line of stdout."""
    return {
        "shares": {
            f"{r.setup['arm']} x{r.setup['num_tokens']}": round(r.result["share"], 4)
            for r in records
            if r.setup["arm"] != YARDSTICK
        }
    }


main = main_of(QUESTION, build_parser, prepare, Reporting(markdown_report, None, summary_of))

if __name__ == "__main__":
    sys.exit(main())
