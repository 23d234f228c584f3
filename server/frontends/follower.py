"""The follower's side of the socket: hears what serves, and says what this process uses.

A generation may use a content only after the leader counts this process among its users, which keeps the
tensors where they are. That question is asked for the first of several requests that overlap; what follows
are numbers, and nothing waits for those.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType

from patches.format import Patch
from server.catalog.residents import Residents
from server.frontends.channel import Body, Channel, ChannelError
from server.frontends.mirror import Mirror
from server.memory.residency import ResidencyError
from server.metrics.patches import PatchMetrics
from server.versions.composition import SelectedPatch

logger = logging.getLogger(__name__)

#: Seconds between two signs of life, and between two attempts to reach the leader.
BEAT_S = 1.0

#: Seconds in which changes of what is used are gathered before they are sent to the leader.
_GATHER_S = 0.02

#: Seconds that the leader may take to get a prefix onto the workers.
_READY_S = 150.0


class FollowedResidency:
    """Asks the leader for prefixes; a ``server.memory.residency.Residency`` that keeps no tensors itself."""

    def __init__(self, num_in_flight: Callable[[str], int]) -> None:
        """Make one that has no leader yet.

        Args:
            num_in_flight: Returns how many requests of this process use a digest.
        """
        self._num_in_flight = num_in_flight
        self._channel: Channel | None = None
        #: Digests for which the leader may count this process as a user.
        self._counted: set[str] = set()
        #: Of these, what every worker holds.
        self._ready: set[str] = set()
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._changed: set[str] = set()
        self._flush: asyncio.TimerHandle | None = None

    def attach(self, channel: Channel) -> dict[str, int]:
        """Ask this leader from now on, and return what is in use."""
        self._channel = channel
        self._ready.clear()
        uses = {digest: self._num_in_flight(digest) for digest in self._counted}
        self._counted = {digest for digest, number in uses.items() if number}
        return {digest: uses[digest] for digest in self._counted}

    def counted(self, digest: str) -> None:
        """Note that the leader was told that ``digest`` is in use."""
        self._counted.add(digest)

    def changed(self, digest: str) -> None:
        """Note that more or fewer requests use ``digest`` than before."""
        self._changed.add(digest)
        if self._flush is None:
            self._flush = asyncio.get_running_loop().call_later(_GATHER_S, self._tell)

    def bind(self, must_stay: Callable[[str], bool]) -> None:
        """See ``Residency.bind``; the leader knows what must stay."""

    async def load(self, patch: Patch, path: Path) -> int:
        """Never called: contents come from the leader."""
        raise ResidencyError(f"{patch.digest}: only the leading process loads")

    def is_ready(self, digest: str) -> bool:
        """See ``Residency.is_ready``."""
        return digest in self._ready

    async def ready(self, digest: str) -> None:
        """Return once the leader counts this process and every worker holds ``digest``.

        Raises:
            ResidencyError: The leader can't be asked, or says that it is unavailable.
        """
        while digest not in self._ready:
            task = self._asking.get(digest)
            if task is None:
                task = self._asking[digest] = asyncio.create_task(self._ask(digest))
                task.add_done_callback(lambda done: (self._asking.pop(digest, None), done.exception()))
            # One request that goes away takes nothing from the others that wait.
            await asyncio.shield(task)

    def idle(self, digest: str) -> None:
        """See ``Residency.idle``; the leader hears of it by ``changed``."""

    async def unload(self, digest: str) -> None:
        """See ``Residency.unload``; the leader does it."""

    async def _ask(self, digest: str) -> None:
        if self._channel is None:
            raise ResidencyError(f"{digest}: there is no leading process")
        self._counted.add(digest)
        channel = self._channel
        body = {"digest": digest, "num_in_flight": max(1, self._num_in_flight(digest))}
        try:
            await channel.call("ready", body, _READY_S)
        except ChannelError as error:
            raise ResidencyError(str(error)) from error
        finally:
            self.changed(digest)
        if channel is self._channel and digest in self._counted:
            self._ready.add(digest)

    def _tell(self) -> None:
        self._flush = None
        changed, self._changed = self._changed & self._counted, set()
        uses = {digest: self._num_in_flight(digest) for digest in changed if digest not in self._asking}
        for digest, number in uses.items():
            if not number:
                self._counted.discard(digest)
                self._ready.discard(digest)
        if uses and self._channel is not None:
            self._channel.tell("uses", {"uses": uses})


class FollowedResidents(Residents):
    """What requests of this process use; the leader hears of it."""

    def __init__(self, metrics: PatchMetrics) -> None:
        self.residency = FollowedResidency(self._number)
        # The leader alone drops anything.
        super().__init__(self.residency, metrics, asyncio.Lock(), lambda resident: True)

    def acquire(self, patch: SelectedPatch) -> None:
        """See ``Residents.acquire``."""
        super().acquire(patch)
        self._note(patch)

    def release(self, patch: SelectedPatch) -> None:
        """See ``Residents.release``."""
        super().release(patch)
        self._note(patch)

    def _note(self, patch: SelectedPatch) -> None:
        for part in patch.parts:
            self.residency.changed(part.digest)

    def _number(self, digest: str) -> int:
        resident = self.get(digest)
        return resident.num_in_flight if resident is not None else 0


class Follower:
    """Follows the leader at one address; an async context manager that is in step when entered."""

    def __init__(
        self, index: int, address: Path, mirror: Mirror, residency: FollowedResidency, metrics: PatchMetrics
    ) -> None:
        self._index = index
        self._address = address
        self._mirror = mirror
        self._residency = residency
        self._metrics = metrics
        self._channel: Channel | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Follower":
        self._task = asyncio.create_task(self._follow_forever())
        # Requests that came before would only be refused.
        while not self._mirror.is_in_step:
            await asyncio.sleep(_GATHER_S)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def finished(
        self, name: str, arm: str, outcome: str, first_token_s: float | None, is_met: bool | None
    ) -> None:
        """Report to the leader how a request of a canaried name went; see ``ArmReports``."""
        if self._channel is not None:
            times = {"first_token_s": first_token_s, "is_met": is_met}
            self._channel.tell("finished", {"name": name, "arm": arm, "outcome": outcome, **times})

    async def _follow_forever(self) -> None:
        while True:
            try:
                await self._follow_once()
            except OSError as error:
                logger.debug("front end %d: the leading process is not there: %s", self._index, error)
            except Exception:
                # Nothing may end this: the process would refuse requests for ever.
                logger.exception("front end %d: following failed; it tries again", self._index)
            finally:
                self._channel = None
                self._mirror.lost()
            await asyncio.sleep(BEAT_S / 5)

    async def _follow_once(self) -> None:
        reader, writer = await asyncio.open_unix_connection(str(self._address))
        channel = self._channel = Channel(reader, writer, self._handle)
        uses = self._residency.attach(channel)
        channel.tell("hello", {"index": self._index, "uses": uses})
        beats = asyncio.create_task(self._beat(channel))
        try:
            await channel.run()
            logger.error("front end %d: the leading process hung up; requests are refused", self._index)
        finally:
            beats.cancel()
            channel.close()

    async def _beat(self, channel: Channel) -> None:
        while True:
            with contextlib.suppress(ChannelError):
                await channel.call("beat", {}, 10 * BEAT_S)
                self._mirror.heard()
            await asyncio.sleep(BEAT_S)

    def _handle(self, kind: str, body: Body) -> Body | Awaitable[Body | None] | None:
        mirror = self._mirror
        mirror.heard()
        match kind:
            case "reset":
                return mirror.reset(body)
            case "prepare":
                return mirror.prepare(body)
            case "confirm":
                return mirror.learn(body)
            case "here":
                return {"step": mirror.step}
            case "loading":
                mirror.note_loading(frozenset((name, version) for name, version in body["loading"]))
            case "let_go":
                return self._let_go(body["digest"])
            case "close":
                return mirror.close(body["timeout_s"])
            case "open":
                mirror.open()
            case "withdraw":
                for digest in body["digests"]:
                    mirror.withdraw(digest)
            case "figures":
                return self._metrics.figures()
            case _:
                raise ValueError(f"{kind}: unknown message")
        return None

    def _let_go(self, digest: str) -> Body:
        num_in_flight = self._mirror.let_go(digest)
        if num_in_flight:
            # The leader counts it with this answer.
            self._residency.counted(digest)
        return {"num_in_flight": num_in_flight}
