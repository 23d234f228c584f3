"""The seam to the workers: who holds which tensors of which patch.

The catalog calls ``Residency``, one change at a time; ``server.memory.tiers`` implements it over ``Workers``,
which the engine implements (``server/engine``). ``NullResidency`` stands in where there is no engine.
Invariants: a digest that ``load`` returned for was confirmed by *every* worker; from ``ready`` until the last
request of the digest is over, every worker holds its tensors.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from patches.format import Patch
from server.memory.payload import Payload


class ResidencyError(RuntimeError):
    """A worker could not take, confirm or drop a patch; nothing of a failed ``load`` stays behind."""


class Workers(Protocol):
    """All workers of one engine, each with its part of every patch in its own host memory."""

    async def check(self, payload: Payload) -> int:
        """Ask every worker whether it could hold ``payload``; no tensor is sent.

        Returns:
            The bytes that it would take, added up over all workers.

        Raises:
            ResidencyError: A worker could not, or confirmed something else.
        """
        ...

    async def load(self, payload: Payload, *, is_pinned: bool = False) -> int:
        """Put ``payload`` on every worker; the engine continues its steps meanwhile.

        Args:
            payload: Its tensors are not kept.
            is_pinned: Its device slot is the last to be given up.

        Returns:
            The bytes held, added up over all workers. Only when every worker confirmed digest and layout.

        Raises:
            ResidencyError: A worker refused, or did not answer. No worker holds the digest then.
        """
        ...

    async def unload(self, digest: str) -> None:
        """Take ``digest`` off every worker.

        Raises:
            ResidencyError: A worker did not confirm.
        """
        ...


class Residency(Protocol):
    """Knows the tensors of every served patch, and has them on the workers when they are needed."""

    def bind(self, must_stay: Callable[[str], bool]) -> None:
        """Ask ``must_stay`` from now on whether memory may not give a digest up. Called once.

        That is so while requests that use it are in flight, and where the folder has no file of it.
        """
        ...

    async def load(self, patch: Patch, path: Path) -> int:
        """Make the digest of ``patch`` one that requests can wait for with ``ready``.

        Args:
            patch: Its tensors are not mutated, and not kept.
            path: The file that it was just read from.

        Returns:
            Bytes of the tensors, added up over all workers. Only when all confirmed digest and layout.

        Raises:
            ResidencyError: A worker refused, or did not answer. No worker holds the digest then.
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

    async def load(self, patch: Patch, path: Path) -> int:
        """See ``Residency.load``."""
        self.resident[patch.digest] = Payload.of(patch).nbytes
        return self.resident[patch.digest]

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
