"""Everything that wants a GPU, in one command for a machine that is lent for minutes.

Each stage is a program of its own with a time limit, a log and an exit status; one that fails stops no other.
Stages, in this order:

* ``host-path``: `tests/gpu/host_path.py` in each of its scenarios: what the connector writes through vLLM's
  CUDA path, read back from the cache; and that the CUDA graphs are the same with and without the connector.
* ``kernels``: the tests of `prefix_kernels` and `steering_kernels`, with Triton's kernels on the device.
* ``inject``: `bench.inject`, what one write costs beside a copy of as many bytes.
* ``steer-layer``: `bench.steer_layer`, what steering adds to a layer, with 1 to 256 vectors in a step.
* ``fidelity``: `bench.fidelity` on a model with weights, in bfloat16 and in float32.
* ``overhead``: `bench.overhead` on a model shape with random weights and a random patch.
* ``peers``: the same for LoRA adapters and embeddings that the client sends; wants PEFT.
* ``scale``, ``overflow``, ``steering``, ``swap``, ``memory``: those questions, on the same shape.

The last line of output is one JSON object; the same lines are in OUT/summary.jsonl.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.servers.environment import describe_environment

ROOT = Path(__file__).resolve().parent.parent
#: Questions about many patches, with the flags that fill a batch of a large GPU.
SWEEPS = {
    "scale": "--patches 1,16,64,256 --concurrency 256 --waves 1 --rounds 5 --gpu-memory-utilization 0.4",
    "overflow": "--patches 64 --share 8 --requests 256 --rate 40 --rounds 5 --gpu-memory-utilization 0.28",
    "steering": "--concurrency 256 --requests 512 --rounds 5 --gpu-memory-utilization 0.4",
    "swap": "--concurrency 64 --requests 512 --rounds 5 --gpu-memory-utilization 0.4",
    "memory": "--in-flight 1,64 --rounds 1 --gpu-memory-utilization 0.4",
}
STAGES = ("host-path", "kernels", "inject", "steer-layer", "fidelity", "overhead", "peers", *SWEEPS)
SCENARIOS = (
    *("default", "plain", "full-decode", "steering", "steering-graphs"),
    *("hybrid", "uncached", "fp8", "fp32", "triton", "eager"),
)
#: Cache layouts that the scenario "full-decode" is repeated with.
LAYOUTS = ("LBHNC", "BLNHC")
DTYPES = ("bfloat16", "float32")
PATCH_NAME = "bench-policy"
POLICY = """\
You answer for the help desk of a public library. Be friendly and brief, use plain words, and keep to what
the library can do: lending, renewals, reading rooms, events and opening hours. Never give medical or legal
advice; name the office that does. If you do not know something, say so and give the number of the
information desk.
"""


@dataclass(frozen=True)
class Step:
    """One program to run."""

    name: str
    stage: str
    command: Sequence[str]
    limit_s: float
    environment: dict[str, str] = field(default_factory=dict)


def steps_of(args: argparse.Namespace, policy: Path) -> Iterator[Step]:
    """List what to run."""
    shape, weights, patches = (
        Path(args.models, args.shape),
        Path(args.models, args.weights),
        args.out / "random",
    )
    flags = ["--no-kernels"] if args.is_rehearsal else []
    program = str(ROOT / "tests" / "gpu" / "host_path.py")
    for scenario in args.scenarios:
        command = [program, str(weights), scenario, *flags]
        yield Step(f"host-path-{scenario}", "host-path", command, 240)
    for layout in args.layouts:
        command = [program, str(weights), "full-decode", *flags]
        yield Step(f"host-path-{layout}", "host-path", command, 240, {"VLLM_KV_CACHE_LAYOUT": layout})
    tests = [ROOT / "tests" / kernels for kernels in ("prefix_kernels", "steering_kernels")]
    yield Step("kernels", "kernels", _module("pytest", "-q", "-rs", "-p", "no:cacheprovider", *tests), 300)
    yield Step("inject", "inject", _module("bench.inject", "--out", args.out / "inject"), 180)
    command = _module("bench.steer_layer", "--tokens", "1,8,64,256,1024", "--vectors", "1,16,64,256")
    yield Step("steer-layer", "steer-layer", [*command, "--out", str(args.out / "steer-layer")], 180)
    for dtype in args.dtypes:
        command = _module("bench.fidelity", "--model", weights, "--policy-text", policy, "--dtype", dtype)
        command += ["--out", str(args.out / f"fidelity-{dtype}"), *args.fidelity_arguments]
        yield Step(f"fidelity-{dtype}", "fidelity", command, 420)
    command = _module("bench.servers.random_patch", "--model", shape, "--policy-text", policy)
    stage = "overhead" if "overhead" in args.stages else "peers"
    yield Step("random-patch", stage, [*command, "--name", PATCH_NAME, "-o", str(patches)], 120)
    command = _module("bench.overhead", "--model", shape, "--policy-text", policy, "--load-format", "dummy")
    command += [
        "--patch",
        str(patches / f"{PATCH_NAME}-1.0.0.safetensors"),
        "--out",
        str(args.out / "overhead"),
    ]
    yield Step("overhead", "overhead", [*command, *args.overhead_arguments], args.overhead_limit_s)
    yield Step("peers", "peers", [*command, *args.peers_arguments], args.overhead_limit_s)
    for question in SWEEPS:
        command = _module(f"bench.{question}", "--model", shape, "--load-format", "dummy")
        command += ["--out", str(args.out / question), *getattr(args, f"{question}_arguments")]
        yield Step(question, question, command, args.overhead_limit_s)


def _module(name: str, *arguments: object) -> list[str]:
    return ["-m", name, *map(str, arguments)]


def run_step(step: Step, out: Path) -> dict[str, Any]:
    """Run one program to its end or its limit; return what the summary says about it."""
    log = out / f"{step.name}.log"
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "gpu"), os.environ.get("PYTHONPATH", "")])
    started = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, *step.command],
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=ROOT,
            env=os.environ | step.environment | {"PYTHONPATH": path.rstrip(os.pathsep)},
        )
        try:
            status: int | None = process.wait(step.limit_s)
        except subprocess.TimeoutExpired:
            # The programs take their servers down when they are asked to end.
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            status = None
    text = log.read_text(errors="replace").splitlines()
    lines = [line for line in text if line.startswith("{")]
    facts = [parsed for line in lines if isinstance(parsed := _parsed(line), dict)]
    checks = [fact for fact in facts if "check" in fact]
    summary: dict[str, Any] = {
        "step": step.name,
        "status": status,
        "seconds": round(time.monotonic() - started, 1),
    }
    if checks:
        summary["num_checks"] = len(checks)
        summary["failed"] = [check for check in checks if not check["ok"]]
        summary["facts"] = next((check for check in checks if check["check"] == "facts"), None)
    else:
        summary["last"] = facts[-1] if facts else (text or [""])[-1]
    return summary


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def graph_difference(summaries: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Compare the default engine's CUDA graphs with and without the connector; None where one did not run."""
    facts = {s["step"]: s.get("facts") for s in summaries}
    ours, plain = facts.get("host-path-default"), facts.get("host-path-plain")
    if not ours or not plain:
        return None
    keys = ("cudagraph_mode", "full_graphs", "capture_sizes", "max_concurrent_batches", "hybrid_manager")
    differences = {key: [plain[key], ours[key]] for key in keys if plain[key] != ours[key]}
    return {
        "step": "same-cuda-graphs",
        "status": int(bool(differences)),
        "plain_and_ours_differ_in": differences,
    }


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu_session",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--models", type=Path, required=True, metavar="DIR", help="folder of model folders")
    parser.add_argument("--weights", default="smollm2-135m", help="model with weights (default: %(default)s)")
    parser.add_argument("--shape", default="llama-8b-shape", help="model for speed (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="logs, records, summary")
    parser.add_argument(
        "--stages", type=_names, default=STAGES, help=f"some of {','.join(STAGES)} (default: all)"
    )
    parser.add_argument("--scenarios", type=_names, default=SCENARIOS, help="of host-path (default: all)")
    parser.add_argument("--dtypes", type=_names, default=DTYPES, help="of fidelity (default: both)")
    parser.add_argument("--layouts", type=_names, default=LAYOUTS, help="of the cache, for host-path")
    parser.add_argument(
        "--policy-text", type=Path, metavar="FILE", help="(default: a text of about 90 tokens)"
    )
    for name, default in (
        ("fidelity", "--gpu-memory-utilization 0.2"),
        ("overhead", "--concurrency 1,8,64 --rounds 5 --output-tokens 64 --max-num-seqs 64"),
        (
            "peers",
            "--arms plain,patched,embeds,lora-idle,lora-r1,lora-r16 --concurrency 1,64 --rounds 5 "
            "--output-tokens 64 --max-num-seqs 64 --gpu-memory-utilization 0.2",
        ),
        *SWEEPS.items(),
    ):
        parser.add_argument(
            f"--{name}-arguments",
            type=str.split,
            default=default.split(),
            metavar="FLAGS",
            help=f"more flags for bench.{name} (default: {default})",
        )
    parser.add_argument(
        "--overhead-limit-s",
        type=float,
        default=540.0,
        metavar="S",
        help="for overhead and each stage after it (default: %(default)s)",
    )
    parser.add_argument(
        "--rehearsal", dest="is_rehearsal", action="store_true", help="a stand-in driver: kernels do nothing"
    )
    return parser


def _names(value: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in value.split(",") if name.strip())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stages.

    Returns:
        0 where every step ended well, else 1.
    """
    args = build_parser().parse_args(argv)
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    policy = args.policy_text.resolve() if args.policy_text else args.out / "policy.txt"
    if args.policy_text is None:
        policy.write_text(POLICY, encoding="utf-8")
    summaries: list[dict[str, Any]] = []
    with (args.out / "summary.jsonl").open("a", encoding="utf-8") as file:

        def note(summary: dict[str, Any]) -> None:
            summaries.append(summary)
            line = json.dumps(summary)
            print(line, flush=True)
            file.write(line + "\n")
            file.flush()

        note({"step": "environment", "status": 0, **describe_environment()})
        for step in steps_of(args, policy):
            if step.stage in args.stages:
                note(run_step(step, args.out))
        difference = graph_difference(summaries)
        if difference is not None:
            note(difference)
    bad = [s["step"] for s in summaries if s["status"] != 0]
    print(json.dumps({"ok": not bad, "failed_steps": bad, "num_steps": len(summaries)}))
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
