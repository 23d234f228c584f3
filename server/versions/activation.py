"""Which version of a name is active, and how that came about. Pure: no I/O, no clock, no tensors.

A name has one record. Files in the folder and calls of operators both change it, by these rules:

1. A file with a higher version than the active one becomes active, unless the name is pinned, or the version
   is not above every version that was ever rolled back from.
2. The file of the active version is removed: the highest version that was never rolled back from takes its
   place. Where an operator made active what no file holds, or pinned the name, nothing takes its place.
3. ``activate`` pins; ``follow`` takes the pin away; ``rollback`` goes back to the version that was active
   before, and what it leaves never becomes active again by rules 1 and 2.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from patches.names import version_key
from server.versions.sticky import StickyKey

#: Changes of a name that its record remembers, latest first.
MAX_HISTORY = 32

#: Versions that a rollback can go back to, as far as they are still on the workers.
MAX_PREVIOUS = 8

#: Versions that were rolled back from: the highest are remembered, which is what rule 1 looks at.
MAX_ROLLED_BACK = 256

#: Who caused a change that no call asked for.
BY_FOLDER = "folder"

#: Everything that can be the cause of a change.
ACTIONS = (
    "folder",
    "activate",
    "follow",
    "rollback",
    "hold",
    "remove",
    "canary",
    "promote",
    "abort",
    "catalog",
)


@dataclass(frozen=True, slots=True)
class Target:
    """One content under one version."""

    version: str
    #: ``sha256:`` and 64 hexadecimal digits.
    digest: str


#: Fields of ``CanaryRules`` for which a version needs a condition.
CONDITION_RULES = ("min_condition_met", "max_condition_met", "max_condition_change")


@dataclass(frozen=True, slots=True)
class CanaryRules:
    """What ends a canary by itself; ``None`` switches a rule off."""

    #: Share of requests that may fail, 0 to 1.
    max_error_rate: float | None = None
    #: What the 90th percentile of the time to the first token may be.
    max_first_token_s: float | None = None
    #: Share of the requests whose condition is decided that it has to be met for, 0 to 1.
    min_condition_met: float | None = None
    #: And for which it may be.
    max_condition_met: float | None = None
    #: By how much that share may differ from the stable version's, either way.
    max_condition_change: float | None = None
    #: How long it has to keep the rules to be promoted.
    promote_after_s: float | None = None
    #: Fewer are never judged.
    min_requests: int = 20
    #: What is older is not judged.
    window_s: float = 300.0

    def limits(self) -> Iterator[tuple[str, float]]:
        """Yield the rules that are switched on, by the name of their field, with their limits."""
        yield "min_requests", self.min_requests
        for rule in ("max_error_rate", "max_first_token_s", *CONDITION_RULES, "promote_after_s"):
            limit = getattr(self, rule)
            if limit is not None:
                yield rule, limit

    @property
    def about_condition(self) -> tuple[str, ...]:
        """The rules about how often the condition is met that are switched on."""
        return tuple(rule for rule in CONDITION_RULES if getattr(self, rule) is not None)


@dataclass(frozen=True, slots=True)
class Canary:
    """A content that a share of the requests gets where they name the bare name."""

    target: Target
    #: Above 0, at most 1.
    share: float
    #: What it sticks to; see ``server.versions.sticky``.
    key: str
    rules: CanaryRules
    by: str
    #: Unix time in seconds.
    at_s: float
    #: Whether the name was pinned before.
    was_pinned: bool

    def __post_init__(self) -> None:
        StickyKey.parse(self.key)

    @property
    def sticks_to(self) -> StickyKey:
        """What it sticks to."""
        return StickyKey.parse(self.key)


@dataclass(frozen=True, slots=True)
class Change:
    """One entry of a name's history."""

    #: Unix time in seconds.
    at_s: float
    #: One of ``ACTIONS``.
    action: str
    #: The name of the admin key, or ``BY_FOLDER``.
    by: str
    #: What was active from then on.
    active: Target | None
    is_pinned: bool
    #: Why, where a rule decided.
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class NameRecord:
    """Everything that is remembered about a name."""

    active: Target | None = None
    #: No file changes what is active.
    is_pinned: bool = False
    #: ``active`` serves by an operator's call although no file holds it.
    is_held: bool = False
    #: What was active before, latest first; without what was rolled back from.
    previous: tuple[Target, ...] = ()
    rolled_back: tuple[Target, ...] = ()
    #: While it runs, no file changes what is active.
    canary: Canary | None = None
    #: ``active`` is a weight patch, which is in force for the whole server.
    is_of_weights: bool = False
    history: tuple[Change, ...] = ()

    @property
    def needs_no_file(self) -> bool:
        """Whether ``active`` still serves where no file holds it."""
        return self.active is not None and (self.is_pinned or self.is_held)

    @property
    def active_since_s(self) -> float | None:
        """Unix time at which ``active`` became so, as far back as the history goes."""
        since_s = None
        for change in self.history:
            if change.active != self.active:
                break
            since_s = change.at_s
        return since_s

    def targets(self) -> Iterator[Target]:
        """Yield every content that the record names."""
        if self.active is not None:
            yield self.active
        if self.canary is not None:
            yield self.canary.target
        yield from self.previous
        yield from self.rolled_back
        yield from (change.active for change in self.history if change.active is not None)

    def kept(self, num_previous: int) -> tuple[Target, ...]:
        """Return what stays on the workers although no file may hold it."""
        if self.active is None:
            return ()
        active = (self.active,) if self.needs_no_file else ()
        return (*active, *self._tried(), *self.previous[:num_previous])

    def copied(self, num_previous: int) -> tuple[Target, ...]:
        """Return what the state folder copies: what is kept now, or would be after one more change."""
        if self.active is None:
            return ()
        return (self.active, *self._tried(), *self.previous[:num_previous])

    def _tried(self) -> tuple[Target, ...]:
        return (self.canary.target,) if self.canary is not None else ()


