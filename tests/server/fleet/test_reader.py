"""Reading a catalog over HTTP: every kind of bad store has its reason, and none of it takes for ever."""

import functools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from server.fleet import reader
from server.fleet.document import moment_of
from server.fleet.publisher import Publisher
from server.fleet.reader import CatalogReader, SyncFailed
from tests.server.fleet.conftest import Fleet

Answer = Callable[[BaseHTTPRequestHandler], None]


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, answer: Answer, *args: object) -> None:
        self._answer = answer
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        self._answer(self)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def store() -> Iterator[Callable[[Answer], str]]:
    servers = []

    def start(answer: Answer) -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, answer))
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def _page(self: BaseHTTPRequestHandler) -> None:
    self.send_response(200)
    self.end_headers()
    self.wfile.write(b"<html>down for maintenance</html>")


def _forbidden(self: BaseHTTPRequestHandler) -> None:
    self.send_error(403)


def _elsewhere(self: BaseHTTPRequestHandler) -> None:
    self.send_response(302)
    self.send_header("Location", "http://169.254.169.254/latest/")
    self.end_headers()


def _cut(self: BaseHTTPRequestHandler) -> None:
    self.send_response(200)
    self.send_header("Content-Length", "1000")
    self.end_headers()
    self.wfile.write(b"{")
    self.wfile.flush()
    self.connection.shutdown(socket.SHUT_RDWR)


def _slow(self: BaseHTTPRequestHandler) -> None:
    self.send_response(200)
    self.end_headers()
    for _ in range(40):
        self.wfile.write(b" ")
        self.wfile.flush()
        time.sleep(0.02)


def _endless(self: BaseHTTPRequestHandler) -> None:
    self.send_response(200)
    self.end_headers()
    for _ in range(1000):
        self.wfile.write(b" " * 100_000)


@pytest.mark.parametrize(
    ("answer", "reasons"),
    [
        # A root that can't be read is one that can't be rotated to, so that nothing is trusted.
        (_page, {"malformed"}),
        (_forbidden, {"http_error"}),
        (_elsewhere, {"http_error"}),
        (_cut, {"unreachable"}),
        (_slow, {"slow"}),
        (_endless, {"too_long"}),
    ],
)
def test_a_bad_store_has_a_reason(
    fleet: Fleet,
    store: Callable[[Answer], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    answer: Answer,
    reasons: set[str],
) -> None:
    monkeypatch.setattr(reader, "WHOLE_S", 0.2)
    with pytest.raises(SyncFailed) as failure:
        CatalogReader(store(answer), fleet.folder.root, tmp_path / "copy").hear()
    assert failure.value.reason in reasons


def test_a_store_that_is_not_there_is_unreachable(fleet: Fleet, tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(SyncFailed) as failure:
            CatalogReader(address, fleet.folder.root, tmp_path / "copy").hear()
    assert failure.value.reason == "unreachable"


def test_a_lease_that_ran_out_is_no_news(fleet: Fleet, url: str, tmp_path: Path) -> None:
    fleet.publish(tone="1.0.0")
    from datetime import UTC, datetime, timedelta

    Publisher(fleet.folder, fleet.store, now=lambda: datetime.now(UTC) - timedelta(hours=1)).stamp()
    with pytest.raises(SyncFailed) as failure:
        CatalogReader(url, fleet.folder.root, tmp_path / "copy").hear()
    assert failure.value.reason == "expired"


def test_a_clock_that_is_behind_what_was_published_makes_no_lease_longer(
    fleet: Fleet, url: str, tmp_path: Path
) -> None:
    fleet.at_s = time.time() + 3600
    fleet.publish(tone="1.0.0")
    with pytest.raises(SyncFailed) as failure:
        CatalogReader(url, fleet.folder.root, tmp_path / "copy").hear()
    assert failure.value.reason == "clock"


def test_a_number_that_the_signature_does_not_have_is_refused(fleet: Fleet, url: str, tmp_path: Path) -> None:
    fleet.publish(tone="1.0.0")
    publisher = fleet.publisher()
    before = publisher.read()
    assert before.document is not None

    class Lying(Publisher):
        def _write_targets(self, document, files):  # type: ignore[no-untyped-def]
            import server.fleet.publisher as module

            honest = module.write_document
            module.write_document = lambda d: honest(before.document)  # type: ignore[arg-type]
            try:
                return super()._write_targets(document, files)
            finally:
                module.write_document = honest

    from dataclasses import replace

    Lying(fleet.folder, fleet.store).publish(before, replace(before.document, revision=2), {})
    with pytest.raises(SyncFailed, match="is signed as 2"):
        CatalogReader(url, fleet.folder.root, tmp_path / "copy").hear()


def test_a_stamp_is_heard_and_remembered_with_its_document(fleet: Fleet, url: str, tmp_path: Path) -> None:
    fleet.publish(tone="1.0.0")
    followed = CatalogReader(url, fleet.folder.root, tmp_path / "copy")
    first = followed.hear()
    assert followed.remembered() == reader.Heard(first.document, first.lease_ends_s, None)
    assert first.skew_s is not None
    time.sleep(1.0)
    fleet.publisher().stamp()
    assert followed.hear().lease_ends_s > first.lease_ends_s
    assert moment_of(first.lease_ends_s)


def test_a_folder_is_read_as_a_web_server_is(fleet: Fleet, tmp_path: Path) -> None:
    published = fleet.publish(tone="1.0.0")
    followed = CatalogReader(str(tmp_path / "store"), fleet.folder.root, tmp_path / "copy")
    assert followed.hear().document == published
    path = tmp_path / "tone"
    target = published.names["tone"].versions["1.0.0"].target
    assert followed.fetch(target, path)
    assert not followed.fetch(target, path)
    assert path.read_bytes() == b"tone 1.0.0"
    with pytest.raises(SyncFailed, match="not among its files"):
        followed.fetch("patches/other", path)
