"""What operators may order: which version is active, and back.

Each order is carried out to its end once it began, also where the caller hangs up: the state folder and the
process never disagree. Orders about the catalog run one at a time, with the changes of the folder.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from typing import Any, TypeVar

from server.catalog.catalog import Catalog
from server.catalog.weights import Effects
from server.errors import AdminCallInvalid, NothingToRollBack, OrderRefused, PatchNotFound, StateNotSaved
from server.versions.activation import (
    Canary,
    CanaryRules,
    Cause,
    NameRecord,
    Situation,
    Target,
    activated,
    canaried,
    canary_ended,
    followed,
    held,
    rolled_back,
    taken_back,
)
from server.versions.canary import Verdict

T = TypeVar("T")

#: Shortest beginning of a digest that an order may name, as in a request's header.
_MIN_DIGEST_LENGTH = len("sha256:") + 12


class Operator:
    """Carries out orders on one catalog."""

    def __init__(self, catalog: Catalog, *, clock: Callable[[], float] = time.time) -> None:
        self._catalog = catalog
        self._clock = clock
        self._running: set[asyncio.Task[Any]] = set()

    async def activate(self, name: str, version: str, by: str) -> NameRecord:
        """Make ``version`` what the bare name means, and pin it: no file changes that.

        Args:
            name: The patch.
            version: A version, or ``sha256:`` and the beginning of a digest.
            by: Name of the admin key.

        Raises:
            PatchNotFound: It is not on the workers, and no file of it waits for this order.
            StateNotSaved: Nothing was changed.
        """

        def decide(situation: Situation) -> NameRecord:
            target = find_target(situation.resident, name, version)
            if situation.record.active == target and situation.record.is_pinned:
                return situation.record
            self._require_fitting(target)
            has_file = target in situation.files
            return activated(situation.record, target, self._cause("activate", by), has_file=has_file)

        async def carry_out() -> NameRecord:
            # A signed bound keeps a downgrade's file out; the order may have it.
            try:
                await self._catalog.permit_downgrade(name, version)
            except OSError as error:
                message = f"the permission could not be saved ({error.strerror or error})"
                raise StateNotSaved(message) from error
            return await self._catalog.change(name, decide)

        return await self._carry_out("activate", name, by, carry_out())

    def effects(self, name: str, version: str) -> tuple[Target, Effects]:
        """Return what ``activate`` would make active, and what it would do to other patches; changes nothing.

        Raises:
            PatchNotFound: It is not on the workers.
            OrderRefused: The order would be refused, whatever else is served.
        """
        situation = self._catalog.publication.situation(name)
        target = find_target(situation.resident, name, version)
        if not situation.is_of_weights:
            return target, Effects([], [], [])
        record = activated(situation.record, target, self._cause("activate", ""), has_file=True)
        self._catalog.weights.require_allowed(name, record)
        return target, self._catalog.effects(self._catalog.residents[target.digest].patch)

    async def follow(self, name: str, by: str) -> NameRecord:
        """Remove the pin: the files decide again.

        Raises:
            PatchNotFound: Nothing is known about ``name``.
            OrderRefused: No file could be active, so the name would mean nothing.
            StateNotSaved: Nothing was changed.
        """

        def decide(situation: Situation) -> NameRecord:
            require_known(situation, name)
            record = followed(situation.record, situation.files, self._cause("follow", by))
            if record.active is None:
                raise OrderRefused(f"no file of '{name}' could become active; nothing was changed")
            return record

        return await self._carry_out("follow", name, by, self._catalog.change(name, decide))

    async def rollback(self, name: str, by: str, *, expected: str | None = None) -> NameRecord:
        """Go back to what was active before. Reads no file of the folder.

        Args:
            name: The patch.
            by: Name of the admin key.
            expected: The version to leave: where another one is active, another order came first.

        Raises:
            PatchNotFound: Nothing is known about ``name``.
            OrderRefused: Another version than ``expected`` is active.
            NothingToRollBack: What was active before is not on the workers any more.
            StateNotSaved: Nothing was changed.
        """

        def decide(situation: Situation) -> NameRecord:
            require_known(situation, name)
            record = situation.record
            active = record.active.version if record.active is not None else None
            if expected is not None and expected != active:
                raise OrderRefused(f"from: expected {active}, which is active, got {expected}")
            usable = (t for t in record.previous if t in situation.resident and self._may_serve(t))
            target = next(usable, None)
            if target is None and situation.is_of_weights and record.active is not None:
                return taken_back(record, self._cause("rollback", by))
            if target is None:
                raise NothingToRollBack(f"no version of '{name}' that was active before is loaded")
            has_file = target in situation.files
            return rolled_back(record, target, self._cause("rollback", by), has_file=has_file)

        return await self._carry_out("rollback", name, by, self._catalog.change(name, decide))

    async def start_canary(
        self, name: str, version: str, by: str, *, share: float, key: str, rules: CanaryRules
    ) -> NameRecord:
        """Serve ``version`` to a share of the requests that name the bare name.

        Raises:
            PatchNotFound: It is not on the workers.
            OrderRefused: It is active, nothing is, another canary runs, or a rule looks at a condition that
                a version does not have.
            StateNotSaved: Nothing was changed.
        """

        def decide(situation: Situation) -> NameRecord:
            record = situation.record
            target = find_target(situation.resident, name, version)
            if situation.is_of_weights:
                raise OrderRefused("weights are those of the whole server: a weight patch can have no canary")
            if record.active is None or record.active == target:
                raise OrderRefused(f"'{name}' has no other active version that a canary could stand beside")
            if record.canary is not None and record.canary.target != target:
                raise OrderRefused(f"the canary {record.canary.target.version} runs; end it first")
            self._require_fitting(target)
            self._require_conditions(name, rules, target, record.active)
            was_pinned = record.canary.was_pinned if record.canary is not None else record.is_pinned
            cause = self._cause("canary", by)
            canary = Canary(target, share, key, rules, by, cause.at_s, was_pinned)
            return canaried(record, canary, cause)

        return await self._carry_out("canary", name, by, self._catalog.change(name, decide))

    async def end_canary(
        self,
        name: str,
        verdict: Verdict,
        by: str,
        *,
        expected: Target | None = None,
        reason: str | None = None,
    ) -> NameRecord:
        """Promote a canary to the active version, or abort it: it never becomes active by itself then.

        Raises:
            OrderRefused: No canary runs, or not the expected one.
            StateNotSaved: Nothing was changed.
        """

        def decide(situation: Situation) -> NameRecord:
            record = situation.record
            if record.canary is None or expected not in (None, record.canary.target):
                raise OrderRefused(f"'{name}' has no such canary")
            target = record.canary.target
            if verdict == "promote" and target not in situation.resident:
                raise OrderRefused(f"the canary {target.version} is not loaded any more; abort it")
            if verdict == "promote":
                self._require_fitting(target)
            cause = Cause(verdict, by, self._clock(), reason)
            has_file = target in situation.files
            return canary_ended(record, cause, is_promoted=verdict == "promote", has_file=has_file)

        return await self._carry_out(verdict, name, by, self._catalog.change(name, decide))

    def holder(self, by: str) -> Callable[[str, Target], Awaitable[None]]:
        """Return a callback that orders a content, before it is loaded, never to become active by itself."""

        async def hold(name: str, target: Target) -> None:
            cause = self._cause("hold", by)
            order = self._catalog.change(name, lambda s: held(s.record, target, cause))
            await self._carry_out("hold", name, by, order)

        return hold

    async def remove(
        self, name: str, version: str | None, by: str, *, is_forced: bool = False
    ) -> tuple[NameRecord, int]:
        """Drop a version, or all of them, with their files. What runs is waited for, or ended.

        Args:
            name: The patch.
            version: As for ``activate``; ``None`` for every version.
            by: Name of the admin key.
            is_forced: End the requests that use it with an error.

        Returns:
            The record, and how many requests were in flight.

        Raises:
            PatchNotFound: Nothing of it is on the workers or among the files.
            OrderRefused: A file can't be removed; nothing was changed.
            StateNotSaved: Nothing was changed.
        """

        def choose(situation: Situation) -> Collection[Target]:
            if version is None:
                require_known(situation, name)
                return situation.resident
            return find_targets(situation.resident, name, version)

        async def carry_out() -> tuple[NameRecord, int]:
            record, leaving = await self._catalog.remove(name, version, choose, self._cause("remove", by))
            num_in_flight = sum(resident.num_in_flight for resident in leaving)
            if is_forced:
                await self._catalog.residents.withdraw(leaving)
            return record, num_in_flight

        return await self._carry_out("remove", name, by, carry_out())

    def record(self, name: str) -> NameRecord:
        """Return what is remembered about ``name``.

        Raises:
            PatchNotFound: Nothing is.
        """
        record = self._catalog.record(name)
        if record == NameRecord():
            raise _unknown(name)
        return record

    def _require_conditions(self, name: str, rules: CanaryRules, target: Target, active: Target) -> None:
        """Raise where rules look at a condition that the canary, or the version beside it, does not have."""
        served = {resident.patch.digest: resident.patch for resident in self._catalog.residents.of(name)}
        for rule in rules.about_condition:
            for compared in (target, active) if rule == "max_condition_change" else (target,):
                patch = served.get(compared.digest)
                if patch is not None and not patch.has_condition:
                    raise OrderRefused(
                        f"{rule}: expected a version with a condition, got {patch.reference}, which has "
                        "none; leave the rule out",
                        param=rule,
                    )

    def _require_fitting(self, target: Target) -> None:
        """Raise where a content that is to serve was made for other weights than those in force."""
        if not self._may_serve(target):
            raise OrderRefused(
                f"version: {target.version} was made for other weights than those in force, so it could "
                "answer no request; nothing was changed",
                param="version",
            )

    def _may_serve(self, target: Target) -> bool:
        weights = self._catalog.weights
        return weights.keeps_mismatched or self._catalog.publication.fits(target, weights.in_force)

    def _cause(self, action: str, by: str) -> Cause:
        return Cause(action, by, self._clock())

    async def _carry_out(self, action: str, name: str, by: str, order: Coroutine[Any, Any, T]) -> T:
        """Carry ``order`` out to its end, also where the caller hangs up, and count it."""
        task = asyncio.get_running_loop().create_task(self._counted(action, name, by, order))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)

    async def _counted(self, action: str, name: str, by: str, order: Coroutine[Any, Any, T]) -> T:
        with self._catalog.swaps.ordered(name, action, by, lambda: self._active_version(name)):
            return await order

    def _active_version(self, name: str) -> str:
        active = self._catalog.record(name).active
        return active.version if active is not None else ""


def find_target(targets: Sequence[Target], name: str, version: str) -> Target:
    """Find the content that ``version`` means, a version or the beginning of a digest.

    Raises:
        PatchNotFound: None, or several.
        AdminCallInvalid: The beginning of a digest is too short.
    """
    matches = find_targets(targets, name, version)
    if len(matches) > 1:
        raise OrderRefused(
            f"'{name}@{version[:80]}' fits {len(matches)} contents; name one by its digest", param="version"
        )
    return matches[0]


def find_targets(targets: Sequence[Target], name: str, version: str) -> list[Target]:
    """Find all contents that ``version`` fits: content that drains may have the version of its successor.

    Raises:
        PatchNotFound: None.
        AdminCallInvalid: The beginning of a digest is too short.
    """
    if not version.startswith("sha256:"):
        matches = [target for target in targets if target.version == version]
    elif len(version) < _MIN_DIGEST_LENGTH:
        raise AdminCallInvalid("version: expected at least 12 digits of a digest", param="version")
    else:
        matches = [target for target in targets if target.digest.startswith(version)]
    if not matches:
        raise PatchNotFound(
            f"'{name}@{version[:80]}' is not loaded; GET /v1/patches/{name} lists what is", param="version"
        )
    return matches


def require_known(situation: Situation, name: str) -> None:
    """Raise where nothing is known about a name.

    Raises:
        PatchNotFound: Neither a record nor a content on the workers.
    """
    if situation.record == NameRecord() and not situation.resident:
        raise _unknown(name)


def _unknown(name: str) -> PatchNotFound:
    return PatchNotFound(f"no patch '{name[:64]}' is known; GET /v1/patches lists all", param="name")
