"""LangChain's ChatOpenAI, unchanged, with the patch in its default headers or in its model name."""

import json
from typing import Any

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.server("demo")]


@pytest.fixture
def options(yardstick: Any) -> dict[str, Any]:
    return {
        "model": yardstick.model,
        "base_url": yardstick.url,
        "api_key": yardstick.api_key,
        "temperature": 0,
        "max_tokens": yardstick.max_tokens,
        "max_retries": 0,
        "default_headers": yardstick.header,
        "include_response_headers": True,
    }


def chat(options: dict[str, Any], **changes: Any) -> Any:
    from langchain_openai import ChatOpenAI

    return ChatOpenAI(**options | changes)


def test_invoke_gives_the_patched_answer(options: dict[str, Any], yardstick: Any) -> None:
    answer = chat(options).invoke(yardstick.prompt)

    yardstick.check_headers(answer.response_metadata["headers"])
    assert answer.content == yardstick.patched
    assert answer.usage_metadata["input_tokens"] == yardstick.num_prompt_tokens


def test_the_alias_gives_the_patched_answer(options: dict[str, Any], yardstick: Any) -> None:
    answer = chat(options, model=yardstick.alias, default_headers=None).invoke(yardstick.prompt)

    yardstick.check_headers(answer.response_metadata["headers"])
    assert answer.content == yardstick.patched


def test_stream_gives_the_patched_answer(options: dict[str, Any], yardstick: Any) -> None:
    chunks = list(chat(options).stream(yardstick.prompt))

    yardstick.check_headers(chunks[0].response_metadata["headers"])
    assert "".join(chunk.content for chunk in chunks) == yardstick.patched


def test_a_bound_tool_is_called_under_the_patch(options: dict[str, Any], yardstick: Any) -> None:
    model = chat(options, max_tokens=yardstick.max_structured_tokens)
    answer = model.bind_tools([yardstick.tool], tool_choice="say").invoke(yardstick.prompt)

    name, arguments = yardstick.patched_tool_calls[0]
    assert [(call["name"], call["args"]) for call in answer.tool_calls] == [(name, json.loads(arguments))]


def test_a_schema_is_kept_under_the_patch(options: dict[str, Any], yardstick: Any) -> None:
    model = chat(options, max_tokens=yardstick.max_structured_tokens)
    response_format = yardstick.with_schema()["response_format"]

    answer = model.bind(response_format=response_format).invoke(yardstick.prompt)

    assert answer.content == yardstick.patched_schema
