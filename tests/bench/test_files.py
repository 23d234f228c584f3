"""Damaged and hostile patch files, in short; `policypatch bench files` is the long form."""

import json
import multiprocessing
import random
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from bench.files import main, markdown_table, summarise
from bench.hostile.file_reader import Outcome, Reader, show_in_processes
from bench.hostile.good_file import good_file
from bench.hostile.mutations import FAMILIES, MUTATIONS, mutant
from patches.errors import FORMAT_REASONS, PatchFormatError
from patches.format import decode_patch

GOOD = good_file()
#: Every family at least eight times.
SEEDS = range(8 * len(FAMILIES))


def test_no_file_is_loaded_crashes_the_catalog_or_stops_another(tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    outcomes = [reader.show(seed) for seed in SEEDS]
    assert len(outcomes) >= 450
    assert [outcome for outcome in outcomes if outcome.result != "refused"] == []
    assert {outcome.reason for outcome in outcomes} <= {*FORMAT_REASONS, "base_model_mismatch"}
    assert {outcome.family for outcome in outcomes} == set(FAMILIES)


def test_equal_seeds_make_equal_files_at_any_time_of_day(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = range(8 * len(FAMILIES))
    made = [mutant(seed, GOOD) for seed in seeds]
    monkeypatch.setattr(time, "time", lambda: 2_000_000_000.0)
    assert [mutant(seed, GOOD) for seed in seeds] == made


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutation_makes_many_different_files(name: str) -> None:
    made = {MUTATIONS[name](random.Random(seed), GOOD) for seed in range(60)}
    assert len(made - {GOOD}) >= 8


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_bytes_that_are_exchanged_anywhere_make_the_file_another_one(data: st.DataObject) -> None:
    begin = data.draw(st.integers(0, len(GOOD)), "begin")
    end = data.draw(st.integers(begin, min(len(GOOD), begin + 64)), "end")
    changed = GOOD[:begin] + data.draw(st.binary(max_size=64), "bytes") + GOOD[end:]
    assume(changed != GOOD)
    with pytest.raises(PatchFormatError) as caught:
        decode_patch(changed)
    assert caught.value.reason in FORMAT_REASONS


def test_a_process_that_dies_is_counted_and_replaced() -> None:
    shown = show_in_processes(range(2))
    first = next(shown)
    for child in multiprocessing.active_children():
        child.kill()
        child.join()
    assert [first.result, *(outcome.result for outcome in shown)] == ["refused", "crashed"]


def test_the_summary_tells_what_was_not_refused() -> None:
    outcomes = [Outcome(0, "a", "refused", "truncated", 0.1, 1 << 20), Outcome(1, "b", "loaded", "sha256:…")]
    summary: dict[str, Any] = summarise(outcomes)
    assert (summary["num_files"], summary["num_loaded"]) == (2, 1)
    assert summary["not_refused"][0]["seed"] == 1
    assert "| a | 1 | 1 | 0 | 0 | 100 ms | 1.0 MiB |" in markdown_table(summary)


def test_the_command_ends_with_one_json_object(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "bench.files.show_in_processes", lambda seeds: [Outcome(s, "a", "hung", "") for s in seeds]
    )
    assert main(["--count", "3"]) == 1
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (last["question"], last["ok"], last["num_hung"]) == ("files", False, 3)
