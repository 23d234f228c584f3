"""One server under test: `policypatch serve` as a process, spoken to over HTTP only."""

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from patches.format import Patch, encode_patch
from tests.e2e.preload import Preload, start_process

#: More than a quiet machine needs, and a busy one may need more.
START_TIMEOUT_S = float(os.environ.get("POLICYPATCH_START_TIMEOUT_S", "300"))
SERVED_NAME = "base"
#: Of an unread stream. With 150 tokens each, the answer takes 1 MB.
NUM_UNREAD_PROMPTS = 8
#: Between a server and a client that does not read, such a connection keeps 0.3 MB; else it would be 4 MB.
SMALL_BUFFERS = [(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1400), (socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)]


class ServerFailed(AssertionError):
    """The server did not start, or ended too early; shows the end of its log."""


@dataclass(frozen=True)
class Answer:
    """One completion, as far as answers are compared."""

    token_ids: list[int]
    #: For each token of the answer, the log probability of each of the likeliest ids, its own included.
    logprobs: list[dict[int, float]]
    text: str = ""
    #: As the server counted it.
    num_prompt_tokens: int = 0
    #: The response header; None where no patch answered.
    digest: str | None = None

    @classmethod
    def of_response(cls, response: httpx.Response) -> "Answer":
        """Read the answer to a request that `RunningServer.ask` made."""
        assert response.status_code == 200, response.text
        body = response.json()
        (choice,) = body["choices"]
        likeliest = choice["logprobs"]["top_logprobs"]
        return cls(
            choice["token_ids"],
            [{int(k.removeprefix("token_id:")): v for k, v in step.items()} for step in likeliest],
            choice["text"],
            body["usage"]["prompt_tokens"],
            response.headers.get("X-Policy-Patch-Digest"),
        )

    def logprob_gap(self, other: "Answer") -> float:
        """Return the largest difference in a log probability that both answers name."""
        assert self.token_ids == other.token_ids
        return max(
            abs(mine[token_id] - theirs[token_id])
            for mine, theirs in zip(self.logprobs, other.logprobs, strict=True)
            for token_id in mine.keys() & theirs.keys()
        )


