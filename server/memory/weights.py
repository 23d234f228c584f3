"""The seam to the weights of the engine: which weight patch is written into the model, if any.

``server.catalog.weights`` calls it while no request runs; the engine implements it (``server/engine``), and
``NullWeights`` stands in where there is none.
"""

from typing import Protocol


class WeightsNotChanged(RuntimeError):
    """The engine could not be stopped, or a worker did not write; all weights are as they were before."""


class EngineWeights(Protocol):
    """The weights of every worker of one engine; between two calls all workers hold the same ones."""

    async def write(self, digest: str | None, num_changed: int, *, timeout_s: float) -> None:
        """Stop the engine once it is idle, and have every worker write; ``resume`` has to follow.

        Args:
            digest: A weight patch that every worker has prepared; ``None`` for the model's own weights.
            num_changed: Weights that it changes, which every worker has to confirm.
            timeout_s: How long the engine may take to become idle.

        Raises:
            WeightsNotChanged: It did not become idle, or not every worker wrote.
        """
        ...

    async def resume(self) -> None:
        """Have the engine go on, with whatever is written."""
        ...


class NullWeights:
    """Remembers what an engine would have written."""

    def __init__(self) -> None:
        self.written: str | None = None
        self.is_paused = False

    async def write(self, digest: str | None, num_changed: int, *, timeout_s: float) -> None:
        """See ``EngineWeights.write``."""
        self.is_paused, self.written = True, digest

    async def resume(self) -> None:
        """See ``EngineWeights.resume``."""
        self.is_paused = False
