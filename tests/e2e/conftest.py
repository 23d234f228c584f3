"""Real servers for the end-to-end tests: `policypatch serve` as a process, spoken to over HTTP only.

They are forked from a process that has imported vLLM (`preload.py`), and files share them where they can
(`servers.py`). Each test puts patches of its own name into the folder of a shared server.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from patches.compile import compile_patch, compile_text, compile_token_ids
from patches.format import Patch
from patches.label import Label
from patches.model import LoadedModel, load_model
from tests.e2e.preload import Preload, can_preload
from tests.e2e.running_server import Answer, RunningServer
from tests.e2e.servers import problems
from tests.tiny_model import save_tiny_model

StartServer = Callable[..., RunningServer]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Hold the tests of this folder to what `servers.py` asks of them."""
    folder = Path(__file__).parent
    if found := problems(item for item in items if folder in item.path.parents):
        raise pytest.UsageError(*found)


def _starter(root: Path, stack: contextlib.ExitStack, preload: Preload | None) -> StartServer:
    def start(
        model: Path,
        *flags: str,
        env: dict[str, str] | None = None,
        patches: Path | None = None,
        is_fresh: bool = False,
        host: str = "127.0.0.1",
    ) -> RunningServer:
        number = len(list(root.iterdir()))
        folder = patches or root / f"patches-{number}"
        folder.mkdir(exist_ok=True)
        log = root / f"server-{number}.log"
        server = RunningServer(
            model, folder, log, list(flags), env or {}, None if is_fresh else preload, host
        )
        stack.callback(server.terminate)
        return server

    return start


@pytest.fixture(scope="session")
def preload(few_threads: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Preload | None]:
    """What servers are forked from; ``None`` where they have to be started anew."""
    if not can_preload():
        yield None
        return
    with Preload(tmp_path_factory.mktemp("preload") / "preload.log") as preload:
        yield preload


@pytest.fixture(scope="session")
def start_server(tmp_path_factory: pytest.TempPathFactory, preload: Preload | None) -> Iterator[StartServer]:
    """Start servers that live to the end of the session; `wait_ready` is the caller's."""
    with contextlib.ExitStack() as stack:
        yield _starter(tmp_path_factory.mktemp("servers"), stack, preload)


@pytest.fixture(scope="module")
def start_module_server(
    tmp_path_factory: pytest.TempPathFactory, preload: Preload | None
) -> Iterator[StartServer]:
    """Start servers that end with the test module."""
    with contextlib.ExitStack() as stack:
        yield _starter(tmp_path_factory.mktemp("servers"), stack, preload)


@pytest.fixture(scope="session", autouse=True)
def few_threads() -> Iterator[None]:
    """On a machine of few cores, threads here and in the servers would wait for each other: 8x slower."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        # NumPy would start threads when it is imported, which a process that forks must not have.
        patch.setenv("OPENBLAS_NUM_THREADS", "1")
        # Several workers have divided the cores already; bound to cores, servers would share the first ones.
        if "VLLM_CPU_OMP_THREADS_BIND" not in os.environ:
            patch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
            patch.setenv("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // 2)))
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
def tiny_server(start_server: StartServer, tiny_model: Path) -> RunningServer:
    """The tiny model in float32, with vLLM's development routes and an empty patch folder."""
    flags = ["--dtype", "float32", "--max-model-len", "512"]
    server = start_server(tiny_model, *flags, env={"VLLM_SERVER_DEV_MODE": "1"})
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
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("tiny-model")
    sizes = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32, "max_position_embeddings": 2048}
    save_tiny_model(
        folder,
        tokenizer=AutoTokenizer.from_pretrained(demo_model),
        tie_word_embeddings=True,
        # Wide enough that random attention tells prompts apart.
        initializer_range=0.2,
        **sizes,
    )
    return folder


@pytest.fixture(scope="session")
def tiny_patches(tiny_model: Path) -> PatchMaker:
    """Patches for servers of the tiny model."""
    return PatchMaker(load_model(tiny_model, dtype="float32"))
