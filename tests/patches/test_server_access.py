"""Addresses and keys of servers: checked before anything is sent, and no key is ever printed."""

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from patches.errors import SubjectFailed
from patches.evaluate.subjects.remote import connect
from server.cli import main
from server.commands.errors import CommandError
from server.commands.server_access import clean_key, key_of_file, key_of_variable, server_url

SECRET = "correct-horse-battery-staple"


@dataclass
class Seen:
    """A server that answers what it is told to, and remembers what it was sent."""

    url: str = ""
    headers: list[dict[str, str]] = field(default_factory=list)
    status: int = 200
    body: bytes = b'{"object": "list", "data": [], "failures": []}'
    location: str = ""


@pytest.fixture
def seen() -> Iterator[Seen]:
    seen = Seen()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.headers.append(dict(self.headers))
            self.send_response(seen.status)
            if seen.location:
                self.send_header("Location", seen.location)
            self.send_header("Content-Length", str(len(seen.body)))
            self.end_headers()
            self.wfile.write(seen.body)

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        seen.url = f"http://127.0.0.1:{server.server_port}"
        yield seen
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("around", ["\r", "\r\n", " ", "\t", "\ufeff"])
def test_what_editors_leave_around_a_key_is_no_part_of_it(around: str) -> None:
    assert clean_key(f"\ufeff{SECRET}{around}", "--key") == SECRET


@pytest.mark.parametrize("bad", [f"\u201c{SECRET}\u201d", f"{SECRET}\rx", f"{SECRET}\x00y", f"{SECRET}ü"])
def test_a_key_that_no_header_takes_is_refused_without_being_shown(bad: str) -> None:
    with pytest.raises(CommandError, match=r"^--key: expected a key of printable ASCII") as caught:
        clean_key(bad, "--key")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("variable", ["POLICYPATCH_ADMIN_KEY", "POLICYPATCH_API_KEY"])
def test_a_key_with_a_carriage_return_is_sent_without_it(
    variable: str, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, f"{SECRET}\r")
    assert main(["patches", "list", "--url", seen.url]) == 0
    sent = [value.removeprefix("Bearer ") for value in seen.headers[0].values()]
    assert sent.count(SECRET) == 1


@pytest.mark.parametrize("variable", ["POLICYPATCH_ADMIN_KEY", "POLICYPATCH_API_KEY"])
def test_a_curly_quote_in_a_key_is_a_mistake_in_one_line(
    variable: str, seen: Seen, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(variable, f"\u201c{SECRET}\u201d")
    assert main(["patches", "list", "--url", seen.url]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"policypatch patches: ${variable}: expected a key of printable ASCII")
    assert SECRET not in error
    assert not seen.headers


def test_a_key_of_another_service_is_not_sent(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    assert main(["patches", "list", "--url", seen.url]) == 0
    assert SECRET not in json.dumps(seen.headers)


def test_a_key_of_another_service_is_sent_where_it_is_named(
    seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    assert main(["patches", "list", "--url", seen.url, "--api-key-env", "OPENAI_API_KEY"]) == 0
    assert seen.headers[0]["Authorization"] == f"Bearer {SECRET}"


def test_a_key_does_not_follow_a_redirect(seen: Seen) -> None:
    seen.status, seen.location = 302, f"{seen.url}/elsewhere"
    with pytest.raises(SubjectFailed):
        connect(seen.url, api_key=SECRET)
    first, second, *_ = seen.headers
    assert first["Authorization"] == f"Bearer {SECRET}"
    assert "Authorization" not in second


@pytest.mark.parametrize("command", ["pairs", "eval"])
def test_every_command_that_asks_a_server_checks_its_key(
    command: str,
    seen: Seen,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bad = f"\u201c{SECRET}\u201d"
    monkeypatch.setenv("POLICYPATCH_API_KEY", bad)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Hello?\n")
    words = {
        "pairs": ["--reference-column", "c", "--prompts", str(prompts), "-o", "out.jsonl", "--api-key", bad],
        "eval": ["--model", str(tmp_path), "--patch", "pirate", "-o", str(tmp_path / "out")],
    }[command]
    assert main([command, "--url", seen.url, *words]) == 2
    error = capsys.readouterr().err
    assert "expected a key of printable ASCII" in error
    assert SECRET not in error
    assert not seen.headers


def test_keys_are_read_from_files_of_other_systems(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"\xef\xbb\xbf" + SECRET.encode() + b"\r\nnot this\r\n")
    assert key_of_file(path, "--key-file") == SECRET
    path.write_bytes(b"\r\n")
    with pytest.raises(CommandError, match="expected a key, got nothing"):
        key_of_file(path, "--key-file")


def test_a_variable_that_is_empty_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "\r\n")
    assert key_of_variable("SOME_KEY") is None


@pytest.mark.parametrize(
    "given", ["http://h:8000", "http://h:8000/", "http://h:8000/v1", "http://h:8000/v1/"]
)
def test_an_address_may_end_as_that_of_a_client(given: str) -> None:
    assert server_url(given, "--url") == "http://h:8000"
    assert server_url("https://gateway/llm/v1", "--url") == "https://gateway/llm"


@pytest.mark.parametrize(
    "given",
    [
        "h:8000",
        "localhost:8111",
        "ftp://h",
        "http://",
        "http://h:x",
        f"http://a:{SECRET}@h",
        "http://h?q",
        "http://[::1%lo]:8000",
    ],
)
def test_what_is_no_address_is_refused_and_shows_no_password(given: str) -> None:
    with pytest.raises(CommandError, match=r"^--url: expected ") as caught:
        server_url(given, "--url")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "body", "advice"),
    [
        (404, b'{"detail": "Not Found"}', "give the address of a policypatch server"),
        (401, b'{"error": "Unauthorized"}', "name the variable that holds it with --api-key-env"),
        (200, b"<html>", "is another program there?"),
    ],
)
def test_another_program_at_the_address_is_a_mistake_that_says_what_to_do(
    status: int, body: bytes, advice: str, seen: Seen, capsys: pytest.CaptureFixture[str]
) -> None:
    seen.status, seen.body = status, body
    assert main(["patches", "list", "--url", seen.url]) == 2
    assert advice in capsys.readouterr().err
