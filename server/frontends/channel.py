"""Messages between two processes over a local socket, and answers to them.

A frame is its length in four bytes and a JSON object. Nothing in it is ever executed; both ends belong to one
server, and the socket lies in a folder of its own that only its user may enter.
"""

import asyncio
import contextlib
import itertools
import json
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

logger = logging.getLogger(__name__)

Body = dict[str, Any]

#: Called with each message, in their order; what is answered later is returned as an awaitable.
Handler = Callable[[str, Body], Body | Awaitable[Body | None] | None]

#: Bytes of one frame: a thousand patches, each with its whole manifest, take a tenth of it.
MAX_FRAME_BYTES = 256 * 1024 * 1024

_HEAD_BYTES = 4


class ChannelError(Exception):
    """A question was not answered: the other process is gone, too slow, or says that it can't."""


class Channel:
    """One end of a connection; event loop thread only."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handle: Handler) -> None:
        self._reader = reader
        self._writer = writer
        self._handle = handle
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Body]] = {}
        self._answers: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Take messages until the other end is gone, which ends every question with an error."""
        try:
            while (frame := await self._next()) is not None:
                self._take(frame)
        except (OSError, ValueError) as error:
            logger.error("front ends: a connection broke: %s", error)
        finally:
            self.close()

    def tell(self, kind: str, body: Body) -> None:
        """Send a message that needs no answer; it is lost where the other end is gone."""
        self._send({"kind": kind, "body": body})

    async def call(self, kind: str, body: Body, timeout_s: float) -> Body:
        """Send a question and return its answer.

        Raises:
            ChannelError: There is none within ``timeout_s`` seconds, or the other process can't.
        """
        number = next(self._ids)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            self._send({"kind": kind, "body": body, "id": number})
            return await asyncio.wait_for(answer, timeout_s)
        except TimeoutError:
            raise ChannelError(f"{kind}: no answer in {timeout_s:.0f} s") from None
        finally:
            del self._waiting[number]

    def close(self) -> None:
        """Hang up."""
        self._writer.close()
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(ChannelError("the other process hung up"))
                # The task that asked may be gone.
                answer.exception()

    async def _next(self) -> Body | None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            num_bytes = int.from_bytes(await self._reader.readexactly(_HEAD_BYTES))
            if num_bytes > MAX_FRAME_BYTES:
                raise ValueError(f"expected at most {MAX_FRAME_BYTES} bytes, got {num_bytes}")
            frame = json.loads(await self._reader.readexactly(num_bytes))
            assert isinstance(frame, dict)
            return frame
        return None

    def _take(self, frame: Body) -> None:
        if "answer" in frame:
            answer = self._waiting.get(frame["answer"])
            if answer is None or answer.done():
                return
            if "error" in frame:
                answer.set_exception(ChannelError(frame["error"]))
            else:
                answer.set_result(frame["body"])
            return
        try:
            result = self._handle(frame["kind"], frame["body"])
        except Exception as error:
            # A process edge: the other end has to hear that it went wrong.
            self._answer_error(frame, error)
            return
        if isinstance(result, Awaitable):
            self._answer_later(frame, result)
        else:
            self._answer(frame, result)

    def _answer_later(self, frame: Body, result: Awaitable[Body | None]) -> None:
        async def answer() -> None:
            try:
                self._answer(frame, await result)
            except Exception as error:
                self._answer_error(frame, error)

        work: Coroutine[Any, Any, None] = answer()
        task = asyncio.get_running_loop().create_task(work)
        self._answers.add(task)
        task.add_done_callback(self._answers.discard)

    def _answer(self, frame: Body, body: Body | None) -> None:
        if "id" in frame:
            self._send({"answer": frame["id"], "body": body or {}})

    def _answer_error(self, frame: Body, error: Exception) -> None:
        logger.warning("front ends: %s: %s", frame["kind"], error)
        if "id" in frame:
            self._send({"answer": frame["id"], "error": str(error) or type(error).__name__})

    def _send(self, frame: Body) -> None:
        if self._writer.is_closing():
            # A question gets its error from ``close``, or here where it comes too late.
            if "id" in frame and not (answer := self._waiting[frame["id"]]).done():
                answer.set_exception(ChannelError("the other process hung up"))
            return
        data = json.dumps(frame, separators=(",", ":")).encode("ascii")
        self._writer.write(len(data).to_bytes(_HEAD_BYTES) + data)
