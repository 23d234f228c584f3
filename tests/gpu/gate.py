"""A gate that selects what the program says, and counts nothing."""

import contextlib
from types import SimpleNamespace
from typing import Any


class Gate:
    """Selects what the program says, in place of an HTTP request."""

    patch: Any = None

    def selection(self) -> Any:
        return SimpleNamespace(patch=self.patch)

    def cache_partition(self) -> None:
        return None

    def engine_trace(self) -> None:
        return None

    def generation(self) -> Any:
        return contextlib.nullcontext()

    def weights(self) -> None:
        return None

    def sent(self) -> None:
        return None

    def mistaken(self) -> None:
        return None

    def lease(self, patch: Any) -> Any:
        return self

    def decided(self, *, is_met: bool, margin: float) -> None:
        return None

    def reject(self, error: Exception) -> Exception:
        return error

    def __enter__(self) -> "Gate":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    async def ready(self) -> None:
        return None

    def base_meter(self) -> "Gate":
        return self

    @property
    def meter(self) -> "Gate":
        return self

    @property
    def has_token(self) -> bool:
        return True

    def tokens(self, num_tokens: int) -> None:
        return None

    async def take(self, outputs: Any) -> Any:
        return await anext(outputs, None)
