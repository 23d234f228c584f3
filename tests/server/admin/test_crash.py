"""kill -9 at any instant: the next start serves the last state that was confirmed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).with_name("killed_server.py")
ROOT = Path(__file__).parents[3]


def kill_at_each_step(folder: Path, orders: str) -> list[dict[str, Any]]:
    """Give one record for each step at which a server was killed, and one for the life without a kill."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", PROGRAM, folder, orders],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=500,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def deaths(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return kill_at_each_step(tmp_path_factory.mktemp("killed") / "server", "swaps")


def test_every_process_but_the_last_was_killed(deaths: list[dict[str, Any]]) -> None:
    assert len(deaths) > 30
    assert all(os.WTERMSIG(death["status"]) == signal.SIGKILL for death in deaths[:-1])
    assert deaths[-1]["status"] == 0
    versions = [version for version, _, _ in deaths[-1]["confirmed"]]
    assert versions == ["1.2.0", "1.0.0", "1.1.0", "1.0.0", "1.2.0"]


def test_the_next_start_serves_what_was_confirmed_last(deaths: list[dict[str, Any]]) -> None:
    """An order that was not answered yet may have been carried out or not; nothing else is possible."""
    require_confirmed(deaths)


def test_a_removal_that_was_cut_off_lets_nothing_serve_that_the_pin_kept_out(tmp_path: Path) -> None:
    """The record goes first, then the files: those that were left became active at the next start."""
    deaths = kill_at_each_step(tmp_path / "server", "removal")
    assert len(deaths) > 15
    assert [version for version, _, _ in deaths[-1]["confirmed"]] == ["1.2.0", "1.0.0", None]
    require_confirmed(deaths)


def test_weights_are_after_a_kill_those_of_the_record(tmp_path: Path) -> None:
    """Before the engine stops, between its write and the record, between the record and its going on."""
    deaths = kill_at_each_step(tmp_path / "server", "weights")
    assert len(deaths) > 40
    assert [version for version, _, _ in deaths[-1]["confirmed"]] == [None, "1.0.0", "2.0.0", "1.0.0", None]
    require_confirmed(deaths)


def require_confirmed(deaths: list[dict[str, Any]]) -> None:
    whole = deaths[-1]["confirmed"]
    for death in deaths:
        assert death["again"] == 0, f"step {death['step']}: the next start failed"
        (state,) = death["told"]
        num_confirmed = len(death["confirmed"])
        possible = whole[max(0, num_confirmed - 1) : num_confirmed + 1]
        assert state in possible, f"step {death['step']}: {state} is none of {possible}"


def test_kills_hit_both_sides_of_each_order(deaths: list[dict[str, Any]]) -> None:
    """Otherwise the test above would prove little."""
    for num_confirmed in range(1, 5):
        outcomes = {
            deaths[-1]["confirmed"].index(death["told"][0])
            for death in deaths[:-1]
            if len(death["confirmed"]) == num_confirmed
        }
        assert len(outcomes) >= 2, f"after {num_confirmed} confirmed states: {outcomes}"
