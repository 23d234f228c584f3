"""Real servers for the end-to-end tests: `policypatch serve` as a process, spoken to over HTTP only.

Starting one takes half a minute, so modules share what they can: `shared_server` runs the demo model in
float32, and each test puts patches of its own name into the server's folder.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from patches.compile import compile_patch, compile_text, compile_token_ids
from patches.format import Patch, encode_patch
from patches.label import Label
from patches.model import LoadedModel, load_model

#: More than a quiet machine needs, and a busy one may need more.
START_TIMEOUT_S = float(os.environ.get("POLICYPATCH_START_TIMEOUT_S", "300"))
SERVED_NAME = "base"


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

    def __init__(self, model: Path, patches: Path, log: Path, flags: list[str], env: dict[str, str]) -> None:
        self.model = model
        self.patches = patches
        self.log = log
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        # A connection for each request: one that was idle may be closed just as the next request is sent.
        self.client = self.new_client()
        command = [sys.executable, "-m", "server", "serve", "--model", str(model), "--patches", str(patches)]
        command += [
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--served-model-name",
            SERVED_NAME,
            *flags,
        ]
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                command,
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=os.environ | env,
                start_new_session=True,
            )

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
        staged.write_bytes(encode_patch(manifest, patch.embeddings, patch.kv))
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


StartServer = Callable[..., RunningServer]


def _starter(root: Path, stack: contextlib.ExitStack) -> StartServer:
    def start(
        model: Path, *flags: str, env: dict[str, str] | None = None, patches: Path | None = None
    ) -> RunningServer:
        number = len(list(root.iterdir()))
        folder = patches or root / f"patches-{number}"
        folder.mkdir(exist_ok=True)
        server = RunningServer(model, folder, root / f"server-{number}.log", list(flags), env or {})
        stack.callback(server.terminate)
        return server

    return start


@pytest.fixture(scope="session")
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartServer]:
    """Start servers that live to the end of the session; `wait_ready` is the caller's."""
    with contextlib.ExitStack() as stack:
        yield _starter(tmp_path_factory.mktemp("servers"), stack)


@pytest.fixture(scope="module")
def start_module_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartServer]:
    """Start servers that end with the test module."""
    with contextlib.ExitStack() as stack:
        yield _starter(tmp_path_factory.mktemp("servers"), stack)


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread() -> Iterator[None]:
    """On a machine of few cores, threads here and in the servers would wait for each other: 8x slower."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The demo model; `make test` makes it and names its folder."""
    folder = os.environ.get("POLICYPATCH_DEMO_MODEL")
    if folder is None:
        pytest.fail(
            "POLICYPATCH_DEMO_MODEL: name the folder that `policypatch demo-model` made, or use make test"
        )
    return Path(folder)


@pytest.fixture(scope="session")
def shared_server(start_server: StartServer, demo_model: Path) -> RunningServer:
    """The demo model in float32, with an empty patch folder."""
    # vLLM wants a parser even for a tool that the request names.
    tools = ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
    server = start_server(demo_model, "--dtype", "float32", "--max-model-len", "2048", *tools)
    server.wait_ready()
    return server


@pytest.fixture(scope="session")
def demo_fp32(demo_model: Path) -> LoadedModel:
    """The demo model in transformers, float32."""
    return load_model(demo_model, dtype="float32")


class Generate:
    """Greedy generation by transformers, or by PEFT: the reference that servers are held to."""

    def __call__(
        self, network: Any, prompts: Sequence[Sequence[int]], num_tokens: int, **options: Any
    ) -> list[Answer]:
        """Answer prompts of one length; `inputs_embeds` in `options` takes their place."""
        ids = torch.tensor([list(prompt) for prompt in prompts])
        inputs = options if "inputs_embeds" in options else {"input_ids": ids, **options}
        output = network.generate(
            attention_mask=torch.ones(inputs.get("inputs_embeds", ids).shape[:2], dtype=torch.long),
            max_new_tokens=num_tokens,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
            **inputs,
        )
        logprobs = torch.log_softmax(torch.stack(output.logits, dim=1).float(), dim=-1)
        new_ids = output.sequences[:, -logprobs.shape[1] :].tolist()
        end_id = network.generation_config.eos_token_id
        return [self._answer(*row, end_id) for row in zip(new_ids, logprobs, strict=True)]

    @staticmethod
    def _answer(token_ids: list[int], logprobs: torch.Tensor, end_id: int) -> Answer:
        # Answers that end early are padded to the longest of the batch.
        stop = token_ids.index(end_id) + 1 if end_id in token_ids else len(token_ids)
        likeliest = [{int(i): float(step[i]) for i in step.topk(20).indices} for step in logprobs[:stop]]
        return Answer(token_ids[:stop], likeliest)


@pytest.fixture(scope="session")
def generate() -> Generate:
    """Generation by transformers."""
    return Generate()


class PatchMaker:
    """Makes patches for one model, in memory."""

    def __init__(self, model: LoadedModel) -> None:
        self.model = model

    def of_text(self, name: str, text: str, version: str = "1.0.0", **options: Any) -> Patch:
        """Compile policy text."""
        return compile_text(self.model, text, Label(name, version), **options)

    def of_token_ids(self, name: str, token_ids: list[int], version: str = "1.0.0") -> Patch:
        """Compile exactly these ids."""
        return compile_token_ids(self.model, token_ids, Label(name, version))

    def of_random_embeddings(
        self, name: str, num_tokens: int, seed: int = 0, version: str = "1.0.0"
    ) -> Patch:
        """Make a patch of random embeddings, as large as the model's own."""
        weight = self.model.network.get_input_embeddings().weight
        generator = torch.Generator().manual_seed(seed)
        embeddings = torch.randn(num_tokens, weight.shape[1], generator=generator) * weight.std()
        return compile_patch(
            self.model, embeddings.to(weight.dtype), Label(name, version), {"method": "trained"}
        )


@pytest.fixture(scope="session")
def demo_patches(demo_fp32: LoadedModel) -> PatchMaker:
    """Patches for the shared server."""
    return PatchMaker(demo_fp32)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, demo_model: Path) -> Path:
    """A random two-layer Llama in float32 with grouped-query attention and the demo model's tokenizer.

    Steps take a millisecond, so tests that need many of them, or servers of their own, use this one.
    """
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny-model")
    tokenizer = AutoTokenizer.from_pretrained(demo_model)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        # Wide enough that random attention tells prompts apart.
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).float().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_patches(tiny_model: Path) -> PatchMaker:
    """Patches for servers of the tiny model."""
    return PatchMaker(load_model(tiny_model, dtype="float32"))
