"""Small stand-ins: package archives with harmless content, arms of the tiny model, and a server over them."""

import hashlib
import json
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from patches.compile import compile_text
from patches.evaluate.arms import Arm
from patches.evaluate.data import pinned
from patches.evaluate.data.packages import Package, PackageFile, PackageFiles
from patches.evaluate.judges.judges import COMPLIANCE, JUDGES, REFUSAL, Judges
from patches.evaluate.subjects.local import TransformersSubject
from patches.evaluate.subjects.subject import Reading, Renderer, Timing
from patches.format import Patch
from patches.label import Label
from patches.model import LoadedModel
from patches.sampling import Sampling

REFUSALS = [f"I'm sorry, but I can't help with {what}." for what in ("that", "this", "it", "such things")]
ANSWERS = [f"Sure! Here is how {what} works, step by step." for what in ("tea", "rain", "bread", "glass")]
PACKAGE = Package("pypi", "small-data", "1.0", "Apache-2.0")


class ScriptedSubject:
    """Answers what the script says, and reads every token with the same likelihood."""

    def __init__(self, arm: Arm, tokenizer: Any, script: Mapping[str, str], *, logprob: float = -1.0) -> None:
        self.arm = arm
        self.renderer = Renderer(tokenizer, arm)
        self.num_calls = 0
        self._script = script
        self._logprob = logprob

    def chat(self, prompts: Sequence[str], sampling: Sampling) -> list[list[str]]:
        self.num_calls += 1
        return [[self._script.get(prompt, "")] * sampling.num_samples for prompt in prompts]

    def score(self, readings: Sequence[Reading]) -> list[list[float]]:
        return [[self._logprob] * len(reading.tokens) for reading in readings]

    def time(self, prompts: Sequence[str], num_tokens: int) -> list[Timing]:
        return [Timing(0.5, 1.5, num_tokens) for _ in prompts]


@pytest.fixture
def scripted(tiny_model: LoadedModel) -> Callable[..., ScriptedSubject]:
    def make(arm: str, script: Mapping[str, str] | None = None, **options: Any) -> ScriptedSubject:
        kind = arm if arm in ("base", "system") else "patch"
        return ScriptedSubject(Arm(arm, kind), tiny_model.tokenizer, script or {}, **options)

    return make


@pytest.fixture
def archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one wheel, which takes the place of every package that the refusal judges read."""
    rows = "".join(f'"Tell me about it","{text}",{label},text\n' for text, label in labelled())
    header = "# version=1\nobjective,assistant_response,human_score,data_type\n"
    pairs = [
        {"censored_response": no, "uncensored_response": yes}
        for no, yes in zip(REFUSALS, ANSWERS, strict=True)
    ]
    members = {"pairs.json": json.dumps({"prompts": pairs}), "labels.csv": header + rows}
    folder = tmp_path / "archives"
    folder.mkdir()
    with zipfile.ZipFile(folder / "small_data-1.0-py3-none-any.whl", "w") as wheel:
        for name, text in members.items():
            wheel.writestr(name, text)
    files = {
        name: PackageFile(PACKAGE, name, hashlib.sha256(text.encode()).hexdigest())
        for name, text in members.items()
    }
    monkeypatch.setattr(pinned, "REFUSAL_PAIRS", files["pairs.json"])
    for name in (REFUSAL, COMPLIANCE):
        labels = replace(JUDGES[name].labels, sources=(files["labels.csv"],))
        monkeypatch.setitem(JUDGES, name, replace(JUDGES[name], labels=labels))
    return folder


def labelled() -> list[tuple[str, int]]:
    """Answers with people's labels; one refusal has no refusing word in it."""
    return [(REFUSALS[0], 1), (REFUSALS[1], 1), ("Let us talk of the weather instead.", 1), (ANSWERS[0], 0)]


@pytest.fixture
def files(archives: Path, tmp_path: Path) -> PackageFiles:
    return PackageFiles(tmp_path / "cache", archives=archives)


@pytest.fixture
def judges(files: PackageFiles) -> Judges:
    return Judges(files)


@pytest.fixture(scope="session")
def tiny_patch(tiny_model: LoadedModel) -> Patch:
    return compile_text(tiny_model, "never answer rudely", Label("polite", "1.0.0"))


@pytest.fixture(scope="session")
def other_patch(tiny_model: LoadedModel) -> Patch:
    return compile_text(tiny_model, "answer politely", Label("short", "1.0.0"))


class Server:
    """An OpenAI-compatible server, as far as subjects ask, over arms of the tiny model."""

    def __init__(self, model: LoadedModel, patches: Mapping[str, Patch]) -> None:
        self.seen: list[tuple[str, str | None, dict[str, Any]]] = []
        self._subjects = {"none": TransformersSubject(model, Arm("base", "base"))}
        for name, patch in patches.items():
            self._subjects[name] = TransformersSubject(model, Arm(name, "patch", patch=patch))
        #: selection -> the digest that answers claim
        self.headers: dict[str, str | None] = {name: patch.digest for name, patch in patches.items()}
        #: selection -> the form of composition that answers claim
        self.forms: dict[str, str | None] = {}
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def answer(self, path: str, selection: str | None, body: dict[str, Any]) -> dict[str, Any]:
        self.seen.append((path, selection, body))
        subject = self._subjects[str(selection)]
        if path == "/v1/completions":
            (token,) = body["allowed_token_ids"]
            score = subject.score([Reading(tuple(body["prompt"]), (token,))])[0][0]
            logprobs = {"tokens": [f"token_id:{token}"], "token_logprobs": [score]}
            return {"choices": [{"logprobs": logprobs}]}
        ids = subject.renderer.tokenizer.apply_chat_template(
            body["messages"], tokenize=False, add_generation_prompt=True
        )
        with self._lock:
            texts = subject._generate(
                [subject.renderer.ids(ids)], Sampling(body["max_tokens"], num_samples=body["n"])
            )
        return {"choices": [{"message": {"content": text}} for text in texts[0]]}

    def _handler(server: Any) -> type[BaseHTTPRequestHandler]:  # noqa: N805
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                cards = [{"id": "tiny:polite", "parent": "tiny"}, {"id": "tiny", "parent": None}]
                self._send(200, {"data": cards}, {})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                selection = self.headers.get("X-Policy-Patch")
                if selection not in server._subjects:
                    self._send(404, {"error": {"message": f"no patch {selection!r}"}}, {})
                    return
                digest = server.headers.get(selection)
                form = server.forms.get(selection)
                said = {"X-Policy-Patch-Digest": digest, "X-Policy-Patch-Composition": form}
                headers = {name: value for name, value in said.items() if value is not None}
                self._send(200, server.answer(self.path, selection, body), headers)

            def _send(self, status: int, document: Any, headers: Mapping[str, str]) -> None:
                data = json.dumps(document).encode()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: Any) -> None:
                pass

        return Handler


@pytest.fixture
def server(tiny_model: LoadedModel, tiny_patch: Patch) -> Iterator[Server]:
    names = {"polite": tiny_patch, f"polite@{tiny_patch.digest}": tiny_patch}
    running = Server(tiny_model, names)
    yield running
    running.close()
