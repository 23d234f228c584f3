"""The leader's side: hands followers what serves next, and counts what they use.

A follower that does not confirm within ``CONFIRM_S`` seconds is cut off: a shared word says so, by which that
process refuses every request, whether it ever reads another message or not. It is let in again, with
everything that serves by then, at its next message. What it had in use before stays counted as long as its
connection lasts.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

from server.admin.canary_watch import ArmReports
from server.catalog.door import StillInside
from server.catalog.residents import Resident, Residents
from server.errors import NotInStep
from server.frontends.channel import Body, Channel, ChannelError
from server.frontends.messages import bytes_text, content_body, fleet_body, name_body, weights_body
from server.frontends.step import Steps
from server.versions.view import CatalogView, ServedPatch

logger = logging.getLogger(__name__)

#: Seconds that a follower has to confirm a change.
CONFIRM_S = 10.0

#: Seconds that a follower has to send its figures; a scrape does without those that come later.
_FIGURES_S = 1.0


class _Connection:
    """One follower, as long as its connection lasts."""

    def __init__(self) -> None:
        self.channel: Channel | None = None
        #: Known from its first message on.
        self.index: int | None = None
        self.is_attached = False
        #: Digests of contents that it was sent.
        self.known: set[str] = set()
        #: Digest -> requests of it that are counted.
        self.uses: dict[str, int] = {}
        self.entering: asyncio.Task[None] | None = None

    async def call(self, kind: str, body: Body, timeout_s: float) -> Body:
        assert self.channel is not None
        return await self.channel.call(kind, body, timeout_s)


class FollowerPool:
    """Every follower of this process; an async context manager, and the catalog's ``OtherProcesses``."""

    def __init__(
        self, steps: Steps, address: Path, policy: bytes | None, *, confirm_s: float = CONFIRM_S
    ) -> None:
        """Make one that takes no follower yet.

        Args:
            steps: The shared numbers.
            address: Where followers connect.
            policy: The policy file, where there is one.
            confirm_s: Seconds that a follower has to confirm.
        """
        self._steps = steps
        self._address = address
        self._policy = policy
        self._confirm_s = confirm_s
        self._view = CatalogView()
        self._residents: Residents | None = None
        self._signer_of: Callable[[str], str | None] = lambda digest: None
        #: Receives how requests of canaried names went.
        self.canaries: ArmReports | None = None
        self._followers: set[_Connection] = set()
        #: What each follower counted, by its index.
        self._figures: dict[int, Body] = {}
        #: Held from handing over a step to its holding, and while a follower is let in.
        self._turn = asyncio.Lock()
        #: Held while requests are kept out, and while a follower is let in: before ``_turn``.
        self._entry = asyncio.Lock()
        self._server: asyncio.Server | None = None
        self._is_ending = False
        self._tasks: set[asyncio.Task[Any]] = set()

    def bind(self, residents: Residents, signer_of: Callable[[str], str | None]) -> None:
        """Count in ``residents`` what followers use; ``signer_of`` returns who signed a content."""
        self._residents, self._signer_of = residents, signer_of

    async def __aenter__(self) -> "FollowerPool":
        self._server = await asyncio.start_unix_server(self._serve, str(self._address))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self._is_ending = True
        for follower in tuple(self._followers):
            if follower.channel is not None:
                follower.channel.close()
        for task in tuple(self._tasks):
            task.cancel()

    async def confirm(self, patch: ServedPatch) -> None:
        """See ``OtherProcesses.confirm``."""
        failed = []
        for follower, answer in await self._ask_all("confirm", lambda f: self._contents(f, [patch])):
            if isinstance(answer, ChannelError) or not _has_confirmed(answer, [patch]):
                failed.append(self._cut_off(follower, f"{patch.reference} is not confirmed: {answer}"))
            else:
                follower.known.add(patch.digest)
        _require_none(failed)

    async def require_all(self) -> None:
        """See ``OtherProcesses.require_all``."""
        failed = []
        for follower, answer in await self._ask_all("here", lambda f: {}):
            if isinstance(answer, ChannelError) or answer.get("step") != self._steps.current:
                failed.append(self._cut_off(follower, str(answer)))
        _require_none(failed)

    def moved(
        self, view: CatalogView, names: Collection[str], policy: bytes | None = None
    ) -> AbstractAsyncContextManager[None]:
        """See ``OtherProcesses.moved``."""
        return self._stepped(view, names, policy)

    def policy_moved(self, policy: bytes) -> AbstractAsyncContextManager[None]:
        """Make a policy hold for every process at once, as ``moved`` does with a view."""
        return self._stepped(None, (), policy)

    @contextlib.asynccontextmanager
    async def _stepped(
        self, view: CatalogView | None, names: Collection[str], policy: bytes | None
    ) -> AsyncIterator[None]:
        """Take one step; ``None`` stands for the view, or the policy, that holds when its turn comes."""
        async with self._turn:
            view = view if view is not None else self._view
            await self._hand_over(view, names, policy)
            yield
            # At once after the body: nothing else runs in between.
            self._view = view
            self._policy = policy if policy is not None else self._policy
            self._steps.advance()

    @contextlib.asynccontextmanager
    async def closed(self, timeout_s: float) -> AsyncIterator[None]:
        """See ``OtherProcesses.closed``."""
        async with self._entry:
            # What is not counted on may still run what it took in before.
            if self.num_attached < self._steps.num_processes - 1:
                raise NotInStep("nothing was changed: a process of the server is not in step; try again")
            followers = self._attached()
            try:
                limit_s = timeout_s + self._confirm_s
                num_inside, failed = 0, []
                for follower, answer in await self._ask_all(
                    "close", lambda f: {"timeout_s": timeout_s}, timeout_s=limit_s
                ):
                    if isinstance(answer, ChannelError):
                        failed.append(self._cut_off(follower, str(answer)))
                    else:
                        num_inside += answer["num_inside"]
                _require_none(failed)
                if num_inside:
                    raise StillInside(num_inside)
                yield
            finally:
                for follower in followers:
                    assert follower.channel is not None
                    follower.channel.tell("open", {})

    def note_loading(self, loading: frozenset[tuple[str, str]]) -> None:
        """See ``OtherProcesses.note_loading``."""
        for follower in self._attached():
            assert follower.channel is not None
            follower.channel.tell("loading", {"loading": sorted(loading)})

    async def let_go(self, digest: str) -> bool:
        """See ``OtherProcesses.let_go``."""
        asked = await self._ask_all("let_go", lambda f: {"digest": digest})
        for follower, answer in asked:
            if isinstance(answer, ChannelError):
                self._cut_off(follower, str(answer))
            elif answer["num_in_flight"]:
                self._count_uses(follower, digest, answer["num_in_flight"])
            else:
                follower.known.discard(digest)
        assert self._residents is not None
        resident = self._residents.get(digest)
        return resident is None or not resident.num_in_flight

    async def withdraw(self, digests: Collection[str]) -> None:
        """See ``OtherProcesses.withdraw``."""
        for follower, answer in await self._ask_all("withdraw", lambda f: {"digests": list(digests)}):
            if isinstance(answer, ChannelError):
                self._cut_off(follower, str(answer))

    async def figures(self) -> list[Body]:
        """Return what each follower counts; of one that is too slow, what it said last.

        A counter that falls is taken for one that began anew, and what it had is counted twice.
        """
        for follower, answer in await self._ask_all("figures", lambda f: {}, timeout_s=_FIGURES_S):
            if not isinstance(answer, ChannelError) and follower.index is not None:
                self._figures[follower.index] = answer
        return list(self._figures.values())

    def num_in_step(self, num_processes: int) -> tuple[int, int]:
        """Return how many processes of the server answer requests, and how many refuse them."""
        num_here = 1 + len(self._attached())
        return num_here, num_processes - num_here

    @property
    def num_attached(self) -> int:
        """How many followers answer requests now."""
        return len(self._attached())

    async def _hand_over(self, view: CatalogView, names: Collection[str], policy: bytes | None) -> None:
        meanings = {name: name_body(view, name) for name in names}
        served = [p for name in names if name in view.names for p in view.names[name].versions]
        served += [view.weights] if view.weights is not None else []
        body = {"step": self._steps.current + 1, "names": meanings, "weights": weights_body(view)}
        body["fleet"] = fleet_body(view)
        if policy is not None:
            body["policy"] = bytes_text(policy)

        def for_follower(follower: _Connection) -> Body:
            return body | self._contents(follower, [p for p in served if p.digest not in follower.known])

        for follower, answer in await self._ask_all("prepare", for_follower):
            if isinstance(answer, ChannelError):
                self._cut_off(follower, str(answer))
            else:
                follower.known.update(patch.digest for patch in served)

    async def _ask_all(
        self, kind: str, body: Callable[[_Connection], Body], *, timeout_s: float | None = None
    ) -> list[tuple[_Connection, Body | ChannelError]]:
        followers = self._attached()
        limit_s = self._confirm_s if timeout_s is None else timeout_s
        answers = await asyncio.gather(*(_answer(f.call(kind, body(f), limit_s)) for f in followers))
        return list(zip(followers, answers, strict=True))

    def _attached(self) -> list[_Connection]:
        return [follower for follower in self._followers if follower.is_attached]

    def _contents(self, follower: _Connection, patches: Iterable[ServedPatch]) -> Body:
        return {"contents": [content_body(patch, self._signer_of(patch.digest)) for patch in patches]}

    def _cut_off(self, follower: _Connection, reason: str) -> str:
        if follower.index is not None and follower.is_attached:
            self._steps.set_attached(follower.index, False)
            logger.error("front end %d is cut off and refuses requests: %s", follower.index, reason)
        follower.is_attached = False
        return f"front end {follower.index}: {reason}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        follower = _Connection()
        follower.channel = Channel(reader, writer, lambda kind, body: self._handle(follower, kind, body))
        self._followers.add(follower)
        try:
            await follower.channel.run()
        finally:
            self._followers.discard(follower)
            self._cut_off(follower, "it hung up")
            # At the end, what followers still answer must not lose its tensors.
            for digest in tuple(follower.uses) if not self._is_ending else ():
                self._count_uses(follower, digest, 0)

    def _handle(
        self, follower: _Connection, kind: str, body: Body
    ) -> Body | Coroutine[Any, Any, None] | None:
        match kind:
            case "hello":
                self._replace(follower, body["index"])
                for digest, number in body["uses"].items():
                    self._count_uses(follower, digest, number)
                self._let_in(follower)
            case "beat":
                self._let_in(follower)
            case "uses":
                for digest, number in body["uses"].items():
                    self._count_uses(follower, digest, number)
            case "ready":
                return self._ready(follower, body["digest"], body["num_in_flight"])
            case "finished":
                if self.canaries is not None:
                    self.canaries.finished(**body)
            case _:
                raise ValueError(f"{kind}: unknown message")
        return None

    def _replace(self, follower: _Connection, index: int) -> None:
        """Note which process this is; a connection that it had before does not count any more."""
        for other in self._followers:
            if other.index == index:
                self._cut_off(other, "it connected again")
                other.index = None
        follower.index = index

    def _let_in(self, follower: _Connection) -> None:
        if follower.is_attached or follower.index is None or follower.entering is not None:
            return
        follower.entering = self._start(self._enter(follower))

    async def _enter(self, follower: _Connection) -> None:
        assert follower.index is not None
        try:
            async with self._entry, self._turn:
                contents, body = self._everything(follower)
                answer = await follower.call("reset", body, self._confirm_s)
                if not _has_confirmed(answer, contents):
                    raise ChannelError(f"it confirms something else: {answer}")
                follower.known = {patch.digest for patch in contents}
                follower.is_attached = True
                self._steps.set_attached(follower.index, True)
            logger.info("front end %d is in step", follower.index)
        except ChannelError as error:
            logger.error("front end %d can't join: %s", follower.index, error)
        finally:
            follower.entering = None

    def _everything(self, follower: _Connection) -> tuple[list[ServedPatch], Body]:
        view = self._view
        contents = [patch for named in view.names.values() for patch in named.versions]
        contents += [view.weights] if view.weights is not None else []
        names = {name: name_body(view, name) for name in view.names}
        body = {"step": self._steps.current, "names": names, "weights": weights_body(view)}
        body["fleet"] = fleet_body(view)
        body |= self._contents(follower, contents)
        if self._policy is not None:
            body["policy"] = bytes_text(self._policy)
        return contents, body

    def _ready(self, follower: _Connection, digest: str, number: int) -> Coroutine[Any, Any, None]:
        assert self._residents is not None
        # Counted at once, in the order of the messages; only the waiting comes later.
        self._count_uses(follower, digest, number)
        if digest not in follower.uses:
            raise LookupError(f"{digest} is not loaded any more")
        return self._residents.ready(self._residents[digest].patch)

    def _count_uses(self, follower: _Connection, digest: str, number: int) -> None:
        assert self._residents is not None
        resident: Resident | None = self._residents.get(digest)
        if resident is None or (resident.is_unloading and number):
            follower.uses.pop(digest, None)
            return
        change = number - follower.uses.get(digest, 0)
        for _ in range(change):
            self._residents.acquire(resident.patch)
        follower.uses[digest] = number
        if not number:
            del follower.uses[digest]
        for _ in range(-change):
            self._residents.release(resident.patch)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _answer(question: Coroutine[Any, Any, Body]) -> Body | ChannelError:
    try:
        return await question
    except ChannelError as error:
        return error


def _has_confirmed(answer: Body, patches: Iterable[ServedPatch]) -> bool:
    expected = {patch.digest: patch.num_tokens for patch in patches}
    return bool(answer.get("confirmed") == expected)


def _require_none(failed: list[str]) -> None:
    if failed:
        raise NotInStep(f"nothing was changed: {'; '.join(failed)}; try again")
