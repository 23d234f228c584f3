"""`policypatch bench inject` at a shape of a few kilobytes: what it writes, and what its figures are of."""

import json
from pathlib import Path

import pytest
import torch

from bench.inject import InjectOptions, Workload, arms_of, main
from bench.report.record import read_records
from bench.run import device_timing

TINY = ["--layers", "2", "--kv-heads", "2", "--head-size", "16", "--tokens", "5", "--block-size", "4"]


@pytest.fixture(autouse=True)
def small_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_timing, "FLUSH_BYTES", 1024)


def test_every_way_is_compared_with_a_copy_of_the_same_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*TINY, "--patches", "1,3", "--rounds", "3", "--device", "cpu", "--out", str(tmp_path)]
    assert main(arguments) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    records = read_records([Path(summary["records"])])
    arms = [arm.name for arm in arms_of(torch.device("cpu"))]
    assert [(r.setup["num_patches"], r.setup["arm"]) for r in records] == [
        (n, a) for n in (1, 3) for a in arms
    ]
    for record in records:
        assert record.result["num_bytes"] == record.setup["num_patches"] * 2 * 2 * 5 * 2 * 16 * 2
        assert record.result["floor_s"] > 0
        assert (record.result["floor_share"] == 1) == (record.setup["arm"] == "copy")
    assert "| 3 | 0 | torch, moved |" in (Path(summary["records"]).parent / "report.md").read_text()


def test_what_is_timed_is_a_whole_write() -> None:
    """Each patch reaches blocks of its own, all of its tokens, every layer."""
    options = InjectOptions((3,), 5, 2, 2, 16, 4, "float32", "cpu")
    workload = Workload(options, 3)
    workload.run(arms_of(torch.device("cpu"))[1])
    for layer in workload._caches.layers:
        tokens = layer.kv.transpose(1, 2).flatten(0, 1)
        assert (tokens != 0).all(dim=-1).all(dim=-1).sum() == 3 * 5


@pytest.mark.parametrize("flags", [["--patches", "0"], ["--patches", "x"], ["--rounds", "0"]])
def test_numbers_out_of_range_are_mistakes_of_the_caller(flags: list[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(flags)
    assert exit_.value.code == 2
