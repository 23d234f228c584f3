"""LiteLLM, unchanged, with the patch in its extra headers or in its model name."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.server("demo")]


@pytest.fixture
def litellm(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    # Otherwise the import asks the network for a table of prices.
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    import litellm

    # It asks for this thread's event loop even where it awaits nothing, and would leave one open.
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield litellm
    asyncio.set_event_loop(None)
    loop.close()


@pytest.fixture
def connection(yardstick: Any) -> dict[str, Any]:
    return {"api_base": yardstick.url, "api_key": yardstick.api_key, "max_retries": 0}


@pytest.fixture
def model(yardstick: Any) -> dict[str, Any]:
    return {"model": f"openai/{yardstick.model}", "extra_headers": yardstick.header}


def test_completion_gives_the_patched_answer(
    litellm: Any, connection: dict[str, Any], model: dict[str, Any], yardstick: Any
) -> None:
    answer = litellm.completion(**yardstick.greedy(**model), **connection)

    headers = answer._hidden_params["additional_headers"]
    assert headers["llm_provider-x-policy-patch"] == yardstick.reference
    assert headers["llm_provider-x-policy-patch-digest"] == yardstick.digest
    assert answer.choices[0].message.content == yardstick.patched
    assert answer.usage.prompt_tokens == yardstick.num_prompt_tokens


def test_the_alias_gives_the_patched_answer(litellm: Any, connection: dict[str, Any], yardstick: Any) -> None:
    answer = litellm.completion(**yardstick.greedy(model=f"openai/{yardstick.alias}"), **connection)

    assert answer.choices[0].message.content == yardstick.patched


# LiteLLM's own models, which it builds from the SDK's types at the first chunk.
@pytest.mark.filterwarnings("ignore:.*ReadOnly:UserWarning")
def test_a_stream_brings_the_patched_answer(
    litellm: Any, connection: dict[str, Any], model: dict[str, Any], yardstick: Any
) -> None:
    stream = litellm.completion(**yardstick.greedy(stream=True, **model), **connection)

    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == yardstick.patched


def test_a_tool_is_called_under_the_patch(
    litellm: Any, connection: dict[str, Any], model: dict[str, Any], yardstick: Any
) -> None:
    answer = litellm.completion(**yardstick.with_tool(**model), **connection)

    calls = [(call.function.name, call.function.arguments) for call in answer.choices[0].message.tool_calls]
    assert calls == yardstick.patched_tool_calls


def test_a_schema_is_kept_under_the_patch(
    litellm: Any, connection: dict[str, Any], model: dict[str, Any], yardstick: Any
) -> None:
    answer = litellm.completion(**yardstick.with_schema(**model), **connection)

    assert answer.choices[0].message.content == yardstick.patched_schema


def test_an_unknown_patch_raises_not_found(
    litellm: Any, connection: dict[str, Any], model: dict[str, Any], yardstick: Any
) -> None:
    model["extra_headers"] = {"X-Policy-Patch": f"{yardstick.name}-unknown"}

    with pytest.raises(litellm.NotFoundError, match="unknown"):
        litellm.completion(**yardstick.greedy(**model), **connection)
