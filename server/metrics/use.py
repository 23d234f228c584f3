"""What generations under one patch, or on the base model, took and used: two latencies, two token counts.

Plain numbers that the event loop's thread adds to; a scrape reads them (see ``server.metrics.latency``).
"""

from collections.abc import Mapping
from typing import Any

from server.metrics.latency import FIRST_TOKEN_BOUNDS_S, INTER_TOKEN_BOUNDS_S, LatencyHistogram


class PatchUse:
    """The figures of one patch; looked up once a generation, and added to with each of its tokens."""

    __slots__ = ("first_token", "inter_token", "num_generated_tokens", "num_prompt_tokens")

    def __init__(self) -> None:
        self.first_token = LatencyHistogram(FIRST_TOKEN_BOUNDS_S)
        self.inter_token = LatencyHistogram(INTER_TOKEN_BOUNDS_S)
        #: Of users' prompts, without the prefix.
        self.num_prompt_tokens = 0
        self.num_generated_tokens = 0

    def state(self) -> dict[str, Any]:
        """Return what another process can add to its own."""
        return {
            "first_token": self.first_token.state(),
            "inter_token": self.inter_token.state(),
            "num_prompt_tokens": self.num_prompt_tokens,
            "num_generated_tokens": self.num_generated_tokens,
        }

    def add(self, state: Mapping[str, Any]) -> None:
        """Add what another process counted."""
        self.first_token.add(state["first_token"])
        self.inter_token.add(state["inter_token"])
        self.num_prompt_tokens += state["num_prompt_tokens"]
        self.num_generated_tokens += state["num_generated_tokens"]