@dataclass(frozen=True, slots=True)
class Situation:
    """What an operator's order about one name is decided on."""

    record: NameRecord
    #: Contents that files hold.
    files: tuple[Target, ...]
    #: Contents on the workers that can serve.
    resident: tuple[Target, ...]
    #: The name's contents are weight patches.
    is_of_weights: bool = False


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a record changes: goes into the history."""

    action: str
    by: str
    at_s: float
    reason: str | None = None


def follow_folder(record: NameRecord, files: Collection[Target]) -> Target | None:
    """Return what is active now that ``files`` are the contents that files of the name hold."""
    if record.is_pinned:
        return record.active
    eligible = [target for target in files if target not in record.rolled_back]
    stays = record.active
    if stays is None or not (record.is_held or stays in files):
        stays = _successor(stays, eligible)
    if stays is None:
        return None
    floor = max(version_key(t.version) for t in (stays, *record.rolled_back))
    higher = [target for target in eligible if version_key(target.version) > floor]
    return _highest(higher) or stays


def _successor(gone: Target | None, eligible: Collection[Target]) -> Target | None:
    # New content under the same version replaces the old, whatever else is there.
    same = [target for target in eligible if gone is not None and target.version == gone.version]
    return _highest(same or eligible)


def _highest(targets: Collection[Target]) -> Target | None:
    return max(targets, key=lambda t: version_key(t.version), default=None)


def with_files(record: NameRecord, files: Collection[Target], cause: Cause) -> NameRecord:
    """Return the record after a look at ``files``; the same object where nothing changed."""
    active = follow_folder(record, files)
    if active == record.active:
        is_held = record.is_held and active not in files
        return record if is_held == record.is_held else replace(record, is_held=is_held)
    changed = replace(record, active=active, is_held=False, previous=_previous(record, active))
    return _noted(changed, cause)


def activated(record: NameRecord, target: Target, cause: Cause, *, has_file: bool) -> NameRecord:
    """Return the record after an operator's order to make ``target`` active, and to keep it so."""
    changed = replace(
        record,
        active=target,
        is_pinned=True,
        is_held=not has_file,
        canary=None,
        previous=_previous(record, target),
        rolled_back=tuple(t for t in record.rolled_back if t != target),
    )
    return _noted(changed, cause)


def followed(record: NameRecord, files: Collection[Target], cause: Cause) -> NameRecord:
    """Return the record after an operator's order to let the folder decide again."""
    unpinned = replace(record, is_pinned=False, is_held=False, canary=None)
    active = follow_folder(unpinned, files)
    return _noted(replace(unpinned, active=active, previous=_previous(record, active)), cause)


