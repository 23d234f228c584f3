"""One content on the workers, as the catalog books it, and what an operator's order is decided on."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from server.activation import NameRecord, Target
from server.catalog_view import ServedPatch


class Use(Protocol):
    """One generation that uses a content."""

    def withdraw(self) -> None:
        """End it with an error, now."""


class Resident:
    """One content on the workers."""

    __slots__ = (
        "is_barred",
        "is_retired",
        "is_unloading",
        "is_withdrawn",
        "num_in_flight",
        "patch",
        "paths",
        "uses",
    )

    def __init__(self, patch: ServedPatch) -> None:
        self.patch = patch
        #: Files that hold this content now; without one it is drained, unless a record keeps it.
        self.paths: set[Path] = set()
        self.num_in_flight = 0
        #: Revoked, or nobody trusted vouches for it any more: no file and no order lets it serve.
        self.is_barred = False
        #: Nothing keeps it any more, and the log says so.
        self.is_retired = False
        self.is_unloading = False
        #: An operator took it from its requests: those that are about to use it get an error too.
        self.is_withdrawn = False
        #: The generations that run; a request in flight may have none yet, or several.
        self.uses: set[Use] = set()

    def withdraw(self) -> None:
        """End every request that uses it with an error."""
        self.is_withdrawn = True
        for use in tuple(self.uses):
            use.withdraw()

    @property
    def target(self) -> Target:
        """What records call it."""
        return Target(self.patch.version, self.patch.digest)


@dataclass(frozen=True, slots=True)
class Situation:
    """What an operator's order about one name is decided on."""

    record: NameRecord
    #: Contents that files hold.
    files: tuple[Target, ...]
    #: Contents on the workers that can serve.
    resident: tuple[Target, ...]

    @classmethod
    def of(cls, record: NameRecord, residents: Iterable[Resident]) -> "Situation":
        """Take what can serve of ``residents``, all of one name."""
        usable = [r for r in residents if not r.is_unloading and not r.is_barred]
        return cls(record, tuple(r.target for r in usable if r.paths), tuple(r.target for r in usable))
