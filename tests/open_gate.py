"""A gate that selects what the program says, for programs that drive an engine without HTTP."""

import contextlib
from types import SimpleNamespace
from typing import Any


class OpenGate:
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

    def __enter__(self) -> "OpenGate":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    async def ready(self) -> None:
        return None

    def base_meter(self) -> "OpenGate":
        return self

    @property
    def meter(self) -> "OpenGate":
        return self

    #: As a lease that no operator ends, and as a meter that has seen a token.
    is_withdrawn, token_s = False, 0.0
    waiting: Any = None

    def require_not_withdrawn(self) -> None:
        return None

    def tokens(self, num_tokens: int) -> None:
        return None
