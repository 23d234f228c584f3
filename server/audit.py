"""The audit log: who asked for which patch, what was decided and by which rule. One JSON object per line.

It never holds prompt text or key material: an event has no field for them, and what a caller can write (a
wish, a tenant, a request id) is cut to ``MAX_TEXT`` characters. ``record`` takes no lock that is held during
I/O, so the event loop may call it; a thread does the writing. Where that thread can't keep up or the disk is
full, events are dropped, counted and named in a later line: requests are never held up by their own record.
"""

import contextlib
import json
import logging
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Literal, Protocol

logger = logging.getLogger(__name__)

#: ``allowed``: the caller got what it named. ``defaulted``: it named nothing, and the policy chose.
#: ``denied``: refused. ``done`` and ``failed``: how a change of the server itself ended.
AuditDecision = Literal["allowed", "not_run", "defaulted", "denied", "done", "failed"]

#: Why an event is not in the log: the label values of ``policy_patch_audit_dropped_total``.
DROP_REASONS = ("queue_full", "write_failed")

#: Longest text of one field; longer ones end in an ellipsis.
MAX_TEXT = 256

#: Events that wait for the writer. The last quarter is kept for those that are not merely ``allowed``.
MAX_WAITING = 16_384

_MAX_BATCH = 512
_CHECK_S = 1.0
_STOP_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEvent:
    """One line. Fields that are ``None`` are left out of it."""

    #: ``request``, or what was done to the server: ``admin.activate``, ``policy.reload``.
    event: str
    decision: AuditDecision
    request_id: str | None = None
    #: Name of the caller's key; never the key.
    principal: str | None = None
    tenant: str | None = None
    #: Method and path, without the query.
    route: str | None = None
    #: What was asked for, as it was sent.
    wish: str | None = None
    #: Which rule of the policy decided, such as ``keys.research.allow``.
    rule: str | None = None
    reason: str | None = None
    #: ``name@version`` and digest of the patch that answered, or that was changed.
    patch: str | None = None
    digest: str | None = None
    status: int | None = None
    #: ``code`` of the error that was answered.
    code: str | None = None
    #: What only this kind of event has, such as the share of a canary.
    details: Mapping[str, str | int | float | bool | None] = field(
        default_factory=lambda: MappingProxyType({})
    )


class AuditLogError(Exception):
    """The audit log can't be used at start-up."""


class Audit(Protocol):
    """Where events go."""

    def record(self, event: AuditEvent) -> None:
        """Record one event. Any thread; never blocks, never raises."""


class NullAudit:
    """Keeps nothing: what serves where no ``--audit-log`` is given."""

    def record(self, event: AuditEvent) -> None:
        """Forget ``event``."""


