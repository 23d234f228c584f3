"""The block that says that the server is ready: where it answers, with which patches, and how to ask it.

The process that decides what serves prints it, once. One more row is one more entry of ``_rows``.
"""

import argparse
import asyncio
import contextlib
import json
import logging
import os
import shlex
import socket
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import TextIO
from urllib.parse import urlsplit

from patches.headers import PATCH_HEADER
from patches.terminal import one_line
from server.policy.caller import ANYONE
from server.policy.decision import Asked, decide
from server.policy.rules import Policy
from server.versions.selection import PatchRef, Selection
from server.versions.view import CatalogView, ServedPatch

logger = logging.getLogger(__name__)

WIDTH = 80
_TEXT_COLUMN = 12
#: ``origin.method`` -> what the block calls it.
_KINDS = {"trained": "trained", "text": "compiled", "peft": "imported", "compose": "prepared"}
#: Patches that a row names before it says how many more there are.
_MAX_NAMED = 12
_UNIX = "unix:"
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Ready:
    """What the block is about."""

    #: As vLLM writes it: ``http://0.0.0.0:8000``, or ``unix:/run/policypatch.sock``.
    listen_address: str
    #: The served name of the model.
    model: str
    view: CatalogView
    policy: Policy
    #: Whether vLLM asks every request for a key.
    needs_key: bool = False

    @property
    def base_url(self) -> str:
        """What clients call ``base_url``, as seen from this machine."""
        if self.listen_address.startswith(_UNIX):
            return "http://localhost/v1"
        parts = urlsplit(self.listen_address)
        here = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(parts.hostname or "")
        place = parts.netloc if here is None else f"{here}:{parts.port}"
        return f"{parts.scheme}://{place}/v1"

    @property
    def patches(self) -> list[ServedPatch]:
        """What each name means, in the order of the names."""
        return [named.active for _, named in sorted(self.view.names.items()) if named.active is not None]

    def may_have(self, patch: ServedPatch | None) -> bool:
        """Return whether a caller without a key gets an answer that names ``patch``, or nothing."""
        asked = Asked(None if patch is None else (PatchRef(patch.name),))
        return isinstance(decide(ANYONE, asked, self.view, self.policy).outcome, Selection)


def announce(args: argparse.Namespace, listen_address: str, view: CatalogView, policy: Policy) -> None:
    """Print the block, or a line of the log where that is read by programs."""
    if args.logging_config.formatter == "json":
        logger.info("ready on %s with %d patches", listen_address, len(view.names))
        return
    model = (args.served_model_name or [args.model])[0]
    needs_key = bool(args.api_key or os.environ.get("VLLM_API_KEY"))
    show(Ready(listen_address, model, view, policy, needs_key), sys.stdout)


def show(ready: Ready, stream: TextIO) -> None:
    """Print the block, with rules of ASCII where the stream has no better ones."""
    rule = "─"
    try:
        rule.encode(stream.encoding)
    except UnicodeEncodeError:
        rule = "-"
    # In one piece, so that no line of another process stands inside.
    stream.write(block(ready, rule))
    stream.flush()


def block(ready: Ready, rule: str) -> str:
    """Return the block between two lines of the character ``rule``; no sides, so that it can be copied."""
    title = " policypatch is ready "
    lines = [f"{rule * 2}{title}{rule * (WIDTH - len(title) - 2)}"]
    for name, text in _rows(ready):
        for label, line in zip([name, *[""] * text.count("\n")], text.split("\n"), strict=True):
            lines.append(f"  {label:<{_TEXT_COLUMN - 2}}{line}")
    return "\n".join([*lines, rule * WIDTH, ""])


@contextlib.asynccontextmanager
async def announced(sock: socket.socket, tell: Callable[[], None]) -> AsyncIterator[None]:
    """Call ``tell`` once ``sock`` takes connections; where that never happens, never."""

    async def wait() -> None:
        while not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            await asyncio.sleep(_POLL_S)
        tell()

    task = asyncio.create_task(wait())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def _rows(ready: Ready) -> Iterator[tuple[str, str]]:
    where = ready.listen_address if ready.listen_address.startswith(_UNIX) else ready.base_url
    yield "address", f"{where}, model {one_line(ready.model)}"
    yield from _patch_rows(ready)
    if (request := _request(ready)) is not None:
        yield "try", request


def _patch_rows(ready: Ready) -> Iterator[tuple[str, str]]:
    by_kind: dict[str, list[str]] = {kind: [] for kind in _KINDS.values()}
    for patch in ready.patches:
        by_kind[_KINDS[patch.manifest.origin["method"]]].append(f"{patch.name} {patch.version}")
    for kind, patches in by_kind.items():
        if patches:
            more = [f"and {len(patches) - _MAX_NAMED} more"] if len(patches) > _MAX_NAMED else []
            yield kind, _wrapped([*patches[:_MAX_NAMED], *more])
    if not ready.patches:
        yield "patches", "none yet; a file put into the folder is served within a second"


def _wrapped(items: list[str]) -> str:
    # Lines break between two items only.
    text = ", ".join(item.replace(" ", "\0") for item in items)
    lines = textwrap.wrap(text, WIDTH - _TEXT_COLUMN, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines).replace("\0", " ")


def _request(ready: Ready) -> str | None:
    """Return a curl command that gets an answer; ``None`` where the policy wants a key."""
    # A compiled text shows in every answer; training shows in those that it was about.
    candidates = sorted(ready.patches, key=lambda patch: patch.manifest.origin["method"] != "text")
    patch = next((patch for patch in candidates if ready.may_have(patch)), None)
    if patch is None and not ready.may_have(None):
        return None
    words = ["curl", "-i", f"{ready.base_url}/chat/completions"]
    if ready.listen_address.startswith(_UNIX):
        words[2:2] = ["--unix-socket", ready.listen_address.removeprefix(_UNIX)]
    headers = ["-H 'Content-Type: application/json'"]
    if patch is not None:
        headers.append(f"-H '{PATCH_HEADER}: {patch.name}'")
    if ready.needs_key:
        headers.append('-H "Authorization: Bearer $VLLM_API_KEY"')
    body = (
        f'{{"model": {json.dumps(ready.model)}, "temperature": 0, "messages": [\n'
        '    {"role": "user", "content": "What is the capital of France?"}]}'
    )
    return " \\\n  ".join([shlex.join(words), *headers, f"-d {shlex.quote(body)}"])
