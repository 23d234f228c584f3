"""The soak's own judgement: what it lets pass and what it finds, without a server."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from bench.report.record import read_records
from bench.soak import __main__ as soak
from bench.soak.clock import ShiftedClock
from bench.soak.contents import Content
from bench.soak.load import Tally
from bench.soak.memory import MIB, MemorySamples
from bench.soak.references import Reference, References
from bench.soak.report import Findings, checks_of, soak_markdown, soak_summary
from bench.soak.requests import Ask, Outcome, read_event
from bench.soak.storm import ALWAYS_S, Swap, SwapLog

ASK = Ask(0, "hot", True, 3)


def outcome(digest: str, ids: list[int], sent_s: float = 0.0, headers_s: float = 1.0) -> Outcome:
    return Outcome(ASK, sent_s, digest=digest, token_ids=ids, headers_s=headers_s, first_s=headers_s + 0.5)


@pytest.fixture
def references() -> References:
    answers = {
        ("a", 0): Reference((1, 2, 3), (7, 8, 9), (1.0, 1e-5, 1.0)),
        ("b", 0): Reference((4, 5, 6), (7, 8, 9), (1.0, 1.0, 1.0)),
    }
    return References(3, answers)


@pytest.mark.parametrize(
    ("digest", "ids", "verdict"),
    [
        ("a", [1, 2, 3], "same"),
        ("a", [4, 5, 6], "other"),
        ("a", [1, 5, 6], "other"),
        # As likely within rounding, and the runner-up: no other content's answer.
        ("a", [1, 8, 6], "tie"),
        ("b", [4, 8, 6], "other"),
        ("c", [1, 2, 3], "unknown"),
    ],
)
def test_an_answer_has_to_be_that_of_the_content_in_its_header(
    references: References, digest: str, ids: list[int], verdict: str
) -> None:
    assert references.judge(outcome(digest, ids)) == verdict


def test_wrong_and_failed_answers_are_counted_and_shown() -> None:
    tally = Tally()
    tally.note(outcome("a", [1, 2, 3]), "same")
    tally.note(outcome("a", [4, 5, 6]), "other")
    tally.note(Outcome(ASK, 0.0, kind="cut", detail="gone"), "")
    assert (tally.num_ok, tally.num_wrong, tally.num_failed) == (2, 1, 1)
    assert tally.examples == ["hot answered as a: other answer", "hot: cut: gone"]


def test_contents_of_equal_tensors_share_their_references(references: References) -> None:
    known, other = (Content("hot", "1.0.0", 1, digest, Path()) for digest in ("a", "z"))
    references.alias(known, other)
    assert references.judge(outcome("z", [1, 2, 3])) == "same"


@pytest.mark.parametrize(
    ("sent_s", "headers_s", "is_possible"),
    [(0.5, 1.0, True), (2.5, 3.0, True), (5.0, 6.0, False)],
    ids=["while it was meant", "while the next call ran", "after the next call was confirmed"],
)
def test_an_answer_of_a_content_that_was_swapped_out_before_it_was_asked_for_is_stale(
    sent_s: float, headers_s: float, is_possible: bool
) -> None:
    log = SwapLog([Swap("a", 0.0, 0.1), Swap("b", 2.0, 4.0)])
    assert log.is_possible(outcome("a", [], sent_s, headers_s)) is is_possible


def test_an_answer_of_a_content_that_nobody_had_ordered_yet_is_impossible() -> None:
    log = SwapLog([Swap("a", 0.0, 0.1), Swap("b", 2.0, 2.1)])
    assert not log.is_possible(outcome("b", [], 0.5, 1.0))
    assert not log.is_possible(outcome("c", [], 0.5, 1.0))


def test_what_a_storm_found_is_possible_and_no_swap_to_time() -> None:
    log = SwapLog([Swap("a", ALWAYS_S, ALWAYS_S)], [outcome("a", [], 2.0, 2.5)])
    assert log.is_possible(log.outcomes[0])
    assert log.first_answers_s() == []


def test_the_first_answer_after_a_swap_is_timed_from_the_call() -> None:
    log = SwapLog([Swap("a", 0.0, 0.1), Swap("b", 2.0, 2.1), Swap("c", 3.0, 3.1)])
    log.outcomes = [outcome("b", [], 2.2, 2.5), outcome("b", [], 2.3, 2.9), outcome("a", [], 0.2, 0.4)]
    assert sorted(log.first_answers_s()) == pytest.approx([0.9, 1.0])


def test_a_growing_process_has_a_slope_and_a_flat_one_none() -> None:
    samples = MemorySamples()
    samples.by_role["flat"] = [(2.0 * i, 100 * MIB + (i % 2) * MIB) for i in range(90)]
    samples.by_role["leak"] = [(2.0 * i, 100 * MIB + i * MIB) for i in range(90)]
    # What happens while it warms up is not part of the line.
    samples.by_role["leak"][0] = (0.0, 0)
    slopes = samples.slopes(60.0)
    assert abs(slopes["flat"].per_minute) < 0.1
    assert slopes["leak"].per_minute == pytest.approx(30.0)
    assert slopes["leak"].least == pytest.approx(30.0)


def test_the_memory_of_this_process_can_be_looked_at() -> None:
    samples = MemorySamples()
    samples.add(0.0, {"test": os.getpid(), "gone": 2**22 + 1})
    ((_, num_bytes),) = samples.by_role["test"]
    assert num_bytes > MIB
    assert "gone" not in samples.by_role


def test_an_error_event_ends_an_answer_as_one() -> None:
    answer = Outcome(ASK, 0.0)
    read_event(json.dumps({"choices": [{"token_ids": [1]}]}).encode(), answer)
    read_event(json.dumps({"error": {"message": "withdrawn"}}).encode(), answer)
    assert (answer.kind, answer.token_ids) == ("event", [1])
    assert "withdrawn" in answer.detail


def test_findings_are_on_record_and_one_that_failed_fails_the_run(tmp_path: Path) -> None:
    environment: dict[str, Any] = {
        **dict.fromkeys(("git_commit", "git_has_changes", "cpu_model")),
        **{"date": "2026-01-31", "num_usable_cores": 2, "memory_bytes": 2**30, "gpus": []},
        **{"load_average_1m": 0.5, "python": "3.11", "packages": {"vllm": "0.32.0"}},
    }
    findings = Findings(tmp_path / "records.jsonl", "run", {"model": "m", "command": "c"}, environment)
    findings.note("load", "clients", "no errors", True, num_ok=3)
    assert findings.is_ok
    findings.note("faults", "disk full", "a hang", False)
    assert not findings.is_ok
    records = read_records([findings.records_path])
    assert [check.is_ok for check in checks_of(records)] == [True, False]
    assert records[0].result["num_ok"] == 3
    assert "| faults | disk full | a hang | **failed** |" in soak_markdown(records)
    assert soak_summary(records) == {"ok": False, "num_checks": 2, "failed": ["faults: disk full: a hang"]}


def test_a_clock_is_set_for_processes_that_run(tmp_path: Path) -> None:
    """What libfaketime reads; that it works on a server is seen in the part `faults`."""
    clock = ShiftedClock(tmp_path / "libfaketime.so.1", tmp_path / "clock")
    assert (tmp_path / "clock").read_text() == "+0\n"
    clock.shift(-86400)
    assert (tmp_path / "clock").read_text() == "-86400\n"
    environment = clock.environment()
    assert environment["FAKETIME_TIMESTAMP_FILE"] == str(tmp_path / "clock")
    assert environment["FAKETIME_DONT_FAKE_MONOTONIC"] == "1"


def test_a_short_run_is_short() -> None:
    args = soak.build_parser().parse_args(["--model", "m", "--short"])
    plan = soak.plan_of(args)
    assert (plan.duration_s, plan.storm_s, plan.num_kills) == (8.0, 4.0, 1)
    plan = soak.plan_of(soak.build_parser().parse_args(["--model", "m"]))
    assert (plan.duration_s, plan.storm_s, plan.rate_per_s, plan.concurrency) == (600.0, 60.0, 50.0, 64)


def test_a_part_that_nobody_knows_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        soak.build_parser().parse_args(["--model", "m", "--parts", "load,nothing"])
    assert "nothing" in capsys.readouterr().err
