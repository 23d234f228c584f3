"""The part `faults`: what breaks around a server that goes on living.

Each fault runs under the load of all clients. Whoever did nothing wrong must notice nothing: no failed and no
wrong answer, and when it is over nothing is in flight. What the fault itself has to show is checked beside.
"""

import asyncio
import contextlib
import json
import resource
import shutil
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

from bench.soak.load import eventually
from bench.soak.requests import Ask
from bench.soak.server import KEY, call_admin, require_admin
from bench.soak.stage import HOT, LARGE, TRIAL, Stage

#: Clients that go away or read slowly.
NUM_ODD_CLIENTS = 16
#: A day, and how far back from there.
_FORWARD_S, _BACK_S = 86_400.0, -172_800.0

#: Says in a few words what was seen, and whether that is right.
Seen = tuple[str, bool]


async def run_faults(stage: Stage) -> None:
    """Run every fault of this module."""
    faults: dict[str, Callable[[Stage], Awaitable[Seen]]] = {
        f"{NUM_ODD_CLIENTS} clients go away in mid-stream": _clients_gone,
        f"{NUM_ODD_CLIENTS} clients read a byte a second": _slow_clients,
        "the patch folder is moved away, and comes back": _folder_removed,
        "an upload breaks off half way": _upload_cut,
        "callers of orders hang up": _caller_gone,
        "the disk is full": _disk_full,
        "a worker refuses the new content of a name": _worker_refuses,
    }
    if stage.server.clock is not None:
        faults["the clock jumps a day on, and two days back"] = _clock_jumps
    else:
        stage.findings.note("faults", "the clock jumps", "not tried: there is no libfaketime here", True)
    for what, fault in faults.items():
        await _under_load(stage, what, fault)


async def _under_load(stage: Stage, what: str, fault: Callable[[Stage], Awaitable[Seen]]) -> None:
    load = stage.load(HOT)
    started_s = time.perf_counter()
    async with load:
        seen, is_right = await fault(stage)
        # Also a short fault has to meet some requests.
        await asyncio.sleep(max(0.0, 2.0 - (time.perf_counter() - started_s)))
    left = await stage.idle()
    tally = load.tally
    is_ok = is_right and not tally.num_failed and not tally.num_wrong and tally.num_ok > 0 and left is None
    others = f"others: {tally.num_ok} answers, {tally.num_failed} failed, {tally.num_wrong} wrong"
    rest = "" if left is None else f"; still in flight: {left}"
    stage.findings.note("faults", what, f"{seen}; {others}{rest}", is_ok, load=tally.as_dict())


async def _clients_gone(stage: Stage) -> Seen:
    num_begun = 0

    async def begin_and_go(index: int) -> None:
        nonlocal num_begun
        ask = _long_ask(stage, index)
        post = stage.session.post(stage.url + ask.path, json=ask.body(), headers=ask.all_headers())
        async with post as response:
            await response.content.readany()
            num_begun += response.status == 200
            # Closes the connection; an answer that is read to its end would keep it.
            response.close()

    await asyncio.gather(*(begin_and_go(i) for i in range(NUM_ODD_CLIENTS)))
    return f"{num_begun} of them had begun", num_begun == NUM_ODD_CLIENTS


async def _slow_clients(stage: Stage) -> Seen:
    seconds = 3 if stage.is_short else 20

    async def read_slowly(index: int) -> int:
        with _raw_stream(stage, _long_ask(stage, index)) as connection:
            num_bytes = 0
            for _ in range(seconds):
                num_bytes += len(await asyncio.get_running_loop().sock_recv(connection, 1))
                await asyncio.sleep(1)
            return num_bytes

    counts = await asyncio.gather(*(read_slowly(i) for i in range(NUM_ODD_CLIENTS)))
    return f"each got {min(counts)} bytes or more in {seconds} s, then left", min(counts) > 0


def _long_ask(stage: Stage, index: int) -> Ask:
    return Ask(index % 2, HOT, True, 4 * stage.references.num_tokens)


@contextlib.contextmanager
def _raw_stream(stage: Stage, ask: Ask) -> Iterator[socket.socket]:
    """Send a request over a bare socket with the smallest buffer that the kernel gives."""
    parts = urlsplit(stage.url)
    assert parts.hostname is not None
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        connection.connect((parts.hostname, parts.port or 80))
        body = json.dumps(ask.body()).encode()
        lines = [f"POST {ask.path} HTTP/1.1", f"Host: {parts.netloc}", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in ask.all_headers().items()]
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        connection.setblocking(False)
        yield connection


async def _folder_removed(stage: Stage) -> Seen:
    hot = stage.contents[HOT]
    await stage.activate(hot[0])
    await stage.activate(hot[1])
    patches = stage.server.patches
    away = patches.with_name("patches-away")
    shutil.move(patches, away)
    try:
        noticed_s = await eventually(lambda: _is_metric(stage, "policy_patch_folder_readable", 0), 30)
        back = await call_admin(stage.session, stage.server, "POST", f"{HOT}/rollback")
        is_back = back.is_ok and back.document["active"]["digest"] == hot[0].digest
    finally:
        shutil.move(away, patches)
    seen_again_s = await eventually(lambda: _is_metric(stage, "policy_patch_folder_readable", 1), 30)
    is_right = noticed_s is not None and seen_again_s is not None and is_back
    return f"noticed after {_seconds(noticed_s)}, rolled back without it, readable again", is_right


