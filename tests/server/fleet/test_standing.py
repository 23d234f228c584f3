"""``fleet status`` and ``fleet fence``: where servers stand, and when nothing older is served any more."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from server.cli import main
from server.commands import fleet_look
from tests.server.fleet.conftest import Fleet


@contextmanager
def server(revision: int | None, **parts: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Answer as a server at a revision does; the mapping can be changed meanwhile."""
    state = {"revision": revision, "heard": revision, "lease_seconds": 500.0, "problem": None} | parts

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_ready = state["revision"] == state["heard"]
            body = {"fleet": state if state["revision"] is not None else None}
            self.send_response(200 if self.path == "/v1/patches" or is_ready else 503)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{http.server_address[1]}", state
    http.shutdown()
    http.server_close()


def order(fleet: Fleet, action: str, *arguments: str) -> int:
    return main(["fleet", action, str(fleet.folder.folder), *arguments])


def test_status_says_where_each_server_stands(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    fleet.publish(tone="1.0.0")
    fleet.publish(tone="1.1.0")
    with server(2) as (a, _), server(1, heard=2, problem="file_refused: tone@1.1.0") as (b, lagging):
        assert order(fleet, "status", "--server", a, "--server", b) == 1
        printed = capsys.readouterr().out
        assert "revision 2 is in force on 1 of 2 servers" in printed
        assert f"{b}  revision 1, has heard of 2, lease ends in 500 s, not ready, file_refused" in printed
        lagging["revision"] = 2
        assert order(fleet, "status", "--server", a, "--server", b, "--json") == 0
        told = json.loads(capsys.readouterr().out)
    assert (told["published"], [one["revision"] for one in told["servers"]]) == (2, [2, 2])


def test_status_names_servers_that_do_not_answer_or_follow_nothing(
    fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet.publish(tone="1.0.0")
    with server(None) as (alone, _):
        assert order(fleet, "status", "--server", alone, "--server", "http://127.0.0.1:1") == 1
    printed = capsys.readouterr().out
    assert "follows no catalog" in printed
    assert "http://127.0.0.1:1      does not answer: [Errno 111]" in printed


def test_status_without_servers_is_a_mistake(fleet: Fleet) -> None:
    fleet.publish(tone="1.0.0")
    assert order(fleet, "status") == 2


def test_a_fence_holds_until_every_server_is_there(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    fleet.publish(tone="1.0.0")
    fleet.publish(tone="1.1.0")
    with server(2) as (a, _), server(1) as (b, lagging):
        assert order(fleet, "fence", "--server", a, "--server", b, "--timeout", "0") == 1
        assert f"not at revision 2 yet: {b}; " in capsys.readouterr().err
        results: list[int] = []
        waiting = threading.Thread(
            target=lambda: results.append(order(fleet, "fence", "--server", a, "--server", b))
        )
        waiting.start()
        time.sleep(0.2)
        assert not results
        lagging["revision"] = 2
        waiting.join(30)
    assert results == [0]
    assert "in force on all 2 servers" in capsys.readouterr().out


def test_a_fence_holds_until_the_lease_before_has_run_out(
    fleet: Fleet, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.publish(tone="1.0.0")
    fleet.publish(tone="1.1.0")
    ends_s = fleet.publisher().read().lease_ends_s
    assert ends_s is not None
    # A server that nobody can ask may have been stamped just before, by a clock that is behind.
    monkeypatch.setattr(fleet_look.time, "time", lambda: ends_s + fleet_look._SKEW_S - 1)
    assert order(fleet, "fence", "--server", "http://127.0.0.1:1", "--timeout", "0") == 1
    monkeypatch.setattr(fleet_look.time, "time", lambda: ends_s + fleet_look._SKEW_S + 1)
    assert order(fleet, "fence", "--server", "http://127.0.0.1:1") == 0
    assert order(fleet, "fence") == 0
    assert "every lease from before revision 2 has run out" in capsys.readouterr().out
