"""Rounds of cells: every arm once per round and concurrency, in an order that favours none, one at a time."""

import argparse
import asyncio
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp

from bench.errors import CheckFailed
from bench.load.arms import Arm, Question
from bench.load.client import send_closed_loop, send_one
from bench.load.timing import measure_cell
from bench.load.workloads import UserTurn, arm_orders, user_prompts
from bench.report.record import Record, append_record
from bench.run.correctness import check_replies
from bench.servers.environment import cpu_jiffies

#: Round 0 warms the servers up: it is recorded, and left out of every figure.
NUM_WARMUP_ROUNDS = 1


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        concurrency: numbers of requests in flight, each a cell of its own.
        num_rounds: rounds that count.
        min_requests: requests in a cell at least.
        num_waves: requests in a cell as a multiple of its concurrency.
        num_input_tokens: user tokens of each prompt.
        num_output_tokens: tokens of each answer.
        seed: decides prompts and orders.
        settle_s: pause before each cell, in which the other server goes to sleep.
    """

    concurrency: tuple[int, ...] = (1, 8)
    num_rounds: int = 7
    min_requests: int = 4
    num_waves: int = 2
    num_input_tokens: int = 128
    num_output_tokens: int = 64
    seed: int = 0
    settle_s: float = 1.5

    def num_requests(self, concurrency: int) -> int:
        """Return the number of requests in a cell."""
        return max(self.min_requests, self.num_waves * concurrency)


def add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``Plan``."""
    group = parser.add_argument_group("how much")
    group.add_argument(
        "--concurrency",
        type=_counts,
        default=Plan.concurrency,
        metavar="N,N",
        help=f"requests in flight (default: {','.join(map(str, Plan.concurrency))})",
    )
    for flag, default, meaning in (
        ("--rounds", Plan.num_rounds, "rounds, after one that warms up"),
        ("--min-requests", Plan.min_requests, "requests per arm and round, at least"),
        ("--waves", Plan.num_waves, "requests per slot, arm and round"),
        ("--input-tokens", Plan.num_input_tokens, "user tokens of each prompt"),
        ("--output-tokens", Plan.num_output_tokens, "tokens of each answer"),
        ("--seed", Plan.seed, "decides prompts and orders"),
    ):
        group.add_argument(
            flag, type=int, default=default, metavar="N", help=f"{meaning} (default: {default})"
        )
    group.add_argument(
        "--settle-s",
        type=float,
        default=Plan.settle_s,
        metavar="S",
        help="pause before each cell (default: %(default)s)",
    )


def plan_of(args: argparse.Namespace) -> Plan:
    """Read ``Plan`` from parsed arguments."""
    return Plan(
        concurrency=args.concurrency,
        num_rounds=args.rounds,
        min_requests=args.min_requests,
        num_waves=args.waves,
        num_input_tokens=args.input_tokens,
        num_output_tokens=args.output_tokens,
        seed=args.seed,
        settle_s=args.settle_s,
    )


@dataclass(frozen=True)
class Run:
    """What the cells of a run have in common.

    Attributes:
        run_id: tells this run's records, and its cache salts, from every other run's.
        question_name: the module that asks.
        plan: how much is measured.
        arms: who takes turns.
        question: what is asked.
        turn: the ids around a user message.
        block_size: tokens in a KV block; user prompts differ within the first one.
        patch_digest: what patched answers have to name; ``None`` where unknown.
        check_servers: raises where a server has died.
        setup: goes into each record.
        environment: goes into each record.
        records_path: takes the records.
    """

    run_id: str
    question_name: str
    plan: Plan
    arms: tuple[Arm, ...]
    question: Question
    turn: UserTurn
    block_size: int
    patch_digest: str | None
    check_servers: Callable[[], None]
    setup: Mapping[str, Any]
    environment: Mapping[str, Any]
    records_path: Path

    def prompts(self, label: str, count: int) -> list[list[int]]:
        """Draw user prompts; each label has its own."""
        return user_prompts(
            self.turn,
            count=count,
            num_tokens=self.plan.num_input_tokens,
            unique_within=self.block_size,
            seed=self.plan.seed,
            label=f"{self.run_id}/{label}",
        )


async def measure_rounds(session: aiohttp.ClientSession, run: Run, gate_facts: Mapping[str, Any]) -> None:
    """Run all rounds and append one record per cell as soon as it is measured.

    Raises:
        CheckFailed: an answer that was timed is not as expected.
        RequestFailed: a request failed.
        ServerFailed: a server died.
    """
    num_rounds = NUM_WARMUP_ROUNDS + run.plan.num_rounds
    names = {arm.name: arm for arm in run.arms}
    orders = {
        concurrency: arm_orders(
            list(names), num_rounds=num_rounds, seed=run.plan.seed, label=f"order/{concurrency}"
        )
        for concurrency in run.plan.concurrency
    }
    for round_idx in range(num_rounds):
        for concurrency in run.plan.concurrency:
            for position, name in enumerate(orders[concurrency][round_idx]):
                result = await measure_arm(session, run, names[name], round_idx, concurrency)
                cell = {
                    "arm": name,
                    "round": round_idx,
                    "is_warmup": round_idx < NUM_WARMUP_ROUNDS,
                    "concurrency": concurrency,
                    "position": position,
                }
                setup = {**run.setup, **cell, "gate": gate_facts}
                record = Record(run.question_name, run.run_id, setup, result, run.environment)
                append_record(run.records_path, record)
                progress(
                    f"round {round_idx}/{num_rounds - 1}  concurrency {concurrency:<3}  {name:<11}  "
                    f"{result['output_tokens_per_s']:8.1f} tok/s  "
                    f"TTFT {result['ttft_s']['p50'] * 1e3:7.1f} ms"
                )


async def measure_arm(
    session: aiohttp.ClientSession, run: Run, arm: Arm, round_idx: int, concurrency: int
) -> dict[str, Any]:
    """Measure one cell.

    Raises:
        CheckFailed: an answer is not as expected.
        RequestFailed: a request failed.
        ServerFailed: a server died.
    """
    # Also a part of cache salts, in which vLLM allows no "/".
    label = f"{round_idx}-{concurrency}"
    # The server of the cell before spins on its queues for a second after its last answer, on the same cores.
    await asyncio.sleep(run.plan.settle_s)
    # One answer outside the clock: wakes the server up, and warms the policy text where the arm is warm.
    (first,) = run.prompts(f"prime-{arm.name}-{label}", 1)
    await send_one(session, run.question.request(arm, first, salt=f"{run.run_id}-prime-{label}"))
    prompts = run.prompts(label, run.plan.num_requests(concurrency))
    requests = [
        run.question.request(arm, user_ids, salt=f"{run.run_id}-{label}-{i}")
        for i, user_ids in enumerate(prompts)
    ]
    all_before, stolen_before = cpu_jiffies()
    replies = await send_closed_loop(session, requests, concurrency=concurrency)
    all_after, stolen_after = cpu_jiffies()
    run.check_servers()
    if findings := check_replies(run.question, arm, prompts, replies, run.patch_digest):
        raise CheckFailed(findings)
    return {
        **asdict(measure_cell([reply.trace for reply in replies])),
        "num_cached_tokens": sum(reply.num_cached_tokens for reply in replies),
        "cpu_stolen_share": (stolen_after - stolen_before) / max(1, all_after - all_before),
    }


def _counts(value: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(int(count) for count in value.split(",")))


def progress(message: str) -> None:
    """Print how far a run is, to stderr: stdout is for results."""
    print(message, file=sys.stderr, flush=True)
