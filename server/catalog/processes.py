"""The seam to the other processes that answer requests from one catalog, where the server has several.

The catalog asks ``OtherProcesses`` before anything of a change may show, and moves the pointer through it;
``server.frontends.leader`` implements it. ``NoOtherProcesses`` is for a server of one process. Invariant:
once ``moved`` is left, no process decides a request by what was served before.
"""

import contextlib
from collections.abc import Collection
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from server.versions.view import CatalogView, ServedPatch


class OtherProcesses(Protocol):
    """All other processes that decide requests by this catalog."""

    async def confirm(self, patch: ServedPatch) -> None:
        """Send each of them a content that the workers can hold; return once digest and length are confirmed.

        Raises:
            NotInStep: One did not. It answers nothing from now on, until it is in step again.
        """
        ...

    async def require_all(self) -> None:
        """Wait until each of them confirms that it is in step; called before an order is carried out.

        Raises:
            NotInStep: One did not; as for ``confirm``.
        """
        ...

    def moved(
        self, view: CatalogView, names: Collection[str], policy: bytes | None = None
    ) -> AbstractAsyncContextManager[None]:
        """Make ``view``, which differs in ``names``, hold for every process at once, and a policy with it.

        Entering hands it to each of them; leaving makes it the one that holds, in one step. The body makes it
        hold in this process, and waits for nothing. A process that does not take it in time answers nothing
        from then on, until it is in step again.
        """
        ...

    def closed(self, timeout_s: float) -> AbstractAsyncContextManager[None]:
        """Keep requests out of every process while the context lasts: none is inside, and none enters.

        Raises:
            StillInside: Some were after ``timeout_s``; requests enter again.
            NotInStep: A process of the server did not say so, or is not in step; requests enter again.
        """
        ...

    def note_loading(self, loading: frozenset[tuple[str, str]]) -> None:
        """Announce which versions are being loaded, so that requests for them are told to try again."""
        ...

    async def let_go(self, digest: str) -> bool:
        """Ask each of them to forget a content that is not served any more.

        Returns:
            Whether no process uses it. Where one does, its use is counted as in flight when this returns.
        """
        ...

    async def withdraw(self, digests: Collection[str]) -> None:
        """Make each of them end the requests that use these contents, with an error."""
        ...


class NoOtherProcesses:
    """There are no others: what serves where one process does everything."""

    async def confirm(self, patch: ServedPatch) -> None:
        """See ``OtherProcesses.confirm``."""

    async def require_all(self) -> None:
        """See ``OtherProcesses.require_all``."""

    def moved(
        self, view: CatalogView, names: Collection[str], policy: bytes | None = None
    ) -> AbstractAsyncContextManager[None]:
        """See ``OtherProcesses.moved``."""
        return contextlib.nullcontext()

    def closed(self, timeout_s: float) -> AbstractAsyncContextManager[None]:
        """See ``OtherProcesses.closed``."""
        return contextlib.nullcontext()

    def note_loading(self, loading: frozenset[tuple[str, str]]) -> None:
        """See ``OtherProcesses.note_loading``."""

    async def let_go(self, digest: str) -> bool:
        """See ``OtherProcesses.let_go``."""
        return True

    async def withdraw(self, digests: Collection[str]) -> None:
        """See ``OtherProcesses.withdraw``."""