class FileAudit:
    """Appends to one file; a context manager whose end writes what is waiting.

    The file is reopened where ``reopen`` was called (SIGHUP) or where the path has come to mean another
    file, so both ways of log rotation work without a lost line.
    """

    def __init__(
        self, path: Path, dropped: Callable[[str, int], None], *, max_waiting: int = MAX_WAITING
    ) -> None:
        """Make a log that is not open yet.

        Args:
            path: File to append to; made with mode 0600 where it is missing.
            dropped: Called with a reason and a number of events, on any thread.
            max_waiting: Events that may wait for the writer.
        """
        self._path = path
        self._dropped = dropped
        self._waiting: queue.Queue[tuple[float, AuditEvent] | None] = queue.Queue(max_waiting)
        self._allowed_limit = max_waiting - max_waiting // 4
        self._num_lost = 0
        self._is_stale = False
        self._file: int | None = None
        #: The last write ended within a line.
        self._is_torn = False
        self._is_failing = False
        self._writer = threading.Thread(target=self._write_forever, name="audit-log", daemon=True)

    def __enter__(self) -> "FileAudit":
        """Open the file and begin to write.

        Raises:
            OSError: The file can't be opened.
        """
        self._file = _open(self._path)
        self._writer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._waiting.put(None, timeout=_STOP_S)
            self._writer.join(_STOP_S)
        except queue.Full:
            logger.error("audit log %s: the writer hangs; waiting events are lost", self._path)

    def record(self, event: AuditEvent) -> None:
        """Queue one event for the writer."""
        is_full = event.decision == "allowed" and self._waiting.qsize() >= self._allowed_limit
        try:
            if is_full:
                raise queue.Full
            self._waiting.put_nowait((time.time(), event))
        except queue.Full:
            self._lose(1, "queue_full")

    def reopen(self) -> None:
        """Reopen the path before the next write; for SIGHUP."""
        # No lock: a signal handler calls this.
        self._is_stale = True

    def _lose(self, num_events: int, reason: str) -> None:
        # Racing threads may lose count by a few here; the metric is exact.
        self._num_lost += num_events
        self._dropped(reason, num_events)

    def _write_forever(self) -> None:
        is_open = True
        while is_open:
            batch = self._next_batch()
            is_open = None not in batch
            events = [entry for entry in batch if entry is not None]
            try:
                self._renew_file()
                if events:
                    self._write(events)
            except Exception as error:
                # The thread has to survive: a disk that is full today has room tomorrow.
                self._note_failure(error, len(events))
        if self._file is not None:
            os.close(self._file)

    def _next_batch(self) -> list[tuple[float, AuditEvent] | None]:
        batch: list[tuple[float, AuditEvent] | None] = []
        with contextlib.suppress(queue.Empty):
            batch.append(self._waiting.get(timeout=_CHECK_S))
            while len(batch) < _MAX_BATCH:
                batch.append(self._waiting.get_nowait())
        return batch

    def _write(self, events: Sequence[tuple[float, AuditEvent]]) -> None:
        assert self._file is not None
        lines = [encode_event(event, time_s) for time_s, event in events]
        num_lost, self._num_lost = self._num_lost, 0
        if num_lost:
            lost = AuditEvent(event="audit.dropped", decision="failed", details={"num_events": num_lost})
            lines.insert(0, encode_event(lost, time.time()))
        data = (b"\n" if self._is_torn else b"") + b"".join(lines)
        try:
            _write_all(self._file, data)
        except OSError:
            self._num_lost += num_lost
            self._is_torn = True
            raise
        self._is_torn = False
        if self._is_failing:
            self._is_failing = False
            logger.warning("audit log %s can be written again", self._path)

    def _renew_file(self) -> None:
        is_stale, self._is_stale = self._is_stale, False
        if self._file is not None and not is_stale and not _is_moved(self._path, self._file):
            return
        fresh = _open(self._path)
        if self._file is not None:
            os.close(self._file)
        self._file, self._is_torn = fresh, False

    def _note_failure(self, error: Exception, num_events: int) -> None:
        if num_events:
            self._lose(num_events, "write_failed")
        if not self._is_failing:
            self._is_failing = True
            logger.error("audit log %s can't be written, events are lost: %s", self._path, error)


@contextlib.contextmanager
def open_audit(path: Path | None, dropped: Callable[[str, int], None]) -> Iterator[Audit]:
    """Open the log that ``--audit-log`` names, and let SIGHUP reopen it. Main thread only.

    Args:
        path: The file; ``None`` for no log.
        dropped: As ``FileAudit`` calls it.

    Raises:
        AuditLogError: The file can't be opened.
    """
    if path is None:
        yield NullAudit()
        return
    log = FileAudit(path, dropped)
    try:
        log.__enter__()
    except OSError as error:
        raise AuditLogError(f"--audit-log: {path} can't be opened: {error.strerror}") from error
    before = signal.signal(signal.SIGHUP, lambda *_: log.reopen())
    try:
        yield log
    finally:
        signal.signal(signal.SIGHUP, before)
        log.__exit__(None, None, None)


def encode_event(event: AuditEvent, time_s: float) -> bytes:
    """Return the line of ``event``: ASCII JSON, so that nothing in it can break a line or move a terminal."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(time_s))
    line: dict[str, object] = {"time": f"{stamp}.{int(time_s % 1 * 1000):03d}Z"}
    for part in fields(event):
        value = getattr(event, part.name)
        if part.name != "details" and value is not None:
            line[part.name] = _bounded(value)
    line.update((key, _bounded(value)) for key, value in event.details.items() if key not in line)
    return json.dumps(line, separators=(",", ":")).encode("ascii") + b"\n"


def _bounded(value: object) -> object:
    if not isinstance(value, str):
        return value
    # Half of a surrogate pair is no text, and a strict reader would refuse the whole line for it.
    text = value[: MAX_TEXT + 1].encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


def _open(path: Path) -> int:
    # Not blocking, so that a pipe without a reader is an error and not a hang.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
    file = os.open(path, flags, 0o600)
    os.set_blocking(file, True)
    return file


def _is_moved(path: Path, file: int) -> bool:
    try:
        return not os.path.samestat(os.stat(path), os.fstat(file))
    except FileNotFoundError:
        return True


def _write_all(file: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(file, rest) :]
