"""The other load generator: what it is told, and what of its result is believed."""

import argparse
import itertools
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import cross_check
from bench.cross_check import OTHER, OURS, other_command, read_result, run_other
from bench.errors import BenchError, CheckFailed, CutShort
from bench.run.patch_sweep import Lengths, Stage, Target, target_of
from bench.run.sweep import Cell
from bench.servers.fake import FakeServer
from bench.servers.patch_set import PatchFile

LENGTHS = Lengths(num_virtual_tokens=12, num_input_tokens=20, num_output_tokens=4)
ARGS = argparse.Namespace(model="./m", min_requests=3, waves=2, seed=0)
SAVED = {
    "completed": 6,
    "failed": 0,
    "total_input_tokens": 120,
    "total_output_tokens": 24,
    "duration": 2.0,
    "output_throughput": 12.0,
    "median_ttft_ms": 100.0,
    "p99_ttft_ms": 200.0,
    "median_itl_ms": 10.0,
    "p99_itl_ms": 30.0,
}


def test_its_result_gets_our_names_and_units() -> None:
    assert read_result(SAVED, num_expected=6, num_output_tokens=4) == {
        "num_requests": 6,
        "num_input_tokens": 120,
        "num_output_tokens": 24,
        "duration_s": 2.0,
        "output_tokens_per_s": 12.0,
        "ttft_s": {"p50": 0.1, "p99": 0.2},
        "itl_s": {"p50": 0.01, "p99": 0.03},
    }


@pytest.mark.parametrize("wrong", [{"completed": 5}, {"failed": 1}, {"total_output_tokens": 23}])
def test_a_failed_or_short_answer_is_no_figure(wrong: dict[str, int]) -> None:
    with pytest.raises(CheckFailed, match="expected \\(6, 0, 24\\)"):
        read_result(SAVED | wrong, num_expected=6, num_output_tokens=4)


def test_what_it_saved_is_read_and_what_it_says_in_failing_is_shown(tmp_path: Path) -> None:
    write = "import json, sys; from pathlib import Path; a = sys.argv; "
    write += (
        "Path(a[a.index('--result-dir') + 1], a[a.index('--result-filename') + 1]).write_text('{\"x\": 1}')"
    )
    assert run_other([sys.executable, "-c", write], tmp_path / "a.json") == {"x": 1}
    with pytest.raises(BenchError, match="no such dataset"):
        run_other([sys.executable, "-c", "raise SystemExit('no such dataset')"], tmp_path / "b.json")


def test_another_generator_that_takes_too_long_leaves_the_rounds_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_check, "TIMEOUT_S", 0.01)
    with pytest.raises(CutShort, match="vllm bench serve: not done after"):
        run_other([sys.executable, "-c", "import time; time.sleep(3600)"], tmp_path / "c.json")


async def stage_of(serve: Any, session: Any, monkeypatch: pytest.MonkeyPatch, counts: list[float]) -> Stage:
    """A server whose count of patched requests is made up."""
    server = FakeServer(policy="be kind", patch_name="p-0")
    target = await target_of(session, await serve(server), LENGTHS, 0)

    async def num_patched(*_: Any) -> float:
        return counts.pop(0)

    monkeypatch.setattr(cross_check, "num_patched", num_patched)
    return Stage(
        session, {"ours": target}, [PatchFile("p-0", server.digest, Path("p"), 1)], Path("/x/y"), ARGS
    )


async def test_both_send_as_many_requests_of_the_same_lengths_under_the_patch(
    serve: Any, session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = await stage_of(serve, session, monkeypatch, [0, 6, 6, 12])
    ours = await cross_check.measure(stage, Cell(OURS, 0, "3 at a time"), 1)
    commands = []
    monkeypatch.setattr(cross_check, "run_other", lambda command, saved: commands.append(command) or SAVED)
    other = await cross_check.measure(stage, Cell(OTHER, 1, "3 at a time"), 1)
    assert [ours[key] for key in ("num_requests", "num_output_tokens")] == [6, 24]
    assert [other[key] for key in ("num_requests", "num_output_tokens")] == [6, 24]
    (command,) = commands
    told = dict(itertools.pairwise(command))
    assert told["--header"] == "X-Policy-Patch=p-0"
    assert (told["--num-prompts"], told["--max-concurrency"]) == ("6", "3")
    assert (told["--random-input-len"], told["--random-output-len"]) == ("20", "4")


async def test_requests_that_the_server_did_not_patch_are_no_figure(
    serve: Any, session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = await stage_of(serve, session, monkeypatch, [0, 5])
    with pytest.raises(CheckFailed, match="6 requests were sent, the server answered 5 patched"):
        await cross_check.measure(stage, Cell(OURS, 0, "3 at a time"), 1)


def test_the_other_generator_gets_its_tokenizer_from_the_model_folder() -> None:
    target = Target("http://127.0.0.1:1", "bench", None, LENGTHS, 0)  # type: ignore[arg-type]
    command = other_command(target, ARGS, patch="p-0", concurrency=1)
    assert command[command.index("--tokenizer") + 1] == "./m"
    assert command[command.index("--num-prompts") + 1] == "3"
