"""What a follower knows of the catalog: two copies at most, and the shared number that says which one holds.

``view`` and the decider's policy are those of the step that holds; where this process has not been given that
step, is not counted on, or has not heard from the leader for a while, ``require_in_step`` refuses.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from server.audit import Audit, AuditEvent, NullAudit
from server.catalog.door import Door
from server.catalog.residents import Residents
from server.errors import NotInStep
from server.frontends.channel import Body
from server.frontends.messages import (
    content_of,
    text_bytes,
    with_fleet_body,
    with_name_body,
    with_weights_body,
)
from server.frontends.step import Steps
from server.policy.file import parse_policy
from server.policy.rules import Policy
from server.versions.view import CatalogView, ServedPatch

#: Seconds without a message of the leader after which nothing is decided any more.
SILENCE_S = 10.0


class PolicyHolder(Protocol):
    """What decides by a policy."""

    policy: Policy


@dataclass(frozen=True, slots=True)
class Copy:
    """What serves from one step on."""

    step: int
    view: CatalogView
    policy: Policy


class Mirror:
    """A follower's catalog; ``server.catalog.served.Served``."""

    def __init__(
        self,
        index: int,
        steps: Steps,
        residents: Residents,
        policy: Policy,
        *,
        may_compose: bool = False,
        door: Door | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make one that is not in step yet.

        Args:
            index: Which process of the server this is.
            steps: The shared numbers.
            residents: What requests of this process use.
            policy: What is in force where no policy file says otherwise.
            may_compose: See ``CatalogView``.
            door: Where requests enter; None where weights never change.
            clock: Seconds; tests have their own.
        """
        self.residents = residents
        self._index = index
        self._steps = steps
        self._clock = clock
        self._may_compose = may_compose
        self._door = door
        self._flag_policy = policy
        self._now = Copy(-1, CatalogView(may_compose=may_compose), policy)
        #: Handed over by the leader, and not in force yet.
        self._next: Copy | None = None
        self._heard_s = clock() - SILENCE_S
        self._holder: PolicyHolder | None = None
        self._signers: dict[str, str | None] = {}

    def bind(self, holder: PolicyHolder) -> None:
        """Keep the policy of ``holder`` in step from now on."""
        self._holder = holder
        holder.policy = self._now.policy

    @property
    def view(self) -> CatalogView:
        """What serves, where this process is in step."""
        self._follow()
        return self._now.view

    @property
    def step(self) -> int:
        """The step whose copy this process has."""
        self._follow()
        return self._now.step

    @property
    def is_in_step(self) -> bool:
        """Whether this process may decide."""
        self._follow()
        return (
            self._now.step == self._steps.current
            and self._steps.is_attached(self._index)
            and self._clock() - self._heard_s < SILENCE_S
        )

    def require_in_step(self) -> None:
        """Refuse where it is not sure that ``view`` and policy hold; see ``Served.require_in_step``."""
        if not self.is_in_step:
            raise NotInStep("this process of the server does not know yet what serves now; try again")

    def heard(self) -> None:
        """Note that the leader is alive."""
        self._heard_s = self._clock()

    def lost(self) -> None:
        """Note that the leader is gone: nothing is decided until it is heard again."""
        # Whoever enters is refused.
        self.open()
        self._heard_s = self._clock() - SILENCE_S

    def learn(self, body: Body) -> Body:
        """Take in contents, and return the digests and lengths of what was understood."""
        confirmed = {}
        for content in body["contents"]:
            patch, signer = content_of(content)
            self._signers[patch.digest] = signer
            resident = self.residents.get(patch.digest) or self.residents.add(patch)
            confirmed[patch.digest] = resident.patch.num_tokens
        return {"confirmed": confirmed}

    def prepare(self, body: Body) -> Body:
        """Take in what serves from the next step on, without letting it hold; answers as ``learn``."""
        self._follow()
        confirmed = self.learn(body)
        self._next = self._copy(self._now, body)
        return confirmed

    def reset(self, body: Body) -> Body:
        """Take in everything that serves now, in place of what was known; answers as ``learn``."""
        confirmed = self.learn(body)
        nothing = Copy(-1, CatalogView(may_compose=self._may_compose), self._flag_policy)
        self._adopt(self._copy(nothing, body))
        self._next = None
        for resident in self.residents.all():
            if resident.patch.digest not in confirmed["confirmed"] and not resident.num_in_flight:
                self._forget(resident.patch.digest)
        return confirmed

    async def close(self, timeout_s: float) -> Body:
        """Keep requests out, from now until ``open``, where all that are inside leave in time.

        Returns:
            How many did not.
        """
        assert self._door is not None
        return {"num_inside": await self._door.close(timeout_s)}

    def open(self) -> None:
        """Have requests enter again, to what serves by now."""
        self._follow()
        if self._door is not None:
            self._door.open()

    def note_loading(self, loading: frozenset[tuple[str, str]]) -> None:
        """Take in which versions are being loaded; that alone is no step."""
        self._now = replace(self._now, view=replace(self._now.view, loading=loading))
        if self._next is not None:
            self._next = replace(self._next, view=replace(self._next.view, loading=loading))

    def let_go(self, digest: str) -> int:
        """Forget a content that is not served any more; return how many requests use it, which keep it."""
        resident = self.residents.get(digest)
        if resident is None:
            return 0
        if not resident.num_in_flight:
            self._forget(digest)
        return resident.num_in_flight

    def withdraw(self, digest: str) -> None:
        """End what uses a content with an error."""
        resident = self.residents.get(digest)
        if resident is not None:
            resident.withdraw()

    def signer_of(self, digest: str) -> str | None:
        """Return who signed a content, where that is known."""
        return self._signers.get(digest)

    def _copy(self, base: Copy, body: Body) -> Copy:
        view = base.view
        names: Mapping[str, Body | None] = body["names"]
        for name, meaning in names.items():
            view = with_name_body(view, name, meaning, self._content)
        view = with_weights_body(view, body["weights"], self._content)
        view = with_fleet_body(view, body.get("fleet"))
        data = body.get("policy")
        policy = base.policy
        if data is not None:
            # Empty where there is no file any more: the flags say what holds.
            policy = parse_policy(text_bytes(data)) if data else self._flag_policy
        return Copy(body["step"], view, policy)

    def _content(self, digest: str) -> ServedPatch:
        return self.residents[digest].patch

    def _follow(self) -> None:
        if self._next is not None and self._next.step == self._steps.current:
            following, self._next = self._next, None
            self._adopt(following)

    def _adopt(self, copy: Copy) -> None:
        self._now = copy
        if self._door is not None:
            self._door.weights = copy.view.weights
        if self._holder is not None:
            self._holder.policy = copy.policy
        for named in copy.view.names.values():
            for patch in named.versions:
                # What came back serves as if it had never been withdrawn.
                self.residents[patch.digest].is_withdrawn = False

    def _forget(self, digest: str) -> None:
        self.residents.forget(self.residents[digest])
        self._signers.pop(digest, None)


def mirrored(audit: Audit, signer_of: Callable[[str], str | None]) -> Audit:
    """Return ``audit`` with signers added, where it keeps anything."""
    return audit if isinstance(audit, NullAudit) else MirrorAudit(audit, signer_of)


class MirrorAudit:
    """Adds to each event about a patch who vouches for it, as the leader says; see ``SignerAudit``."""

    def __init__(self, audit: Audit, signer_of: Callable[[str], str | None]) -> None:
        self._audit = audit
        self._signer_of = signer_of

    def record(self, event: AuditEvent) -> None:
        """Pass ``event`` on."""
        signer = self._signer_of(event.digest) if event.digest is not None else None
        if signer is not None:
            event = replace(event, details={**event.details, "signer": signer})
        self._audit.record(event)
