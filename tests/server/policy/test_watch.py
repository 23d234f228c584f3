"""The watched policy file: in force as a whole or not at all, and told about either way."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from server.audit import AuditEvent
from server.metrics.control import ControlMetrics
from server.policy.file import load_policy
from server.policy.rules import Policy
from server.policy.watch import PolicyWatch

OPEN = b"version: 1\nothers: {allow: all, allow_none: true}\n"
CLOSED = b"version: 1\n"
WRONG = b"version: 1\nothers: {alow: all}\n"


@dataclass
class Stage:
    """A file, and everything that follows it."""

    path: Path
    policy: Policy
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    events: list[AuditEvent] = field(default_factory=list)

    def record(self, event: AuditEvent) -> None:
        self.events.append(event)

    def write(self, data: bytes) -> None:
        """As the documentation asks for: beside it, then renamed."""
        staged = self.path.with_suffix(".new")
        staged.write_bytes(data)
        staged.rename(self.path)

    def metric(self, series: str) -> float:
        lines = generate_latest(self.registry).decode().splitlines()
        (line,) = (line for line in lines if line.startswith(f"policy_patch_policy_{series} "))
        return float(line.rpartition(" ")[2])

    def watch(self, rescan_s: float = 0.1) -> PolicyWatch:
        metrics = ControlMetrics(self.registry)
        loaded = load_policy(self.path)
        return PolicyWatch(self.path, loaded, self, metrics, self, rescan_s=rescan_s, settle_s=0.01)


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    path = tmp_path / "policy.yaml"
    path.write_bytes(OPEN)
    return Stage(path, load_policy(path).policy)


@pytest.fixture
async def watching(stage: Stage) -> AsyncIterator[Stage]:
    async with stage.watch():
        yield stage


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_renamed_file_comes_into_force_by_itself(watching: Stage) -> None:
    watching.write(CLOSED)
    await until(lambda: watching.policy.others is None)
    (event,) = watching.events
    assert (event.event, event.decision) == ("policy.reload", "done")
    assert event.digest == load_policy(watching.path).digest
    assert watching.metric('reloads_total{outcome="ok"}') == 1
    assert watching.metric("current") == 1


async def test_a_file_with_a_mistake_changes_nothing_and_says_where(
    watching: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    before = watching.policy
    with caplog.at_level(logging.ERROR, "server.policy.watch"):
        watching.write(WRONG)
        await until(lambda: watching.events)
    assert watching.policy is before
    (event,) = watching.events
    assert event.decision == "failed"
    assert "line 2, column 10: others: unknown field 'alow'" in str(event.reason)
    assert "line 2, column 10" in caplog.text
    assert watching.metric("current") == 0
    watching.write(CLOSED)
    await until(lambda: watching.policy.others is None)
    assert watching.metric("current") == 1


async def test_a_missing_file_changes_nothing_until_it_is_back(watching: Stage) -> None:
    before = watching.policy
    watching.path.unlink()
    await until(lambda: watching.metric("current") == 0)
    assert watching.policy is before
    watching.write(CLOSED)
    await until(lambda: watching.policy.others is None)


async def test_the_same_problem_is_told_once(stage: Stage) -> None:
    watch = stage.watch()
    stage.write(WRONG)
    for _ in range(3):
        await watch.look()
    assert len(stage.events) == 1


async def test_the_old_content_put_back_is_current_again_without_a_reload(stage: Stage) -> None:
    watch = stage.watch()
    stage.write(WRONG)
    await watch.look()
    stage.write(OPEN)
    await watch.look()
    assert stage.metric("current") == 1
    assert [event.decision for event in stage.events] == ["failed"]


async def test_a_file_that_is_still_being_written_is_left_alone(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of a policy may be a policy, and one that allows more."""
    watch = stage.watch()
    before = stage.policy
    stage.path.write_bytes(CLOSED)

    async def write_on(delay_s: float) -> None:
        with stage.path.open("ab") as file:
            file.write(b"# more\n")

    with monkeypatch.context() as patched:
        patched.setattr("server.policy.watch.asyncio.sleep", write_on)
        for _ in range(3):
            await watch.look()
    assert stage.policy is before
    await watch.look()
    assert stage.policy.others is None


async def test_a_link_whose_target_changes_is_followed(stage: Stage, tmp_path: Path) -> None:
    """Kubernetes mounts a ConfigMap this way."""
    target = tmp_path / "data" / "policy.yaml"
    target.parent.mkdir()
    target.write_bytes(OPEN)
    stage.path.unlink()
    stage.path.symlink_to(target)
    async with stage.watch():
        target.write_bytes(CLOSED)
        await until(lambda: stage.policy.others is None)
