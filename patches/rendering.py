"""From policy text to token ids.

Two ways: *raw*, the text as the tokenizer encodes it by default (with a BOS token where it adds one), and
as a *system message*, for which only the system part of the chat template's rendering is taken. A patched
request is then answered as if the conversation had begun with that system message.

What is not hidden: many templates begin a conversation that has no system message with a default one of
their own. The patch can't take that away, since it belongs to the request: such a request carries the patch
*and* the default. ``default_system_text`` finds it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from patches.errors import CompileError

_ADVICE = "compile with --raw and a text that has the model's own markup in it"
# Unlikely words, so that finding them in a rendering proves where they came from.
_PROBES = ("Quixotic zephyrs 5817", "jumbled 34 fjords!")


@dataclass(frozen=True)
class RenderedText:
    """Token ids of a policy text: what the template puts around it, and the text itself."""

    token_ids: tuple[int, ...]
    #: How many ids at the end belong to the template, whatever the text.
    num_closing: int


def render_raw(tokenizer: Any, text: str) -> RenderedText:
    """Tokenize a text as it is.

    Raises:
        CompileError: The text has no tokens.
    """
    return _with_closing(_encode_raw(tokenizer, text), [_encode_raw(tokenizer, probe) for probe in _PROBES])


def render_system(tokenizer: Any, text: str) -> RenderedText:
    """Tokenize a text as the system message that begins a conversation.

    White space around the text is dropped.

    Raises:
        CompileError: The tokenizer has no chat template, or one that can't render a system message by itself.
    """
    text = text.strip()
    if not text:
        raise CompileError("text: expected a policy, got nothing but white space")
    probes = [_encode(tokenizer, _system_part(tokenizer, probe)) for probe in _PROBES]
    return _with_closing(_encode(tokenizer, _system_part(tokenizer, text)), probes)


def default_system_text(tokenizer: Any) -> str | None:
    """Find what a chat template puts before a conversation that has no system message of its own.

    Returns:
        The rendered text, without a BOS token; ``None`` where the template adds nothing.
    """
    if not getattr(tokenizer, "chat_template", None):
        return None
    user = {"role": "user", "content": _PROBES[1]}
    alone = _render(tokenizer, [user])
    try:
        system = _system_part(tokenizer, _PROBES[0])
        turn = _render(tokenizer, [{"role": "system", "content": _PROBES[0]}, user])[len(system) :]
    except CompileError:
        # No system messages: a second user turn shows what a turn looks like without what comes first.
        answer = {"role": "assistant", "content": _PROBES[0]}
        turn = _common_suffix_text(alone, _render(tokenizer, [user, answer, user]))
    added = alone.removesuffix(turn) if turn and alone.endswith(turn) else alone.split(_PROBES[1])[0]
    bos = getattr(tokenizer, "bos_token", None) or ""
    # Where every turn begins with the BOS token it is markup, not a beginning of its own.
    if not turn.startswith(bos):
        added = added.removeprefix(bos)
    return added if added.strip() else None


def pad(rendered: RenderedText, multiple: int, filler_id: int) -> RenderedText:
    """Lengthen to a multiple with filler tokens at the end of the text, before what closes the message."""
    missing = -len(rendered.token_ids) % multiple
    return _resized(rendered, missing, filler_id)


def cut(rendered: RenderedText, multiple: int) -> RenderedText:
    """Shorten to a multiple by dropping the last tokens of the text, keeping what closes the message.

    Raises:
        CompileError: Nothing of the text would be left.
    """
    surplus = len(rendered.token_ids) % multiple
    if len(rendered.token_ids) - surplus <= rendered.num_closing or len(rendered.token_ids) < multiple:
        raise CompileError(
            f"text: expected more than {multiple} tokens to cut, got {len(rendered.token_ids)}; pad instead"
        )
    return _resized(rendered, -surplus, 0)


def filler_token_id(tokenizer: Any) -> int:
    """Return the id of the token that pads a text: a line break, or the last token of one.

    Raises:
        CompileError: The tokenizer has no token for a line break.
    """
    ids = _encode(tokenizer, "\n")
    if not ids:
        raise CompileError("tokenizer: has no token for a line break to pad with; lengthen the text instead")
    return ids[-1]


def _resized(rendered: RenderedText, change: int, filler_id: int) -> RenderedText:
    ids, split = rendered.token_ids, len(rendered.token_ids) - rendered.num_closing
    text = ids[: split + change] if change < 0 else ids[:split] + (filler_id,) * change
    return RenderedText(text + ids[split:], rendered.num_closing)


def _system_part(tokenizer: Any, text: str) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise CompileError(f"tokenizer: has no chat template; {_ADVICE}")
    system, user = {"role": "system", "content": text}, {"role": "user", "content": _PROBES[1]}
    alone, both = _render(tokenizer, [system]), _render(tokenizer, [system, user])
    if text not in alone or not both.startswith(alone) or _PROBES[1] not in both[len(alone) :]:
        raise CompileError(
            "chat template: does not render a system message by itself at the start of a conversation "
            f"(some fold it into the user's turn); {_ADVICE}"
        )
    return alone


def _render(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    from jinja2.exceptions import TemplateError

    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False))
    except (TemplateError, ValueError, KeyError, IndexError, TypeError) as error:
        roles = ", ".join(message["role"] for message in messages)
        raise CompileError(
            f"chat template: refuses messages of the roles {roles}: {error}; {_ADVICE}"
        ) from error


def _encode(tokenizer: Any, text: str) -> list[int]:
    return [int(token_id) for token_id in tokenizer(text, add_special_tokens=False)["input_ids"]]


def _encode_raw(tokenizer: Any, text: str) -> list[int]:
    return [int(token_id) for token_id in tokenizer(text)["input_ids"]]


def _with_closing(token_ids: list[int], probes: Sequence[list[int]]) -> RenderedText:
    if not token_ids:
        raise CompileError("text: expected at least one token, got none")
    # The tokens at the end that two unrelated texts share are the template's.
    num_closing = _num_common_suffix(probes[0], probes[1])
    if token_ids[len(token_ids) - num_closing :] != probes[0][len(probes[0]) - num_closing :]:
        num_closing = 0
    return RenderedText(tuple(token_ids), num_closing)


def _num_common_suffix(left: Sequence[Any], right: Sequence[Any]) -> int:
    count = 0
    while count < min(len(left), len(right)) and left[-1 - count] == right[-1 - count]:
        count += 1
    return count


def _common_suffix_text(left: str, right: str) -> str:
    count = _num_common_suffix(left, right)
    return left[len(left) - count :]
