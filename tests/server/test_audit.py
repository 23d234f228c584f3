"""The audit log's file: what is in it, and what becomes of it when the disk or the reader is slow."""

import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from server.audit import (
    DROP_REASONS,
    MAX_TEXT,
    Audit,
    AuditEvent,
    AuditLogError,
    FileAudit,
    NullAudit,
    encode_event,
    open_audit,
)
from server.metrics.patches import PatchMetrics
from tests.server.stand import Stand


@pytest.fixture
def drops() -> Counter[str]:
    return Counter()


@pytest.fixture
def log(tmp_path: Path, drops: Counter[str]) -> Iterator[FileAudit]:
    with FileAudit(tmp_path / "audit.jsonl", lambda reason, n: drops.update({reason: n})) as audit:
        yield audit


def event(number: int = 0, **parts: Any) -> AuditEvent:
    return AuditEvent(**{"event": "request", "decision": "denied", "status": number, **parts})


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("ascii").splitlines() if line]


def wait_until(condition: Any) -> None:
    for _ in range(3000):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("waited in vain")


def test_every_event_is_a_line_in_order(tmp_path: Path, drops: Counter[str]) -> None:
    with FileAudit(tmp_path / "audit.jsonl", lambda reason, n: drops.update({reason: n})) as audit:
        for number in range(1200):
            audit.record(event(number))
    assert [line["status"] for line in lines(tmp_path / "audit.jsonl")] == list(range(1200))
    assert not drops


def test_a_line_has_the_fields_that_are_set_and_a_time_in_utc() -> None:
    line = json.loads(encode_event(event(403, principal="team", details={"share": 0.05}), 1.25))
    assert line == {
        "time": "1970-01-01T00:00:01.250Z",
        "event": "request",
        "decision": "denied",
        "principal": "team",
        "status": 403,
        "share": 0.05,
    }


def test_details_cannot_overwrite_a_field() -> None:
    assert json.loads(encode_event(event(details={"decision": "allowed"}), 0))["decision"] == "denied"


@pytest.mark.parametrize("text", ["a\nb", "\x1b[2J", "\u2028", "\U0001f600", "\x00", '"}\n{"event":"admin"'])
def test_what_a_client_writes_stays_within_its_line(text: str) -> None:
    data = encode_event(event(wish=text), 0)
    assert data.count(b"\n") == 1
    assert all(32 <= byte < 127 for byte in data[:-1])
    assert json.loads(data)["wish"] == text


def test_half_a_character_is_written_so_that_strict_readers_take_the_line() -> None:
    """As Python's own reader does not show: it takes half of a surrogate pair."""
    half = "model: demo:\ud83d"
    texts = [part.name for part in fields(AuditEvent) if part.name not in ("status", "details")]
    data = encode_event(event(details={"of": half}, **dict.fromkeys(texts, half)), 0)
    line = json.loads(data.decode("ascii"))
    assert {line[name] for name in (*texts, "of")} == {"model: demo:\\ud83d"}


@pytest.mark.parametrize("character", ["x", "\ud83d"])
def test_a_long_text_is_cut(character: str) -> None:
    wish = json.loads(encode_event(event(wish=character * 100_000), 0))["wish"]
    assert wish == (character.encode("utf-8", "backslashreplace").decode() * MAX_TEXT)[: MAX_TEXT - 1] + "…"


