"""The benchmark of fleets: real replicas follow a real store, and a rollback fetches nothing."""

import contextlib
import io
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench import fleet
from bench.errors import CheckFailed
from bench.report.record import read_records
from bench.servers import fleet_publisher, patch_set, random_patch
from tests.tiny_model import save_tiny_model


def _in_process(what: str, arguments: Sequence[str]) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert random_patch.main(arguments[1:]) == 0
    return said.getvalue().splitlines()[-1]


def test_every_replica_follows_every_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patch_set, "run_maker", _in_process)
    monkeypatch.setattr(fleet_publisher, "AHEAD_S", 1.0)
    model = tmp_path / "model"
    save_tiny_model(model)
    words = ["--model", str(model), "--replicas", "3", "--patches", "2", "--poll", "0.2", "--rounds", "1"]
    assert fleet.main([*words, "--out", str(tmp_path / "out")]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    cells = told["cells"]
    assert set(cells) == {fleet.AT_ONCE, fleet.INSTANT, fleet.ROLLBACK}
    assert cells[fleet.AT_ONCE]["patches_fetched"]["median"] == 3
    assert cells[fleet.INSTANT]["patches_fetched"]["median"] == 3
    assert cells[fleet.ROLLBACK]["patches_fetched"]["median"] == 0
    records = read_records([Path(told["records"])])
    assert len(records) == 6


def test_a_replica_that_stays_behind_gives_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "_TIMEOUT_S", 0.01)
    replicas = fleet.Replicas(2, {1: [0.0, 0.0], 2: [0.0]})
    assert replicas.wait(1) == [0.0, 0.0]
    with pytest.raises(CheckFailed, match="revision 2: on 1 of 2"):
        replicas.wait(2)
