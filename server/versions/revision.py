"""What a view says of the fleet's catalog that it follows. Pure."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from patches.headers import AS_OF_HEADER, REVISION_HEADER
from server.errors import CatalogStale, MalformedPatchName, NotInStep
from server.versions.activation import Canary, Target

#: Seconds that a server may take from the instant of a revision, or from hearing of one that has none.
GRACE_S = 3.0

_NUMBER = re.compile(rb"[1-9][0-9]{0,14}")
_STALE = "the lease of the fleet's catalog has run out, so that nothing says what may be served; try again"


@dataclass(frozen=True, slots=True)
class FleetMeaning:
    """What a bare name meant."""

    active: Target
    canary: Canary | None = None


@dataclass(frozen=True, slots=True)
class FleetRevision:
    """Where this server stands in the catalog of its fleet."""

    #: The revision that the view is of.
    number: int
    #: The newest one that it has verified: above ``number`` while that is loaded, or waits for its instant.
    heard: int
    #: When the lease ends, by the monotonic clock of this machine, in seconds.
    lease_ends_s: float
    #: When ``heard`` is to hold, by the same clock.
    due_s: float = 0.0
    #: Whether requests that need no required patch are answered after that.
    may_be_stale: bool = True
    #: Earlier revision -> the names that meant something else then; ``None`` where there was no such name.
    retained: Mapping[int, Mapping[str, FleetMeaning | None]] = field(default_factory=dict)
    #: ``(name, version)`` that the fleet has and this server does not serve yet.
    coming: frozenset[tuple[str, str]] = frozenset()

    def require_current(self, now_s: float) -> None:
        """Return where nothing is overdue.

        Args:
            now_s: The monotonic clock.

        Raises:
            NotInStep: A newer revision should hold by now.
            CatalogStale: The lease has run out.
        """
        if self.heard > self.number and now_s > self.due_s + GRACE_S:
            raise NotInStep(f"revision {self.heard} of the catalog should be in force here, {self.number} is")
        if now_s >= self.lease_ends_s:
            raise CatalogStale(_STALE)

    def require_lease(self, *, needs_patch: bool) -> None:
        """Return where a request may be answered although the lease has run out.

        Args:
            needs_patch: The policy lets no base model answer the caller.

        Raises:
            CatalogStale: It may not: what it needs may have been taken back.
        """
        if needs_patch or not self.may_be_stale:
            raise CatalogStale(_STALE)


def parse_revision_header(values: Sequence[bytes]) -> int:
    """Read all lines of the header that names a revision.

    Raises:
        MalformedPatchName: There are several, or it is no positive number.
    """
    text = values[0].strip(b" \t")
    if len(values) > 1 or not _NUMBER.fullmatch(text):
        raise MalformedPatchName(
            f"{AS_OF_HEADER}: expected one line with a revision, as {REVISION_HEADER} of an answer names it",
            param=AS_OF_HEADER,
        )
    return int(text)
