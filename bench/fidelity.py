"""How close is a patch to the policy text that it was made from?

In float32 the answers are the same; in bfloat16 every change of the order of arithmetic moves log
probabilities a little, and sometimes a token. This asks one server every question under the patch and with
the policy as text, alone and in a batch, and reports how far answers differ. The noise floor is the same text
alone and in a batch: what no implementation can be below. ``docs/fidelity.md`` says how to read it.
"""

import argparse
import asyncio
import shlex
import sys
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from bench.errors import BenchError, CheckFailed, RequestFailed
from bench.load.agreement import Answer, compare
from bench.load.arms import DIGEST_HEADER, PATCH_HEADER
from bench.load.client import call_json, open_session
from bench.load.tokens import served_model, tokenize_policy
from bench.load.workloads import PROMPTS, UserTurn
from bench.report.record import Record, append_record
from bench.run.question import OUT, add_out_argument, finish, markdown_into, question_parser
from bench.servers.environment import describe_environment, has_gpu, without_places
from bench.servers.launch import (
    EngineOptions,
    PatchFacts,
    add_engine_arguments,
    engine_options,
    ours_server,
    prepare_patch,
)
from bench.servers.processes import require_running, running_server

QUESTION = "fidelity"
#: Log probabilities asked for at each step; a token that a patch moves out of them is counted as unlisted.
NUM_LOGPROBS = 5

EPILOG = """\
examples:
  python -m bench.fidelity --model ./smollm2 --policy-text policy.txt
  python -m bench.fidelity --model ./smollm2 --policy-text policy.txt --dtype float32
  python -m bench.fidelity --model ./smollm2 --policy-text examples/policies/safety.txt --raw
"""


@dataclass(frozen=True)
class Arm:
    """One way to ask every question.

    Attributes:
        meaning: one line for tables.
        is_patched: the request names the patch; otherwise the policy's tokens stand in the prompt.
        is_batched: many requests are in flight; otherwise one.
    """

    meaning: str
    is_patched: bool
    is_batched: bool


ARMS = {
    "text": Arm("policy as text, one request at a time", is_patched=False, is_batched=False),
    "text-batched": Arm("policy as text, in a batch", is_patched=False, is_batched=True),
    "patched": Arm("patch, one request at a time", is_patched=True, is_batched=False),
    "patched-batched": Arm("patch, in a batch", is_patched=True, is_batched=True),
}

#: (arm, reference, what their difference says)
PAIRS = (
    ("text-batched", "text", "noise floor: text in a batch / text alone"),
    ("patched", "text", "patch alone / text alone"),
    ("patched-batched", "text-batched", "patch in a batch / text in a batch"),
    ("patched-batched", "patched", "patch in a batch / patch alone"),
)


@dataclass(frozen=True)
class FidelityOptions:
    """What is asked."""

    policy_text: Path
    is_raw: bool = False
    num_prompts: int = 64
    num_output_tokens: int = 48
    concurrency: int = 16
    start_timeout_s: float = 600.0
    time_limit_s: float = 3600.0
    out: Path = OUT

    def __post_init__(self) -> None:
        if not 1 <= self.num_prompts <= len(PROMPTS):
            raise ValueError(f"--prompts: expected 1 to {len(PROMPTS)}, got {self.num_prompts}")
        if self.num_output_tokens < 1 or self.concurrency < 2:
            raise ValueError("expected at least one output token, and at least two requests in a batch")


@dataclass(frozen=True)
class Job:
    """One run against one server."""

    url: str
    options: FidelityOptions
    patch: PatchFacts
    check_server: Callable[[], None]


def run_fidelity(engine: EngineOptions, options: FidelityOptions, command: Sequence[str]) -> Path:
    """Measure, and return the path of the records.

    Raises:
        BenchError: no number can be given.
    """
    environment = describe_environment()
    options.out.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{QUESTION}-", dir=options.out))
    patches = folder / "patches"
    patches.mkdir()
    patch = prepare_patch(engine, patches, policy_text=options.policy_text, patch=None, is_raw=options.is_raw)
    setup = {
        "command": shlex.join(map(without_places, command)),
        "model": without_places(engine.model),
        "dtype": engine.dtype,
        "block_size": engine.resolved_block_size(has_gpu()),
        "num_policy_tokens": patch.num_tokens,
        "num_output_tokens": options.num_output_tokens,
        "concurrency": options.concurrency,
    }
    spec = ours_server(engine, patches, folder)
    progress(f"starting the server on port {spec.port}, log in {spec.log_path}")
    with running_server(spec, start_timeout_s=options.start_timeout_s) as process:
        job = Job(spec.url, options, patch, lambda: require_running(spec, process))
        try:
            answers = asyncio.run(_ask_all(job))
        except TimeoutError as error:
            raise BenchError(f"not done after {options.time_limit_s:.0f} s; see --time-limit-s") from error
    path = folder / "records.jsonl"
    run_id = uuid.uuid4().hex[:12]
    for arm, reference, meaning in PAIRS:
        result = compare(answers[arm], answers[reference]).to_result()
        pair = {"arm": arm, "reference": reference, "meaning": meaning}
        append_record(path, Record(QUESTION, run_id, setup | pair, result, environment))
    return path