def rolled_back(record: NameRecord, target: Target, cause: Cause, *, has_file: bool) -> NameRecord:
    """Return the record after an operator's order to go back to ``target``, one of ``record.previous``."""
    record = _without_canary(record)
    position = record.previous.index(target)
    # What lay between is left behind too, although no rollback could reach it.
    left = [*([record.active] if record.active is not None else []), *record.previous[:position]]
    changed = replace(
        record,
        active=target,
        is_held=not has_file,
        previous=record.previous[position + 1 :],
        rolled_back=tuple(t for t in _barred(record, left) if t != target),
    )
    return _noted(changed, cause)


def taken_back(record: NameRecord, cause: Cause) -> NameRecord:
    """Return the record after an operator's order to leave ``active`` with nothing in its place."""
    left = [record.active] if record.active is not None else []
    changed = replace(record, active=None, is_pinned=False, is_held=False, rolled_back=_barred(record, left))
    return _noted(changed, cause)


def held(record: NameRecord, target: Target, cause: Cause) -> NameRecord:
    """Return the record after an operator's order to load ``target`` and never make it active by itself."""
    if target == record.active or target in record.rolled_back:
        return record
    return _noted(replace(record, rolled_back=_barred(record, [target])), cause)


def canaried(record: NameRecord, canary: Canary, cause: Cause) -> NameRecord:
    """Return the record after an operator's order to try a content on a share of the requests."""
    return _noted(replace(record, canary=canary, is_pinned=True), cause)


def adopted(record: NameRecord, active: Target | None, canary: Canary | None, cause: Cause) -> NameRecord:
    """Return the record after the fleet's catalog said what the name means; no file changes that."""
    if record.is_pinned and (record.active, record.canary) == (active, canary):
        return record
    changed = replace(
        record,
        active=active,
        is_pinned=True,
        is_held=False,
        canary=canary,
        previous=_previous(record, active),
        rolled_back=(),
    )
    return _noted(changed, cause)


def canary_ended(record: NameRecord, cause: Cause, *, is_promoted: bool, has_file: bool) -> NameRecord:
    """Return the record after the end of a canary: active from now on, or never by itself."""
    assert record.canary is not None
    target = record.canary.target
    record = _without_canary(record)
    if not is_promoted:
        return _noted(replace(record, rolled_back=_barred(record, [target])), cause)
    changed = replace(
        record,
        active=target,
        is_held=not has_file,
        previous=_previous(record, target),
        rolled_back=tuple(t for t in record.rolled_back if t != target),
    )
    return _noted(changed, cause)


def removed(
    record: NameRecord, gone: Collection[Target], files: Collection[Target], cause: Cause
) -> NameRecord:
    """Return the record after an operator's order to drop ``gone``; ``files`` are those that remain."""
    was_active = record.active in gone
    if was_active or (record.canary is not None and record.canary.target in gone):
        record = _without_canary(record)
    without = replace(
        record,
        active=None if was_active else record.active,
        is_pinned=record.is_pinned and not was_active,
        is_held=record.is_held and not was_active,
        previous=tuple(target for target in record.previous if target not in gone),
    )
    active = follow_folder(without, files)
    previous = without.previous if active == record.active else _previous(without, active)
    return _noted(replace(without, active=active, previous=previous), cause)


def removals(
    record: NameRecord, gone: Collection[Target], files: Collection[Target], cause: Cause
) -> tuple[NameRecord, NameRecord]:
    """Return the records to write before and after the files of ``gone`` are removed.

    A process that is killed in between leaves files that were to go; by the first record, none of them ever
    serves by itself.
    """
    after = removed(record, gone, files, cause)
    return (replace(after, rolled_back=_barred(after, gone)) if gone else after), after


def _without_canary(record: NameRecord) -> NameRecord:
    if record.canary is None:
        return record
    return replace(record, canary=None, is_pinned=record.canary.was_pinned)


def _barred(record: NameRecord, left: Collection[Target]) -> tuple[Target, ...]:
    barred = sorted(
        {*record.rolled_back, *left}, key=lambda t: (version_key(t.version), t.digest), reverse=True
    )
    return tuple(barred[:MAX_ROLLED_BACK])


def _previous(record: NameRecord, active: Target | None) -> tuple[Target, ...]:
    before = [record.active] if record.active is not None else []
    stack = [target for target in dict.fromkeys([*before, *record.previous]) if target != active]
    return tuple(stack[:MAX_PREVIOUS])


def _noted(record: NameRecord, cause: Cause) -> NameRecord:
    change = Change(cause.at_s, cause.action, cause.by, record.active, record.is_pinned, cause.reason)
    return replace(record, history=(change, *record.history)[:MAX_HISTORY])
