"""What one generation takes: its tokens and its times, counted for its patch, or for the base model.

A few look-ups and additions a step, in one call: it is made with every token of every stream. The figures are
looked up once, when it begins.
"""

import time
from typing import Protocol

from server.metrics.use import PatchUse
from server.request.scope import RequestScope


class Timings(Protocol):
    """What the engine says of a generation whose tokens all come at once, in its last output."""

    #: Seconds from its arrival to the first token.
    first_token_latency: float
    #: By one clock, in seconds.
    first_token_ts: float
    last_token_ts: float
    num_generation_tokens: int


class Meter:
    """Counts one generation from its admission on."""

    __slots__ = ("_has_prompt", "_scope", "_sent_s", "_started_s", "_trace_id", "_use", "token_s")

    def __init__(self, use: PatchUse, scope: RequestScope) -> None:
        self._use = use
        self._scope = scope
        self._started_s = self._sent_s = time.monotonic()
        #: When the last token came; ``None`` before the first.
        self.token_s: float | None = None
        self._has_prompt = False
        #: What an exemplar names: the trace, where someone keeps it.
        self._trace_id = scope.trace.trace_id if scope.trace.is_sampled else None

    def sent(self) -> None:
        """Note that the engine is asked now; before that, the generation waited for its patch."""
        self._sent_s = time.monotonic()

    def prompt(self, num_tokens: int) -> None:
        """Count the prompt, once."""
        if not self._has_prompt:
            self._has_prompt = True
            self._use.num_prompt_tokens += num_tokens
            self._scope.num_prompt_tokens += num_tokens

    def tokens(self, num_tokens: int) -> None:
        """Note that ``num_tokens`` more tokens came out of one engine step."""
        if num_tokens <= 0:
            return
        use = self._use
        use.num_generated_tokens += num_tokens
        self._scope.num_generated_tokens += num_tokens
        now_s = time.monotonic()
        if self.token_s is None:
            self._first(now_s - self._started_s)
        else:
            use.inter_token.observe((now_s - self.token_s) / num_tokens, num_tokens, self._trace_id)
        self.token_s = now_s

    def all_tokens(self, num_tokens: int, num_answers: int, timings: Timings) -> None:
        """Note an answer whose tokens came at once: the engine says when the first of them was there."""
        if num_tokens <= 0:
            return
        self._use.num_generated_tokens += num_tokens
        self._scope.num_generated_tokens += num_tokens
        self._first(self._sent_s - self._started_s + timings.first_token_latency)
        self.token_s = time.monotonic()
        if timings.num_generation_tokens > 1 and num_tokens > num_answers:
            mean_s = (timings.last_token_ts - timings.first_token_ts) / (timings.num_generation_tokens - 1)
            self._use.inter_token.observe(mean_s, num_tokens - num_answers, self._trace_id)

    def _first(self, first_token_s: float) -> None:
        self._use.first_token.observe(first_token_s, 1, self._trace_id)
        if self._scope.first_token_s is None:
            self._scope.first_token_s = first_token_s
