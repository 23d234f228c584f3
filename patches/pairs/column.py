"""Answers that stand in the prompts' file already, such as refusals that people wrote."""

from collections.abc import Mapping, Sequence
from typing import Any

from patches.errors import PairsError
from patches.pairs.prompts import Messages, Prompt, prompt_id
from patches.pairs.sampler import Answer


class ColumnSampler:
    """The answers of one column: text, a list of texts, or one assistant message."""

    def __init__(self, prompts: Sequence[Prompt], column: str) -> None:
        """Read the column.

        Raises:
            PairsError: A row lacks it, or has no text in it.
        """
        self._answers = {prompt.id: _answers_of(prompt.row, column) for prompt in prompts}

    def sample(self, conversations: Sequence[Messages], key: str) -> list[list[Answer]]:
        """Look the answers up."""
        return [self._answers[prompt_id(messages)] for messages in conversations]


def _answers_of(row: Mapping[str, Any], column: str) -> list[Answer]:
    if column not in row:
        raise PairsError(
            f"reference_column: expected {column!r} in every row, got {', '.join(row) or 'no columns'}"
        )
    values = row[column] if isinstance(row[column], list) else [row[column]]
    contents = [value.get("content") if isinstance(value, Mapping) else value for value in values]
    texts = [content for content in contents if isinstance(content, str)]
    if not texts or len(texts) < len(contents):
        raise PairsError(f"reference_column: expected text in {column!r}, got {str(row[column])[:80]!r}")
    return [Answer(text.strip()) for text in texts]
