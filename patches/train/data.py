"""From rows to token ids: what the model reads in training is what it will read in a request.

A prompt is rendered by the chat template with everything that the template adds to a request, such as a
default system message; the answer follows it, closed by the template's end of turn where the answer was
finished.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from patches.errors import TrainingError
from patches.pairs.prompts import Messages, prompt_id, split_number, under_policy
from patches.pairs.rows import PairRow

#: Share of a file without splits that validates.
_VALIDATION_SHARE = 0.1
_PROBE = "jumbled 34 fjords!"


@dataclass(frozen=True)
class Sample:
    """A prompt and an answer, as token ids."""

    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.answer_ids)


@dataclass(frozen=True)
class PairSample:
    """Two answers to one prompt."""

    chosen: Sample
    rejected: Sample
    #: What a teacher under a policy text reads in place of the prompt.
    teacher_prompt_ids: tuple[int, ...] | None = None


@dataclass(frozen=True)
class PairData:
    """The pairs that a run learns from and is validated on, and what was left out."""

    train: tuple[PairSample, ...]
    validation: tuple[PairSample, ...]
    #: Why rows were left out, and how many: ``too_long``, ``empty``, ``duplicate``, ``same_answer``,
    #: ``test``.
    left_out: Mapping[str, int]


class Encoder:
    """Turns conversations into token ids with one tokenizer.

    Raises:
        TrainingError: The tokenizer has no chat template that can render a user's message.
    """

    def __init__(self, tokenizer: Any) -> None:
        if tokenizer is None or not getattr(tokenizer, "chat_template", None):
            raise TrainingError("model: has no tokenizer with a chat template, which training needs")
        self._tokenizer = tokenizer
        self._end_ids = self._end_of_turn()

    def sample(self, messages: Messages, answer: str, is_finished: bool) -> Sample:
        """Encode a conversation and its answer."""
        answer_ids = self._encode(answer)
        return Sample(self.prompt(messages), answer_ids + self._end_ids if is_finished else answer_ids)

    def prompt(self, messages: Messages) -> tuple[int, ...]:
        """Encode a conversation up to where the model's answer begins."""
        return self._encode(self._render([dict(message) for message in messages], True))

    def document(self, text: str) -> Sample:
        """Encode plain text, as a request without a chat brings it; its first token is what it follows."""
        ids = self.plain(text)
        return Sample(ids[:1], ids[1:])

    def plain(self, text: str) -> tuple[int, ...]:
        """Encode plain text, with what the tokenizer puts in front of it."""
        return tuple(int(i) for i in self._tokenizer(text)["input_ids"])

    def _render(self, messages: list[dict[str, str]], is_answered: bool) -> str:
        from jinja2.exceptions import TemplateError

        try:
            return str(
                self._tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=is_answered
                )
            )
        except (TemplateError, ValueError, KeyError, IndexError, TypeError) as error:
            roles = ", ".join(message["role"] for message in messages)
            raise TrainingError(f"chat template: refuses messages of the roles {roles}: {error}") from error

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(int(i) for i in self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _end_of_turn(self) -> tuple[int, ...]:
        turn = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _PROBE}]
        closing = self._render(turn, False).partition(_PROBE)[2]
        # What the model itself would say last: the one token that ends its turn, not the template's line
        # break.
        ids = self._encode(closing)[:1]
        if not ids and self._tokenizer.eos_token_id is not None:
            ids = (int(self._tokenizer.eos_token_id),)
        return ids


def encode_pairs(
    encoder: Encoder, rows: Sequence[PairRow], max_length: int, teacher_text: str | None = None
) -> PairData:
    """Encode the pairs of a file, apart from those of its test split.

    Args:
        encoder: For the model.
        rows: The pairs.
        max_length: The most tokens that a prompt and an answer may have together.
        teacher_text: The policy text of the teacher, where it is the model itself under a text.

    Raises:
        TrainingError: No pair is left to learn from.
    """
    left_out = dict.fromkeys(("test", "empty", "same_answer", "duplicate", "too_long"), 0)
    parts: dict[str, list[PairSample]] = {"train": [], "validation": []}
    seen: set[PairSample] = set()
    for row in rows:
        split = row.split or split_of(prompt_id(row.prompt))
        sample = PairSample(
            encoder.sample(row.prompt, row.chosen, row.is_chosen_finished),
            encoder.sample(row.prompt, row.rejected, row.is_rejected_finished),
            None if teacher_text is None else encoder.prompt(under_policy(row.prompt, teacher_text)),
        )
        reason = _reason_against(row, split, sample, seen, max_length)
        if reason is None:
            parts[split].append(sample)
            seen.add(sample)
        else:
            left_out[reason] += 1
    if not parts["train"]:
        counts = ", ".join(f"{number} {reason}" for reason, number in left_out.items() if number)
        raise TrainingError(f"pairs: none is left to learn from ({counts or 'no train split'})")
    return PairData(tuple(parts["train"]), tuple(parts["validation"]), left_out)


def split_of(key: str, validation_share: float = _VALIDATION_SHARE) -> str:
    """Choose train or validation by a hash of the prompt, the same in every run and for every order."""
    return "validation" if split_number(key) < validation_share else "train"


def longest(samples: Iterable[Sample]) -> int:
    """Return the length of the longest sample, 0 where there is none."""
    return max((len(sample) for sample in samples), default=0)


def _reason_against(
    row: PairRow, split: str, sample: PairSample, seen: set[PairSample], max_length: int
) -> str | None:
    if split == "test":
        return "test"
    if not row.chosen.strip() or not row.rejected.strip() or not sample.chosen.prompt_ids:
        return "empty"
    if row.chosen.strip() == row.rejected.strip():
        return "same_answer"
    if sample in seen:
        return "duplicate"
    return "too_long" if longest((sample.chosen, sample.rejected)) > max_length else None
