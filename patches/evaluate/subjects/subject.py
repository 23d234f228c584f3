"""A subject: one arm of one model, as measures see it. Two implementations: transformers, and HTTP.

Both get the same token ids: prompts are rendered by the model's own tokenizer and chat template, and greedy
answers of the two agree wherever a server is faithful to its patch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from patches.errors import EvaluationError
from patches.evaluate.arms import Arm
from patches.rendering import render_system
from patches.sampling import Sampling


@dataclass(frozen=True)
class Timing:
    """One answer's speed."""

    first_token_s: float
    total_s: float
    num_tokens: int


@dataclass(frozen=True)
class Reading:
    """Token ids whose likelihood is asked for, and what stands before them."""

    context: tuple[int, ...]
    tokens: tuple[int, ...]


class Subject(Protocol):
    """One arm, ready to answer."""

    arm: Arm
    renderer: "Renderer"

    def chat(self, prompts: Sequence[str], sampling: Sampling) -> list[list[str]]:
        """Answer each prompt as a user's message, ``num_samples`` times."""
        ...

    def score(self, readings: Sequence[Reading]) -> list[list[float]]:
        """Return the log probability of each token of each reading; the context is never empty."""
        ...

    def time(self, prompts: Sequence[str], num_tokens: int) -> list[Timing]:
        """Answer each prompt greedily with exactly so many tokens, one after the other."""
        ...


class Renderer:
    """From text to token ids, for one arm."""

    def __init__(self, tokenizer: Any, arm: Arm) -> None:
        self.tokenizer = tokenizer
        self._system_text = arm.system_text

    def messages(self, prompt: str) -> list[dict[str, str]]:
        """Make the conversation of one user message."""
        system = [] if self._system_text is None else [{"role": "system", "content": self._system_text}]
        return [*system, {"role": "user", "content": prompt}]

    def chat_ids(self, prompt: str) -> tuple[int, ...]:
        """Render a conversation up to where the answer begins.

        Raises:
            EvaluationError: The tokenizer has no chat template.
        """
        if not getattr(self.tokenizer, "chat_template", None):
            raise EvaluationError("model: its tokenizer has no chat template, so it can't be asked anything")
        text = self.tokenizer.apply_chat_template(
            self.messages(prompt), tokenize=False, add_generation_prompt=True
        )
        return self.ids(text)

    def raw_ids(self, text: str) -> tuple[int, ...]:
        """Tokenize text as it is; the system arm has its policy in front, as the patch has its prefix."""
        head = () if self._system_text is None else render_system(self.tokenizer, self._system_text).token_ids
        bos = getattr(self.tokenizer, "bos_token_id", None)
        start = () if head or bos is None else (int(bos),)
        return (*head, *start, *self.ids(text))

    def ids(self, text: str) -> tuple[int, ...]:
        """Tokenize without special tokens."""
        return tuple(int(i) for i in self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def text(self, ids: Sequence[int]) -> str:
        """Turn an answer's ids into text, without special tokens and space around it."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()
