"""The seam to the workers: who holds which prefix tensors.

The catalog calls ``Residency``, one change at a time; ``server.memory.tiers`` implements it over ``Workers``,
which the engine implements (``server/engine``). ``NullResidency`` stands in where there is no engine.
Invariants: a digest that ``load`` returned for was confirmed by *every* worker; from ``ready`` until the last
request of the digest is over, every worker holds its tensors.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch


class ResidencyError(RuntimeError):
    """A worker could not take, confirm or drop a patch; nothing of a failed ``load`` stays behind."""


class Workers(Protocol):
    """All workers of one engine, each with its part of a prefix in its own host memory."""

    async def check(self, digest: str, kv: torch.Tensor) -> int:
        """Ask every worker whether it could hold ``kv`` under ``digest``; no tensor is sent.

        Returns:
            The bytes that it would take, added up over all workers.

        Raises:
            ResidencyError: A worker could not, or confirmed something else.
        """
        ...

    async def load(self, digest: str, kv: torch.Tensor, *, is_pinned: bool = False) -> int:
        """Put ``kv`` on every worker; the engine continues its steps meanwhile.

        Args:
            digest: The content digest, ``sha256:`` and 64 hexadecimal digits.
            kv: ``[L, 2, N, H_kv, D]``, on the CPU; not mutated, not kept.
            is_pinned: Its device slot is the last to be given up.

        Returns:
            The bytes held, added up over all workers. Only when every worker confirmed digest and shape.

        Raises:
            ResidencyError: A worker refused, or did not answer. No worker holds ``digest`` then.
        """
        ...

    async def unload(self, digest: str) -> None:
        """Take ``digest`` off every worker.

        Raises:
            ResidencyError: A worker did not confirm.
        """
        ...


class Residency(Protocol):
    """Knows the prefix tensors of every served patch, and has them on the workers when they are needed."""

    def bind(self, must_stay: Callable[[str], bool]) -> None:
        """Ask ``must_stay`` from now on whether memory may not give a digest up. Called once.

        That is so while requests that use it are in flight, and where the folder has no file of it.
        """
        ...

    async def load(self, digest: str, kv: torch.Tensor, *, name: str, path: Path) -> int:
        """Make ``digest`` one that requests can wait for with ``ready``.

        Args:
            digest: The content digest, ``sha256:`` and 64 hexadecimal digits.
            kv: ``[L, 2, N, H_kv, D]``, on the CPU; not mutated, not kept.
            name: The patch's name.
            path: The file that was just read.

        Returns:
            Bytes of the tensors, added up over all workers. Only when all of them confirmed digest and shape.

        Raises:
            ResidencyError: A worker refused, or did not answer. No worker holds ``digest`` then.
        """
        ...

    async def ready(self, digest: str) -> None:
        """Return once every worker holds the tensors of ``digest``; they stay while it must stay.

        Raises:
            ResidencyError: They are unavailable.
        """
        ...

    def is_ready(self, digest: str) -> bool:
        """Return whether ``ready`` would return at once."""
        ...

    def idle(self, digest: str) -> None:
        """Note that the last request that used ``digest`` is over, for now."""
        ...

    async def unload(self, digest: str) -> None:
        """Forget ``digest``; the catalog calls it when the last request that used it is done.

        Raises:
            ResidencyError: A worker did not confirm.
        """
        ...


class NullResidency:
    """Counts what an engine would hold, and holds nothing."""

    def __init__(self) -> None:
        self.resident: dict[str, int] = {}
        self.must_stay: Callable[[str], bool] = lambda digest: False

    def bind(self, must_stay: Callable[[str], bool]) -> None:
        """See ``Residency.bind``."""
        self.must_stay = must_stay

    async def load(self, digest: str, kv: torch.Tensor, *, name: str, path: Path) -> int:
        """See ``Residency.load``."""
        self.resident[digest] = kv.numel() * kv.element_size()
        return self.resident[digest]

    async def ready(self, digest: str) -> None:
        """See ``Residency.ready``."""
        if digest not in self.resident:
            raise ResidencyError(f"digest: {digest} is not resident")

    def is_ready(self, digest: str) -> bool:
        """See ``Residency.is_ready``."""
        return digest in self.resident

    def idle(self, digest: str) -> None:
        """See ``Residency.idle``."""

    async def unload(self, digest: str) -> None:
        """See ``Residency.unload``."""
        if self.resident.pop(digest, None) is None:
            raise ResidencyError(f"digest: {digest} is not resident")