class RunningServer:
    """One `policypatch serve` process and its patch folder."""

    def __init__(
        self,
        model: Path,
        patches: Path,
        log: Path,
        flags: list[str],
        env: dict[str, str],
        preload: Preload | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        self.model = model
        self.patches = patches
        self.log = log
        is_ipv6 = ":" in host
        with socket.socket(socket.AF_INET6 if is_ipv6 else socket.AF_INET) as probe:
            probe.bind((host, 0))
            self.port: int = probe.getsockname()[1]
        self.url = f"http://[{host}]:{self.port}" if is_ipv6 else f"http://{host}:{self.port}"
        # A connection for each request: one that was idle may be closed just as the next request is sent.
        self.client = self.new_client()
        arguments = ["serve", "--model", str(model), "--patches", str(patches), "--host", host]
        arguments += ["--port", str(self.port), "--served-model-name", SERVED_NAME, *flags]
        with log.open("wb") as out:
            command = ["server", *arguments]
            self.process = start_process(command, out, out, env=os.environ | env, preload=preload)

    def new_client(self) -> httpx.Client:
        """Return a client that the caller closes."""
        return httpx.Client(base_url=self.url, timeout=300, limits=httpx.Limits(max_keepalive_connections=0))

    def wait_ready(self) -> None:
        """Return once /health answers.

        Raises:
            ServerFailed: the process ended, or took too long.
        """
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise ServerFailed(f"server ended with {self.process.returncode}\n{self.log_tail()}")
            with contextlib.suppress(httpx.TransportError):
                if self.client.get("/health").status_code == 200:
                    return
            time.sleep(0.2)
        raise ServerFailed(f"server was not ready in {START_TIMEOUT_S} s\n{self.log_tail()}")

    def log_tail(self, num_bytes: int = 6000) -> str:
        """Return the end of the server's log."""
        return self.log.read_bytes()[-num_bytes:].decode(errors="replace")

    def terminate(self, timeout_s: float = 90.0) -> int:
        """Send SIGTERM and return the exit code; the whole process group is gone afterwards."""
        self.client.close()
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout_s)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def install(self, patch: Patch, *, wait: bool = True) -> Path:
        """Rename a patch file into the folder and, unless told otherwise, wait until it is served."""
        manifest = patch.manifest
        path = self.patches / f"{manifest.name}-{manifest.version}.safetensors"
        staged = self.patches / f".{path.name}.staged"
        staged.write_bytes(encode_patch(manifest, patch.tensors))
        staged.rename(path)
        if wait:
            self.wait_for_digest(manifest.name, patch.digest)
        return path

    def wait_for_digest(self, name: str, digest: str | None, timeout_s: float = 120.0) -> None:
        """Wait until the active version of a patch has this digest; None: until the name is gone."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            answer = self.client.get(f"/v1/patches/{name}")
            if digest is None and answer.status_code == 404:
                return
            if answer.status_code == 200:
                versions = answer.json()["versions"]
                if any(v["digest"] == digest and v["state"] == "active" for v in versions):
                    return
            time.sleep(0.05)
        listing = self.client.get("/v1/patches").text
        raise AssertionError(f"{name} did not become {digest} in {timeout_s} s: {listing}")

    def complete(
        self, prompt: Any, *, patch: str | None = None, headers: Mapping[str, str] | None = None, **body: Any
    ) -> httpx.Response:
        """POST /v1/completions, greedily; `prompt` is text or token ids."""
        payload = {"model": SERVED_NAME, "prompt": prompt, "temperature": 0, "max_tokens": 16} | body
        named = {} if patch is None else {"X-Policy-Patch": patch}
        return self.client.post("/v1/completions", json=payload, headers={**named, **(headers or {})})

    def ask(self, prompt: Any, *, patch: str | None = None, **body: Any) -> Answer:
        """Complete a prompt greedily, with token ids and log probabilities."""
        wanted = {"logprobs": 5, "return_token_ids": True, "return_tokens_as_token_ids": True}
        return Answer.of_response(self.complete(prompt, patch=patch, **wanted | body))

    def ask_together(self, requests: Sequence[Mapping[str, Any]], num_threads: int = 64) -> list[Answer]:
        """Ask many at once, so that they share batches; each request is the arguments of `ask`."""
        with ThreadPoolExecutor(num_threads) as pool:
            return list(pool.map(lambda request: self.ask(**request), requests))

    @contextlib.contextmanager
    def unread_stream(
        self, prompt: list[int], *, patch: str, num_tokens: int, client: httpx.Client | None = None
    ) -> Iterator[Iterator[str]]:
        """Begin an answer that does not end before the caller reads it.

        Each token comes with twenty log probabilities, for several prompts at once. That is more than the
        connection of an idle client keeps, so the server has to wait in the middle of its answer. A client
        that is given is one of `idle_client`.

        Yields:
            The lines of the stream that are not empty.
        """
        body = {"model": SERVED_NAME, "prompt": [prompt] * NUM_UNREAD_PROMPTS, "max_tokens": num_tokens}
        body |= {"ignore_eos": True, "stream": True, "logprobs": 20, "temperature": 1}
        with contextlib.ExitStack() as stack:
            client = client or stack.enter_context(self.idle_client())
            headers = {"X-Policy-Patch": patch}
            request = client.stream("POST", "/v1/completions", json=body, headers=headers)
            response = stack.enter_context(request)
            if response.status_code != 200:
                raise AssertionError(response.read().decode())
            yield (line for line in response.iter_lines() if line)

    def idle_client(self) -> httpx.Client:
        """Return a client, which the caller closes, whose connections keep little that was not read."""
        transport = httpx.HTTPTransport(socket_options=SMALL_BUFFERS)
        return httpx.Client(base_url=self.url, timeout=300, transport=transport)

    def chat(self, text: str, *, patch: str | None = None, **body: Any) -> httpx.Response:
        """POST /v1/chat/completions with one user message, greedily."""
        messages = [{"role": "user", "content": text}]
        payload = {"model": SERVED_NAME, "messages": messages, "temperature": 0, "max_tokens": 16} | body
        headers = {} if patch is None else {"X-Policy-Patch": patch}
        return self.client.post("/v1/chat/completions", json=payload, headers=headers)

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of a metric's samples that carry these labels; 0 where there is none."""
        total = 0.0
        for line in self.client.get("/metrics").text.splitlines():
            head, _, value = line.rpartition(" ")
            if head.partition("{")[0] == name and all(f'{k}="{v}"' in head for k, v in labels.items()):
                total += float(value)
        return total
