"""OpenAI's SDK for Python, unchanged: header and alias, streams, tools, schemas, Responses."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.server("demo")]


@pytest.fixture
def client(yardstick: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=yardstick.url, api_key=yardstick.api_key, max_retries=0) as client:
        yield client


def joined(stream: Any) -> tuple[str, Any]:
    """Read a stream of chat chunks to its end; gives the text and the usage."""
    text, usage = "", None
    for chunk in stream:
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
        usage = chunk.usage or usage
    return text, usage


def test_a_request_with_the_header_gets_the_patched_answer(client: openai.OpenAI, yardstick: Any) -> None:
    raw = client.chat.completions.with_raw_response.create(
        **yardstick.greedy(), extra_headers=yardstick.header
    )

    yardstick.check_headers(raw.headers)
    answer = raw.parse()
    assert answer.choices[0].message.content == yardstick.patched
    assert answer.usage.prompt_tokens == yardstick.num_prompt_tokens


def test_a_request_without_the_header_gets_the_base_answer(client: openai.OpenAI, yardstick: Any) -> None:
    raw = client.chat.completions.with_raw_response.create(**yardstick.greedy())

    assert raw.headers["x-policy-patch"] == "none"
    assert raw.parse().choices[0].message.content == yardstick.base


def test_a_request_to_the_alias_gets_the_patched_answer(client: openai.OpenAI, yardstick: Any) -> None:
    raw = client.chat.completions.with_raw_response.create(**yardstick.greedy(model=yardstick.alias))

    yardstick.check_headers(raw.headers)
    assert raw.parse().choices[0].message.content == yardstick.patched


@pytest.mark.parametrize("way", ["header", "alias"])
def test_a_stream_brings_the_patched_answer(client: openai.OpenAI, yardstick: Any, way: str) -> None:
    body = yardstick.greedy(stream=True, stream_options={"include_usage": True})
    if way == "alias":
        body["model"] = yardstick.alias
    headers = yardstick.header if way == "header" else None
    raw = client.chat.completions.with_raw_response.create(**body, extra_headers=headers)

    yardstick.check_headers(raw.headers)
    text, usage = joined(raw.parse())
    assert text == yardstick.patched
    assert usage.prompt_tokens == yardstick.num_prompt_tokens


def test_the_alias_is_among_the_models(client: openai.OpenAI, yardstick: Any) -> None:
    models = {model.id: model.model_dump() for model in client.models.list()}

    assert models[yardstick.alias]["parent"] == yardstick.model


def test_a_default_header_goes_with_every_request(yardstick: Any) -> None:
    with openai.OpenAI(
        base_url=yardstick.url,
        api_key=yardstick.api_key,
        default_headers=yardstick.header,
        max_retries=0,
    ) as client:
        # A request that carries no prompt must not mind the header.
        client.models.list()
        answer = client.chat.completions.create(**yardstick.greedy())

    assert answer.choices[0].message.content == yardstick.patched


async def test_the_asynchronous_client_streams_the_patched_answer(yardstick: Any) -> None:
    text = ""
    async with openai.AsyncOpenAI(base_url=yardstick.url, api_key=yardstick.api_key, max_retries=0) as client:
        body = yardstick.greedy(stream=True)
        async for chunk in await client.chat.completions.create(**body, extra_headers=yardstick.header):
            text += chunk.choices[0].delta.content or ""

    assert text == yardstick.patched


def test_a_tool_is_called_under_the_patch(client: openai.OpenAI, yardstick: Any) -> None:
    raw = client.chat.completions.with_raw_response.create(
        **yardstick.with_tool(), extra_headers=yardstick.header
    )

    yardstick.check_headers(raw.headers)
    tool_calls = raw.parse().choices[0].message.tool_calls
    calls = [(call.function.name, call.function.arguments) for call in tool_calls]
    assert calls == yardstick.patched_tool_calls
    assert calls[0][0] == "say"
    assert isinstance(json.loads(calls[0][1])["sentence"], str)


def test_a_schema_is_kept_under_the_patch(client: openai.OpenAI, yardstick: Any) -> None:
    raw = client.chat.completions.with_raw_response.create(
        **yardstick.with_schema(), extra_headers=yardstick.header
    )

    yardstick.check_headers(raw.headers)
    text = raw.parse().choices[0].message.content
    assert text == yardstick.patched_schema
    assert set(json.loads(text)) == {"sentence"}


def test_completions_carry_the_patch_too(client: openai.OpenAI, yardstick: Any) -> None:
    body: Any = {"model": yardstick.model, "prompt": "Once upon a time", "temperature": 0, "max_tokens": 16}
    raw = client.completions.with_raw_response.create(**body, extra_headers=yardstick.header)
    expected = yardstick.server.complete(body["prompt"], patch=yardstick.name).json()

    yardstick.check_headers(raw.headers)
    assert raw.parse().choices[0].text == expected["choices"][0]["text"]
    assert raw.parse().choices[0].text != client.completions.create(**body).choices[0].text


@pytest.fixture
def response_body(yardstick: Any) -> Any:
    limits = {"temperature": 0, "max_output_tokens": yardstick.max_tokens}
    return {"model": yardstick.model, "input": yardstick.messages} | limits


def test_the_responses_api_gives_the_patched_answer(
    client: openai.OpenAI, yardstick: Any, response_body: Any
) -> None:
    raw = client.responses.with_raw_response.create(**response_body, extra_headers=yardstick.header)

    yardstick.check_headers(raw.headers)
    assert raw.parse().output_text == yardstick.patched
    assert client.responses.create(**response_body).output_text == yardstick.base


def test_the_responses_api_streams_the_patched_answer(
    client: openai.OpenAI, yardstick: Any, response_body: Any
) -> None:
    events = client.responses.create(**response_body, stream=True, extra_headers=yardstick.header)

    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == yardstick.patched


def test_an_unknown_patch_raises_not_found(client: openai.OpenAI, yardstick: Any) -> None:
    headers = {"X-Policy-Patch": f"{yardstick.name}-unknown"}

    with pytest.raises(openai.NotFoundError) as by_header:
        client.chat.completions.create(**yardstick.greedy(), extra_headers=headers)
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**yardstick.greedy(stream=True), extra_headers=headers)
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**yardstick.greedy(model=f"{yardstick.alias}-unknown"))

    assert by_header.value.param == "X-Policy-Patch"


def test_a_malformed_name_raises_bad_request(client: openai.OpenAI, yardstick: Any) -> None:
    with pytest.raises(openai.BadRequestError) as malformed:
        client.chat.completions.create(
            **yardstick.greedy(), extra_headers={"X-Policy-Patch": "no such thing!"}
        )

    assert malformed.value.param == "X-Policy-Patch"