def test_the_file_is_nobody_elses_and_is_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    for number in range(2):
        with FileAudit(path, lambda *_: None) as audit:
            audit.record(event(number))
    assert [line["status"] for line in lines(path)] == [0, 1]
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_that_is_renamed_away_is_followed_by_a_new_one(log: FileAudit, tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log.record(event(1))
    wait_until(lambda: lines(path))
    path.rename(tmp_path / "audit.1")
    log.record(event(2))
    wait_until(lambda: path.exists() and lines(path))
    assert [line["status"] for line in lines(tmp_path / "audit.1")] == [1]
    assert [line["status"] for line in lines(path)] == [2]


def test_sighup_opens_the_path_anew(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    before = signal.getsignal(signal.SIGHUP)
    with open_audit(path, lambda *_: None) as audit:
        os.kill(os.getpid(), signal.SIGHUP)
        audit.record(event(7))
        wait_until(lambda: lines(path))
    assert signal.getsignal(signal.SIGHUP) == before


class Stalled(FileAudit):
    """Its writer stands still until it may go."""

    may_go = threading.Event()

    def _write_forever(self) -> None:
        self.may_go.wait(30)
        super()._write_forever()


def test_a_full_queue_drops_what_was_merely_allowed_first_and_says_so(
    tmp_path: Path, drops: Counter[str]
) -> None:
    path = tmp_path / "audit.jsonl"
    audit = Stalled(path, lambda reason, n: drops.update({reason: n}), max_waiting=8)
    audit.may_go = threading.Event()
    with audit:
        for number in range(10):
            audit.record(event(number, decision="allowed"))
        audit.record(event(100))
        assert drops == {"queue_full": 4}
        for number in range(101, 110):
            audit.record(event(number))
        audit.may_go.set()
    found = lines(path)
    assert found[0] == found[0] | {"event": "audit.dropped", "decision": "failed", "num_events": 12}
    assert [line["status"] for line in found[1:]] == [0, 1, 2, 3, 4, 5, 100, 101]
    assert drops == {"queue_full": 12}


def test_a_disk_that_is_full_costs_counted_events_and_no_broken_line(
    tmp_path: Path, drops: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "audit.jsonl"
    write, is_full = os.write, threading.Event()

    def write_some(file: int, data: bytes) -> int:
        if not is_full.is_set():
            return write(file, data)
        if len(data) > 10:
            return write(file, data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("server.audit.os.write", write_some)
    with FileAudit(path, lambda reason, n: drops.update({reason: n})) as audit:
        is_full.set()
        audit.record(event(1))
        wait_until(lambda: drops["write_failed"] == 1)
        is_full.clear()
        audit.record(event(2))
        wait_until(lambda: '"status":2' in path.read_text())
    torn, gap, last = path.read_text("ascii").splitlines()
    assert torn.startswith('{"time"')
    assert json.loads(gap)["num_events"] == 1
    assert json.loads(last)["status"] == 2


@pytest.mark.parametrize("name", ["missing/audit.jsonl", "."])
def test_a_log_that_cannot_be_opened_is_an_error_at_start(tmp_path: Path, name: str) -> None:
    with (
        pytest.raises(AuditLogError, match=r"--audit-log: .* can't be opened"),
        open_audit(tmp_path / name, lambda *_: None),
    ):
        pass


def test_a_pipe_that_nobody_reads_is_an_error_and_no_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="No such device"), FileAudit(tmp_path / "pipe", lambda *_: None):
        pass


def test_without_a_file_nothing_is_kept() -> None:
    with open_audit(None, lambda *_: None) as audit:
        assert isinstance(audit, NullAudit)
        audit.record(event())


def test_dropped_events_are_a_metric() -> None:
    registry = CollectorRegistry()
    metrics = PatchMetrics(registry).control
    metrics.audit_dropped("queue_full", 3)
    values = {
        reason: registry.get_sample_value("policy_patch_audit_dropped_total", {"reason": reason})
        for reason in DROP_REASONS
    }
    assert values == {"queue_full": 3.0, "write_failed": 0.0}


class MemoryAudit:
    """Keeps events for a test to read."""

    def __init__(self) -> None:
        self.events: list[AuditEvent] = []

    def record(self, event: AuditEvent) -> None:
        self.events.append(event)


@pytest.fixture
def events(stand: Stand) -> list[AuditEvent]:
    audit: Audit = MemoryAudit()
    stand.decider.audit = audit
    assert isinstance(audit, MemoryAudit)
    return audit.events


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_request_is_recorded_once_with_what_it_asked_for_and_got(
    stand: Stand, events: list[AuditEvent], is_stream: bool
) -> None:
    patch = await stand.load()
    await stand.chat("pirate", stream=is_stream, model="demo:pirate")
    (recorded,) = events
    assert (recorded.event, recorded.decision, recorded.status) == ("request", "allowed", 200)
    assert recorded.route == "POST /v1/chat/completions"
    assert recorded.wish == "X-Policy-Patch: pirate\nmodel: demo:pirate"
    assert (recorded.patch, recorded.digest) == ("pirate@1.0.0", patch.digest)
    assert recorded.request_id


async def test_a_defaulted_request_is_recorded_as_such(stand: Stand, events: list[AuditEvent]) -> None:
    await stand.load()
    await stand.chat()
    stand.use(default_patch="pirate")
    await stand.chat()
    assert [(e.decision, e.patch) for e in events] == [("defaulted", None), ("defaulted", "pirate@1.0.0")]


@pytest.mark.parametrize(
    ("header", "body", "code"),
    [
        ("unknown", {}, "patch_not_found"),
        ("Bad Name", {}, "malformed_patch_name"),
        ("none", {}, "patch_forbidden"),
        (None, {"model": "demo:none"}, "patch_forbidden"),
        (None, {"model": "demo:Bad"}, "malformed_patch_name"),
        (None, {"model": "demo:unknown", "stream": True}, "patch_not_found"),
    ],
)
async def test_a_denied_request_is_recorded_once_with_its_reason(
    stand: Stand, events: list[AuditEvent], header: str | None, body: dict[str, Any], code: str
) -> None:
    stand.use(require_patch=True)
    response = await stand.chat(header, **body)
    (recorded,) = events
    assert (recorded.decision, recorded.code, recorded.status) == ("denied", code, response.status_code)
    assert recorded.reason == response.json()["error"]["message"]
    assert (header or body["model"]) in (recorded.wish or "")


async def test_the_callers_request_id_is_kept(stand: Stand, events: list[AuditEvent]) -> None:
    await stand.client.post("/v1/chat/completions", headers={"X-Request-Id": "abc"}, json={})
    assert events[0].request_id == "abc"


async def test_prompts_and_keys_are_never_recorded(stand: Stand, events: list[AuditEvent]) -> None:
    await stand.load()
    for header in (None, "pirate", "unknown"):
        headers = {"Authorization": "Bearer secret-key"} | ({"X-Policy-Patch": header} if header else {})
        body = {"messages": [{"role": "user", "content": "secret-prompt"}]}
        await stand.client.post("/v1/chat/completions?q=secret-query", headers=headers, json=body)
    assert len(events) == 3
    assert b"secret" not in b"".join(encode_event(e, 0) for e in events)