async def _ask_all(job: Job) -> dict[str, list[Answer]]:
    """Ask every question in every arm.

    Raises:
        CheckFailed: the patch was not made from the tokens that stand in the text arms.
        RequestFailed: an answer was an error.
    """
    async with asyncio.timeout(job.options.time_limit_s), open_session() as session:
        model = await served_model(session, job.url)
        text = job.options.policy_text.read_text(encoding="utf-8")
        policy_ids, turn = await tokenize_policy(session, job.url, model, text, is_raw=job.options.is_raw)
        if len(policy_ids) != job.patch.num_tokens:
            raise CheckFailed(
                [f"patch: expected {len(policy_ids)} tokens as in the text, got {job.patch.num_tokens}"]
            )
        asked = PROMPTS[:: len(PROMPTS) // job.options.num_prompts][: job.options.num_prompts]
        user_ids = [await _user_ids(session, job, model, turn, prompt) for prompt in asked]
        answers = {}
        for name, arm in ARMS.items():
            progress(f"{name}: {arm.meaning}")
            answers[name] = await _ask_arm(session, job, model, arm, policy_ids, user_ids)
            job.check_server()
        return answers


async def _user_ids(
    session: aiohttp.ClientSession, job: Job, model: str, turn: UserTurn, prompt: str
) -> list[int]:
    """Tokenize a question as it follows the policy: a turn of the same conversation, or a chat of its own."""
    body: dict[str, Any] = {"model": model, "prompt": prompt, "add_special_tokens": False}
    if job.options.is_raw:
        messages = [{"role": "user", "content": prompt}]
        body = {"model": model, "messages": messages, "add_generation_prompt": True}
    ids = (await call_json(session, "POST", f"{job.url}/tokenize", body))["tokens"]
    return [*turn.head, *ids, *turn.tail]


async def _ask_arm(
    session: aiohttp.ClientSession,
    job: Job,
    model: str,
    arm: Arm,
    policy_ids: Sequence[int],
    prompts: Sequence[Sequence[int]],
) -> list[Answer]:
    in_flight = asyncio.Semaphore(job.options.concurrency if arm.is_batched else 1)

    async def ask(user_ids: Sequence[int]) -> Answer:
        body = {
            "model": model,
            "prompt": [*(() if arm.is_patched else policy_ids), *user_ids],
            "max_tokens": job.options.num_output_tokens,
            "temperature": 0,
            "logprobs": NUM_LOGPROBS,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            # Nothing is found in the prefix cache: text is computed as a whole, a prefix written as a whole.
            "cache_salt": uuid.uuid4().hex,
        }
        async with in_flight:
            return await _ask_one(session, job, body, is_patched=arm.is_patched)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(ask(user_ids)) for user_ids in prompts]
    except* BenchError as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


async def _ask_one(
    session: aiohttp.ClientSession, job: Job, body: Mapping[str, Any], *, is_patched: bool
) -> Answer:
    url = f"{job.url}/v1/completions"
    headers = {PATCH_HEADER: job.patch.name} if is_patched else {}
    try:
        async with session.post(url, json=body, headers=headers) as response:
            if response.status != 200:
                raise RequestFailed(f"{url}: {response.status} {(await response.text())[:300]}")
            digest = response.headers.get(DIGEST_HEADER)
            if digest != (job.patch.digest if is_patched else None):
                raise CheckFailed(
                    [f"{DIGEST_HEADER}: {'patched' if is_patched else 'text'} arm got {digest}"]
                )
            return decode_answer(await response.json())
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise RequestFailed(f"{url}: {type(error).__name__}: {error}") from error


