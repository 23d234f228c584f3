"""What every client is held against: the server's own answers to the same requests, sent as bare HTTP."""

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

FILES = Path(__file__).resolve().parent
ROOT = FILES.parents[2]
NAME = "clients-pirate"
MODEL = "base"
PROMPT = "What is the capital of France?"

_SENTENCE = {
    "type": "object",
    "properties": {"sentence": {"type": "string", "maxLength": 60}},
    "required": ["sentence"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Yardstick:
    """A patch on a running server, requests to make, and the server's own answers to them."""

    server: Any
    digest: str
    name: str = NAME
    model: str = MODEL
    prompt: str = PROMPT
    api_key: str = "none"
    max_tokens: int = 24
    #: Structured answers get room to end.
    max_structured_tokens: int = 64

    @property
    def url(self) -> str:
        return f"{self.server.url}/v1"

    @property
    def header(self) -> dict[str, str]:
        return {"X-Policy-Patch": self.name}

    @property
    def alias(self) -> str:
        return f"{self.model}:{self.name}"

    @property
    def reference(self) -> str:
        return f"{self.name}@1.0.0"

    @property
    def messages(self) -> list[dict[str, str]]:
        return [{"role": "user", "content": self.prompt}]

    @property
    def tool(self) -> dict[str, Any]:
        # Unless a tool is strict, vLLM leaves its arguments free, and so small a model then writes no object.
        function = {"name": "say", "description": "Say a sentence.", "strict": True, "parameters": _SENTENCE}
        return {"type": "function", "function": function}

    @property
    def schema(self) -> dict[str, Any]:
        return {"name": "answer", "schema": _SENTENCE}

    def greedy(self, **body: Any) -> Any:
        """A chat request."""
        common = {"model": self.model, "messages": self.messages, "temperature": 0}
        return common | {"max_tokens": self.max_tokens} | body

    def with_tool(self, **body: Any) -> Any:
        """A chat request that must call the tool."""
        choice = {"type": "function", "function": {"name": "say"}}
        return self._structured(tools=[self.tool], tool_choice=choice, **body)

    def with_schema(self, **body: Any) -> Any:
        """A chat request that must be answered with JSON."""
        return self._structured(response_format={"type": "json_schema", "json_schema": self.schema}, **body)

    def _structured(self, **body: Any) -> Any:
        return self.greedy(max_tokens=self.max_structured_tokens) | body

    def ask(self, patch: str | None, body: Any) -> Any:
        """Send bare HTTP; gives the answer's JSON."""
        headers = {} if patch is None else {"X-Policy-Patch": patch}
        response = self.server.client.post("/v1/chat/completions", json=body, headers=headers)
        assert response.status_code == 200, response.text
        return response.json()

    @cached_property
    def patched(self) -> str:
        return self._texts[0]

    @cached_property
    def base(self) -> str:
        return self._texts[1]

    @cached_property
    def num_prompt_tokens(self) -> int:
        return int(self.ask(None, self.greedy())["usage"]["prompt_tokens"])

    @cached_property
    def patched_tool_calls(self) -> list[tuple[str, str]]:
        calls = self.ask(self.name, self.with_tool())["choices"][0]["message"]["tool_calls"]
        return [(call["function"]["name"], call["function"]["arguments"]) for call in calls]

    @cached_property
    def patched_schema(self) -> str:
        patched, base = self._both(self.with_schema())
        assert patched != base, "the patch changes nothing"
        return patched

    def check_headers(self, headers: Any) -> None:
        assert headers["x-policy-patch"] == self.reference
        assert headers["x-policy-patch-digest"] == self.digest

    @cached_property
    def _texts(self) -> tuple[str, str]:
        patched, base = self._both(self.greedy())
        assert patched != base, "the patch changes nothing"
        return patched, base

    def _both(self, body: Any) -> tuple[str, str]:
        patched, base = (self.ask(patch, body)["choices"][0]["message"] for patch in (self.name, None))
        return str(patched["content"]), str(base["content"])


@pytest.fixture(scope="session")
def yardstick(shared_server: Any, demo_patches: Any) -> Yardstick:
    policy = (ROOT / "examples/policies/pirate.txt").read_text(encoding="utf-8")
    patch = demo_patches.of_text(NAME, policy, raw=True)
    shared_server.install(patch)
    return Yardstick(shared_server, patch.digest)


@pytest.fixture(scope="session")
def node_client() -> Path:
    """A folder with `openai.mjs` and OpenAI's package for Node, which npm installs; kept from run to run.

    Without Node, what needs it is skipped and says so: the rest of the suite needs nothing but Python.
    """
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed: OpenAI's SDK for Node is not tested on this machine")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "policypatch" / "test-clients" / "node"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "openai.mjs"):
        shutil.copyfile(FILES / name, folder / name)
    wanted = json.loads((FILES / "package.json").read_text(encoding="utf-8"))["dependencies"]["openai"]
    installed = folder / "node_modules" / "openai" / "package.json"
    if not installed.is_file() or json.loads(installed.read_text(encoding="utf-8"))["version"] != wanted:
        command = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, f"npm could not install openai {wanted}: {done.stderr[-2000:]}"
    return folder