async def _upload_cut(stage: Stage) -> Seen:
    content = stage.contents[TRIAL][0]
    data = content.path.read_bytes()
    path = f"{content.name}/{content.version}"
    writer = await _begin_call(stage, "PUT", path, "application/octet-stream", len(data))
    writer.write(data[: len(data) // 2])
    await writer.drain()
    await asyncio.sleep(0.5)
    writer.close()

    async def is_clean() -> bool:
        return not list(stage.server.patches.glob(".*.upload*"))

    clean_s = await eventually(is_clean, 30)
    is_absent = content.digest not in await stage.resident()
    return f"nothing of it is left after {_seconds(clean_s)}", clean_s is not None and is_absent


async def _caller_gone(stage: Stage) -> Seen:
    """Whoever hangs up can't know whether the order had begun; carried out or not, process and disk agree."""
    hot = stage.contents[HOT]
    num_done, do_all_agree = 0, True
    for index, wait_s in enumerate((0.0, 0.01, 0.05, 0.2)):
        await stage.activate(hot[2])
        body = json.dumps({"version": hot[3].digest}).encode()
        writer = await _begin_call(stage, "POST", f"{HOT}/activate", "application/json", len(body))
        writer.write(body)
        await writer.drain()
        await asyncio.sleep(wait_s)
        writer.close()
        await asyncio.sleep(0.5 + index)
        active = await stage.active_digest(HOT)
        document = json.loads((stage.server.state / "names" / f"{HOT}.json").read_text(encoding="utf-8"))
        do_all_agree = do_all_agree and document["record"]["active"]["digest"] == active
        num_done += active == hot[3].digest
    return f"{num_done} of 4 were carried out, the others not at all", do_all_agree and num_done > 0


async def _begin_call(
    stage: Stage, method: str, path: str, kind: str, num_bytes: int
) -> asyncio.StreamWriter:
    """Send the head of an admin call; the body is the caller's."""
    parts = urlsplit(stage.url)
    _, writer = await asyncio.open_connection(parts.hostname, parts.port)
    head = (
        f"{method} /v1/patches/{path} HTTP/1.1\r\nHost: {parts.netloc}\r\nX-Admin-Key: {KEY}\r\n"
        f"Content-Type: {kind}\r\nContent-Length: {num_bytes}\r\n\r\n"
    )
    writer.write(head.encode())
    return writer


async def _disk_full(stage: Stage) -> Seen:
    hot, trial = stage.contents[HOT], stage.contents[TRIAL][0]
    await stage.activate(hot[0])
    num_lines = _num_lines(stage.server.audit_log)
    before = resource.prlimit(stage.server.pid, resource.RLIMIT_FSIZE)
    # No file may grow: every write of the server's front end to a disk fails (EFBIG where a full disk gives
    # ENOSPC), its own log included.
    resource.prlimit(stage.server.pid, resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        refused = await call_admin(
            stage.session, stage.server, "POST", f"{HOT}/activate", body={"version": hot[1].digest}
        )
        path = f"{trial.name}/{trial.version}"
        upload = await call_admin(stage.session, stage.server, "PUT", path, data=trial.path.read_bytes())
        is_kept = await stage.active_digest(HOT) == hot[0].digest
        is_told = await _is_metric(stage, "policy_patch_state_saved", 0)
        await asyncio.sleep(1.5)
    finally:
        resource.prlimit(stage.server.pid, resource.RLIMIT_FSIZE, before)
    again = await stage.activate(hot[1])

    async def is_logged() -> bool:
        return _num_lines(stage.server.audit_log) > num_lines

    is_logged_s = await eventually(is_logged, 30)
    seen = f"activate {refused.status} {refused.code}, upload {upload.status} {upload.code}, afterwards done"
    is_right = (refused.status, refused.code) == (500, "state_not_saved") and upload.status == 409
    return seen, is_right and is_kept and is_told and again and is_logged_s is not None


async def _worker_refuses(stage: Stage) -> Seen:
    fits, too_large = stage.contents[LARGE]
    stage.server.install(fits, f"{LARGE}.safetensors")
    await stage.settle(fits)
    stage.server.install(too_large, f"{LARGE}.safetensors")

    async def is_refused() -> bool:
        async with stage.session.get(f"{stage.url}/v1/patches") as response:
            failures = (await response.json())["failures"]
        return any(
            f["file"] == f"{LARGE}.safetensors" and f["reason"] == "residency_failed" for f in failures
        )

    refused_s = await eventually(is_refused, 30)
    is_kept = await stage.active_digest(LARGE) == fits.digest
    (stage.server.patches / f"{LARGE}.safetensors").unlink()
    return f"refused after {_seconds(refused_s)}, the old one serves", refused_s is not None and is_kept


async def _clock_jumps(stage: Stage) -> Seen:
    clock = stage.server.clock
    assert clock is not None
    hot = stage.contents[HOT]
    await stage.activate(hot[0])
    rules = {"share": 0.5, "promote_after_s": 3600, "min_requests": 1, "max_error_rate": 0.5}
    await require_admin(
        stage.session, stage.server, "POST", f"{HOT}/canary", body={"version": hot[1].digest, **rules}
    )
    active = []
    try:
        for shift_s in (0.0, _FORWARD_S, _BACK_S):
            clock.shift(shift_s)
            await asyncio.sleep(4)
            active.append(await stage.active_digest(HOT))
        end = await call_admin(stage.session, stage.server, "POST", f"{HOT}/canary", body={"end": "abort"})
        is_taken = await stage.activate(hot[2])
    finally:
        clock.shift(0)
    is_kept = set(active) == {hot[0].digest}
    kept = "an hour's canary was not promoted" if is_kept else "an hour's canary was promoted in seconds"
    return f"{kept}, orders are taken", is_kept and end.is_ok and is_taken


async def _is_metric(stage: Stage, name: str, value: float) -> bool:
    return await stage.metric(name) == value


def _num_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n")


def _seconds(seconds: float | None) -> str:
    return "never" if seconds is None else f"{seconds:.1f} s"
