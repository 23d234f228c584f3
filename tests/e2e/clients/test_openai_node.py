"""OpenAI's SDK for Node, unchanged: `openai.mjs` asks, this module judges."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.server("demo")]


@pytest.fixture(scope="module")
def seen(node_client: Path, yardstick: Any) -> dict[str, Any]:
    """What the script saw, by kind of request."""
    task = {
        "baseURL": yardstick.url,
        "patch": yardstick.name,
        "alias": yardstick.alias,
        "chat": yardstick.greedy(),
        "tool": yardstick.with_tool(),
        "schema": yardstick.with_schema(),
    }
    done = subprocess.run(
        ["node", "openai.mjs"],
        cwd=node_client,
        input=json.dumps(task),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers: dict[str, Any] = json.loads(done.stdout)
    return answers


@pytest.mark.parametrize("kind", ["header", "alias", "responses"])
def test_a_request_gets_the_patched_answer(seen: dict[str, Any], yardstick: Any, kind: str) -> None:
    yardstick.check_headers(seen[kind]["headers"])
    assert seen[kind]["text"] == yardstick.patched


@pytest.mark.parametrize("kind", ["headerStream", "aliasStream"])
def test_a_stream_brings_the_patched_answer(seen: dict[str, Any], yardstick: Any, kind: str) -> None:
    yardstick.check_headers(seen[kind]["headers"])
    assert seen[kind]["text"] == yardstick.patched
    assert seen[kind]["usage"]["prompt_tokens"] == yardstick.num_prompt_tokens


def test_a_request_without_the_header_gets_the_base_answer(seen: dict[str, Any], yardstick: Any) -> None:
    assert seen["base"]["headers"]["x-policy-patch"] == "none"
    assert seen["base"]["text"] == yardstick.base


def test_a_tool_is_called_under_the_patch(seen: dict[str, Any], yardstick: Any) -> None:
    yardstick.check_headers(seen["tool"]["headers"])
    calls = [(call["name"], call["arguments"]) for call in seen["tool"]["tools"]]
    assert calls == yardstick.patched_tool_calls


def test_a_schema_is_kept_under_the_patch(seen: dict[str, Any], yardstick: Any) -> None:
    yardstick.check_headers(seen["schema"]["headers"])
    assert seen["schema"]["text"] == yardstick.patched_schema


def test_an_unknown_patch_raises_not_found(seen: dict[str, Any]) -> None:
    assert seen["unknown"] == {"isNotFound": True, "status": 404, "param": "X-Policy-Patch"}
