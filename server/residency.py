"""The seam to the workers: who holds which prefix tensors.

The catalog calls it, one call at a time; the engine implements it (``server/engine``); ``NullResidency``
stands in where there is no engine. Invariant: a digest that ``load`` returned for is held by *every* worker
until ``unload``.
"""

from typing import Protocol

import torch


class ResidencyError(RuntimeError):
    """A worker could not take, confirm or drop a patch; nothing of a failed ``load`` stays behind."""


class Residency(Protocol):
    """Puts the prefix tensors of a patch on the workers and takes them off again."""

    async def load(self, digest: str, kv: torch.Tensor) -> int:
        """Make ``digest`` resident on every worker.

        Args:
            digest: The content digest, ``sha256:`` and 64 hexadecimal digits.
            kv: ``[L, 2, N, H_kv, D]``, on the CPU; not mutated, not kept.

        Returns:
            Device bytes now held, added up over all workers. Only when every worker confirmed digest and
            shape.

        Raises:
            ResidencyError: A worker refused, or did not answer. No worker holds ``digest`` then.
        """
        ...

    async def unload(self, digest: str) -> None:
        """Drop ``digest`` from every worker; the catalog calls it when the last request that used it is done.

        Raises:
            ResidencyError: A worker did not confirm.
        """
        ...


class NullResidency:
    """Counts what an engine would hold, and holds nothing."""

    def __init__(self) -> None:
        self.resident: dict[str, int] = {}

    async def load(self, digest: str, kv: torch.Tensor) -> int:
        """See ``Residency.load``."""
        self.resident[digest] = kv.numel() * kv.element_size()
        return self.resident[digest]

    async def unload(self, digest: str) -> None:
        """See ``Residency.unload``."""
        if self.resident.pop(digest, None) is None:
            raise ResidencyError(f"digest: {digest} is not resident")