def decode_answer(body: Mapping[str, Any]) -> Answer:
    """Read an answer with token ids in the place of tokens.

    Raises:
        RequestFailed: it is not one choice with log probabilities.
    """
    try:
        (choice,) = body["choices"]
        steps = [
            {int(token.removeprefix("token_id:")): float(value) for token, value in step.items()}
            for step in choice["logprobs"]["top_logprobs"]
        ]
        return Answer(tuple(choice["token_ids"]), tuple(steps))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RequestFailed(f"answer: {type(error).__name__}: {error}; got {str(body)[:200]}") from error


def markdown_report(records: Sequence[Record]) -> str:
    """Render the table, and where it was measured."""
    first = records[0]
    setup, where = first.setup, first.environment
    lines = [
        f"# {QUESTION}",
        "",
        "| answers | \\|Δ log p\\| median | p90 | p99 | max | equal tokens | equal answers | steps |",
        "| :-- | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for record in records:
        r = record.result
        gaps = " | ".join(f"{r[f'{name}_gap']:.2g}" for name in ("median", "p90", "p99", "max"))
        lines.append(
            f"| {record.setup['meaning']} | {gaps} | {r['equal_tokens']:.2%} | {r['equal_answers']:.1%} "
            f"| {r['num_steps']} |"
        )
    versions = ", ".join(f"{name} {version}" for name, version in where["packages"].items())
    return "\n".join(
        [
            *lines,
            "",
            f"- {first.result['num_answers']} answers of up to {setup['num_output_tokens']} tokens per arm; "
            f"policy {setup['num_policy_tokens']} tokens; {setup['concurrency']} requests in a batch",
            f"- model {setup['model']}, {setup['dtype']}, block {setup['block_size']}",
            f"- {where['cpu_model']}, {where['num_usable_cores']} cores, "
            f"{'; '.join(where['gpus']) or 'no GPU'}; Python {where['python']}, {versions}",
            f"- `{setup['command']}`",
            "",
        ]
    )


def progress(message: str) -> None:
    """Tell the person who waits."""
    print(f"bench {QUESTION}: {message}", file=sys.stderr, flush=True)


def build_parser() -> argparse.ArgumentParser:
    """Build the command line; defaults are those of the options' dataclasses."""
    parser = question_parser(QUESTION, __doc__, EPILOG)
    d = FidelityOptions
    parser.add_argument("--model", required=True, help="model folder, or the id of a cached model")
    parser.add_argument("--policy-text", required=True, type=Path, metavar="FILE", help="the policy as text")
    parser.add_argument(
        "--raw", dest="is_raw", action="store_true", help="the policy stands as it is before a chat"
    )
    for flag, name, meaning in (
        ("--prompts", "num_prompts", f"questions per arm, up to {len(PROMPTS)}"),
        ("--output-tokens", "num_output_tokens", "longest answer"),
        ("--concurrency", "concurrency", "requests in flight in the batched arms"),
    ):
        default = getattr(d, name)
        parser.add_argument(
            flag, dest=name, type=int, default=default, metavar="N", help=f"{meaning} (default: {default})"
        )
    parser.add_argument(
        "--start-timeout-s", type=float, default=d.start_timeout_s, metavar="S", help="for the server"
    )
    parser.add_argument(
        "--time-limit-s", type=float, default=d.time_limit_s, metavar="S", help="for all answers together"
    )
    add_out_argument(parser)
    add_engine_arguments(parser)
    return parser


def fidelity_options(args: argparse.Namespace) -> FidelityOptions:
    """Read ``FidelityOptions`` from parsed arguments.

    Raises:
        ValueError: a number is out of range, or the policy is no file.
    """
    if not args.policy_text.is_file():
        raise ValueError(f"--policy-text: expected a file, got {args.policy_text}")
    names = ("policy_text", "is_raw", "num_prompts", "num_output_tokens", "concurrency", "start_timeout_s")
    return FidelityOptions(**{name: getattr(args, name) for name in (*names, "time_limit_s", "out")})


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; the last line of stdout is one JSON object.

    Returns:
        0 where every figure could be measured, 1 where not.
    """
    parser = build_parser()
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(arguments)
    try:
        options, engine = fidelity_options(args), engine_options(args)
        engine.environment(is_gpu=False)
    except ValueError as error:
        parser.error(str(error))
    return finish(
        QUESTION,
        lambda: run_fidelity(engine, options, ["python", "-m", f"bench.{QUESTION}", *arguments]),
        report=markdown_into(markdown_report),
        summary=lambda records: {
            "agreement": {f"{r.setup['arm']}/{r.setup['reference']}": dict(r.result) for r in records}
        },
    )


if __name__ == "__main__":
    sys.exit(main())
