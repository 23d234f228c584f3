"""From policy text to token ids, through many shapes of chat template."""

from typing import Any

import pytest

from patches.errors import CompileError
from patches.model import LoadedModel
from patches.rendering import (
    cut,
    default_system_text,
    filler_token_id,
    pad,
    render_raw,
    render_system,
)

PLAIN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}[/]{% endfor %}"
WITH_BOS = "{{ bos_token }}" + PLAIN
#: Folds the system message into the first user turn, as Gemma's does.
FOLDING = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set first = messages[0].content + ' ' %}"
    "{% set loop_messages = messages[1:] %}{% else %}{% set first = '' %}{% set loop_messages = messages %}"
    "{% endif %}{% for m in loop_messages %}[{{ m.role }}]"
    "{{ (first if loop.first else '') + m.content }}[/]{% endfor %}"
)
REFUSING = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    + PLAIN
)
SILENT = "{% for m in messages if m.role != 'system' %}[{{ m.role }}]{{ m.content }}[/]{% endfor %}"
#: Puts a default in front also of conversations whose roles it refuses to begin with the system.
REFUSING_WITH_DEFAULT = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}Be good." + PLAIN
)


@pytest.fixture
def tokenizer(tiny_model: LoadedModel) -> Any:
    """The tiny tokenizer, whose template a test may replace."""
    tokenizer = tiny_model.tokenizer
    assert tokenizer is not None
    template = tokenizer.chat_template
    yield tokenizer
    tokenizer.chat_template = template


def test_a_system_message_is_rendered_without_what_follows_it(tokenizer: Any) -> None:
    rendered = render_system(tokenizer, "  answer politely \n")
    assert tokenizer.decode(rendered.token_ids) == "<|start|>system\nanswer politely<|end|>\n"
    assert tokenizer.decode(rendered.token_ids[-rendered.num_closing :]) == "<|end|>\n"


def test_the_rendering_stands_in_front_of_the_user_turn(tokenizer: Any) -> None:
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello there"}]
    whole = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    user = tokenizer("<|start|>user\nhello there<|end|>\n", add_special_tokens=False)["input_ids"]
    assert [*render_system(tokenizer, "be brief").token_ids, *user] == whole


@pytest.mark.parametrize("text", ["", "  \n "])
def test_an_empty_policy_is_refused(tokenizer: Any, text: str) -> None:
    with pytest.raises(CompileError, match="nothing but white space"):
        render_system(tokenizer, text)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "has no chat template; compile with --raw"),
        (REFUSING, "System role not supported; compile with --raw"),
        (FOLDING, "does not render a system message by itself.*--raw"),
        (SILENT, "does not render a system message by itself"),
        ("{{ nothing.at.all }}", "chat template: refuses messages"),
        ("{% broken", "chat template: refuses messages"),
    ],
)
def test_a_template_without_a_system_part_gives_advice(
    tokenizer: Any, template: str | None, message: str
) -> None:
    tokenizer.chat_template = template
    with pytest.raises(CompileError, match=message):
        render_system(tokenizer, "be brief")


@pytest.mark.parametrize(
    ("template", "default"),
    [
        (PLAIN, None),
        (WITH_BOS, None),
        (FOLDING, None),
        (REFUSING, None),
        (None, None),
        (REFUSING_WITH_DEFAULT, "Be good."),
        ("Be good." + PLAIN, "Be good."),
        ("{{ bos_token }}{% if messages[0].role != 'system' %}Be good.{% endif %}" + PLAIN, "Be good."),
    ],
)
def test_the_default_system_message_of_a_template_is_found(
    tokenizer: Any, template: str | None, default: str | None
) -> None:
    tokenizer.chat_template = template
    assert default_system_text(tokenizer) == default


def test_the_default_of_a_template_like_the_demo_models_is_found(tokenizer: Any) -> None:
    assert default_system_text(tokenizer) == "<|start|>system\nYou are tiny.<|end|>\n"


def test_raw_text_is_taken_as_it_is(tokenizer: Any) -> None:
    rendered = render_raw(tokenizer, " be brief\n")
    assert tokenizer.decode(rendered.token_ids) == " be brief\n"
    assert rendered.num_closing == 0
    with pytest.raises(CompileError, match="at least one token"):
        render_raw(tokenizer, "")


@pytest.mark.parametrize("text", ["a", "answer politely", "x" * 16, "x" * 17])
@pytest.mark.parametrize("render", [render_raw, render_system])
def test_padding_reaches_a_multiple_and_keeps_both_ends(tokenizer: Any, render: Any, text: str) -> None:
    rendered = render(tokenizer, text)
    padded = pad(rendered, 16, filler_token_id(tokenizer))
    added = len(padded.token_ids) - len(rendered.token_ids)
    assert len(padded.token_ids) % 16 == 0
    assert 0 <= added < 16
    whole, closing = tokenizer.decode(padded.token_ids), rendered.num_closing
    before = tokenizer.decode(rendered.token_ids[: len(rendered.token_ids) - closing])
    after = tokenizer.decode(rendered.token_ids[len(rendered.token_ids) - closing :])
    assert whole == before + "\n" * added + after


def test_cutting_reaches_a_multiple_and_keeps_what_closes_the_message(tokenizer: Any) -> None:
    rendered = render_system(tokenizer, "never answer rudely " * 5)
    shorter = cut(rendered, 16)
    assert len(shorter.token_ids) == len(rendered.token_ids) // 16 * 16
    assert tokenizer.decode(shorter.token_ids).endswith("<|end|>\n")
    assert tokenizer.decode(rendered.token_ids).startswith(
        tokenizer.decode(shorter.token_ids[: -shorter.num_closing])
    )


def test_cutting_a_text_shorter_than_a_multiple_is_refused(tokenizer: Any) -> None:
    with pytest.raises(CompileError, match="pad instead"):
        cut(render_raw(tokenizer, "be brief"), 64)


def test_a_text_that_already_fits_is_left_alone(tokenizer: Any) -> None:
    rendered = pad(render_system(tokenizer, "be brief"), 16, filler_token_id(tokenizer))
    assert pad(rendered, 16, 0) == rendered
    assert cut(rendered, 16) == rendered
