"""One order to a fleet: what it makes of the revision that is in force, and its publication."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from server.fleet import changes
from server.fleet.changes import Names
from server.fleet.document import Document, moment_of
from server.fleet.publisher import Published, Publisher

#: Seconds from publishing to holding everywhere: servers look every two, and need a while to load.
AHEAD_S = 6.0

#: What an order does to a document and its names.
Change = Callable[[Document], tuple[Document, Names]]


@dataclass(frozen=True, slots=True)
class Carried:
    """An order that was carried out, or would be."""

    before: Document
    after: Document
    #: When what was published before was to hold, where this order makes it hold earlier.
    hastened_from: str | None = None

    @property
    def is_nothing(self) -> bool:
        """Whether nothing changes, and nothing was published."""
        return self.before is self.after


def carry_out(
    publisher: Publisher,
    published: Published,
    change: Change,
    *,
    ahead_s: float = 0.0,
    keep: int = changes.KEEP_REVISIONS,
    files: Mapping[str, bytes] | None = None,
    is_dry: bool = False,
    is_forced: bool = False,
) -> Carried:
    """Publish what ``change`` makes of what is published.

    Args:
        publisher: Writes it.
        published: What it follows.
        change: The order.
        ahead_s: Seconds until it is to hold; 0 for as soon as a server hears of it.
        keep: Earlier revisions that it says the meanings of.
        files: Target -> content, of those that the store does not have yet.
        is_dry: Publish nothing.
        is_forced: Publish a revision even where it changes nothing.

    Raises:
        ChangeRefused: The catalog is against it.
        DocumentInvalid: No server would take it.
        FleetError: Another publisher was faster, or a key is missing.
        StoreError: The store can't be written.
    """
    now_s = time.time()
    first = published.document or changes.nothing(moment_of(now_s))
    before, names = change(first)
    # What is still to come before holds no earlier for what follows it, unless that can't wait.
    pending_s = first.effective_s if first.effective_s is not None and first.effective_s > now_s else 0.0
    effective_at = moment_of(max(now_s + ahead_s, pending_s)) if ahead_s > 0 else None
    document = changes.next_revision(
        before, names, published_at=moment_of(now_s), effective_at=effective_at, keep=keep
    )
    is_new = published.stamped is None or pending_s > 0
    if not (is_forced or is_new) and _is_alike(first, document):
        return Carried(first, first)
    if not is_dry:
        document = publisher.publish(published, document, files or {})
    is_hastened = pending_s > 0 and document.effective_at is None
    return Carried(first, document, first.effective_at if is_hastened else None)


def _is_alike(one: Document, other: Document) -> bool:
    """Return whether two revisions say the same, whatever they remember of earlier ones."""
    said = replace(other, revision=one.revision, retained=one.retained)
    return replace(said, published_at=one.published_at, effective_at=one.effective_at) == one
