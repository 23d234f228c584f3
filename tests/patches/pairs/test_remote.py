"""A server's answers are the base model's, or one patch's, and a run learns at once where they are not."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from patches.errors import PairsError
from patches.pairs.remote import RemoteSampler
from patches.sampling import Sampling

SAMPLING = Sampling(num_samples=1, temperature=0.0, top_p=1.0, max_tokens=4, seed=0)
HELLO = [[{"role": "user", "content": "hello"}]]


class PatchServer:
    """Answers as ``serve --default-patch pirate`` does: by header, else by alias, else by the default."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.digest = "sha256:one"
        self.default: str | None = "pirate"
        self.may_opt_out = True

    def answer(self, header: str | None, model: str) -> tuple[int, str | None]:
        """Return status and the patch that answers."""
        if header == "none":
            return (200, None) if self.may_opt_out else (403, None)
        return 200, model.partition(":")[2] or header or self.default


@pytest.fixture
def server() -> Iterator[PatchServer]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            cards = [
                {"id": "tiny:pirate", "parent": "tiny"},
                {"id": "tiny"},
                {"id": "llama:8b", "parent": None},
            ]
            self.reply(200, {"data": cards})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, patch = serving.answer(self.headers.get("X-Policy-Patch"), body["model"])
            choice = {"message": {"content": patch or "base"}, "finish_reason": "stop"}
            named = {} if patch is None else {"X-Policy-Patch-Digest": serving.digest}
            self.reply(status, {"choices": [choice] * body["n"]}, named)

        def reply(self, status: int, document: Any, headers: dict[str, str] | None = None) -> None:
            content = json.dumps(document).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        serving = PatchServer(http.server_address[1])
        Thread(target=http.serve_forever, daemon=True).start()
        yield serving
        http.shutdown()


def text_of(sampler: RemoteSampler) -> str:
    ((answer,),) = sampler.sample(HELLO, "0")
    return answer.text


def test_the_base_is_asked_for_whatever_patch_the_server_puts_in_front(server: PatchServer) -> None:
    sampler = RemoteSampler(server.url, SAMPLING)
    assert (sampler.model, text_of(sampler)) == ("tiny", "base")
    assert text_of(RemoteSampler(server.url, SAMPLING, model="llama:8b")) == "base"


def test_an_answer_under_a_patch_is_none_of_the_base(server: PatchServer) -> None:
    sampler = RemoteSampler(server.url, SAMPLING)
    server.answer = lambda header, model: (200, "pirate")  # type: ignore[method-assign]
    with pytest.raises(
        PairsError, match=r"expected every answer of tiny from one source \(none\).*sha256:one"
    ):
        text_of(sampler)


def test_a_server_that_refuses_the_base_ends_the_run(server: PatchServer) -> None:
    server.may_opt_out = False
    with pytest.raises(PairsError, match="answered 403"):
        text_of(RemoteSampler(server.url, SAMPLING))


def test_a_patch_is_no_base(server: PatchServer) -> None:
    with pytest.raises(PairsError, match="tiny:pirate names a patch; name the base model, tiny"):
        RemoteSampler(server.url, SAMPLING, model="tiny:pirate")


def test_a_reference_under_a_patch_is_held_to_one_content(server: PatchServer) -> None:
    sampler = RemoteSampler(server.url, SAMPLING, model="tiny:pirate", may_be_patched=True)
    assert text_of(sampler) == "pirate"
    server.digest = "sha256:two"
    with pytest.raises(PairsError, match=r"from one source \(sha256:one\).*from sha256:two"):
        text_of(sampler)


def test_a_reference_under_a_patch_is_never_the_base(server: PatchServer) -> None:
    sampler = RemoteSampler(server.url, SAMPLING, model="tiny:pirate", may_be_patched=True)
    server.answer = lambda header, model: (200, None)  # type: ignore[method-assign]
    with pytest.raises(PairsError, match="expected answers under tiny:pirate, got the base model's"):
        text_of(sampler)


def test_a_reference_that_names_no_patch_is_the_base_of_its_server(server: PatchServer) -> None:
    assert text_of(RemoteSampler(server.url, SAMPLING, model="tiny", may_be_patched=True)) == "base"
