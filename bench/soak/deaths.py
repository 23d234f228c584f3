"""The part `deaths`: processes of the server are killed, and this program starts it again as a supervisor.

*A process of the engine dies*: readiness goes off within seconds, every request in flight ends with an error,
none hangs and none is wrong, and the next start has the same catalog. The engine core stands still before it
dies, so that requests wait for whatever they can wait for, their patch on its way to the worker included.
*Everything dies during admin calls*, at several instants of a PUT, a DELETE, an activation and a canary: the
next start serves each name as before its call or, and always where the call was answered, as after it.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.errors import CheckFailed
from bench.soak.contents import Content
from bench.soak.load import eventually
from bench.soak.requests import Ask, send
from bench.soak.server import AdminAnswer, call_admin, require_admin
from bench.soak.stage import HOT, KILLED, Stage

#: Within so many seconds a dead engine has to show.
READY_OFF_S = 5.0
#: Within so many seconds every request of a dead engine has to have ended.
NO_HANG_S = 30.0
PUT, DELETE, ACTIVATE, CANARY = KILLED


async def run_deaths(stage: Stage, *, num_kills: int) -> None:
    """Kill the server ``num_kills`` times during calls, then each process of its engine."""
    await _kill_during_calls(stage, num_kills)
    for role in ("engine core", "worker"):
        before = await _kill_under_load(stage, role)
        # A start takes longer than all else in a short run.
        if not stage.is_short:
            await _start_again(stage, role, before)
        else:
            break


async def _kill_under_load(stage: Stage, role: str) -> dict[str, Any]:
    """Kill a process of the engine; gives the catalog as it was before."""
    await stage.activate(stage.contents[HOT][1])
    before = await _catalog(stage)
    load = stage.load(HOT)
    url = stage.url
    async with load:
        if role == "engine core":
            await asyncio.to_thread(stage.server.freeze, role)
        await asyncio.sleep(2 if stage.is_short else 10)
        num_ok = load.tally.num_ok
        killed_s = time.perf_counter()
        await asyncio.to_thread(stage.server.kill, role)
        off_s = await eventually(lambda: _is_off(stage, url), NO_HANG_S, 0.02)
        load.stop()
        await asyncio.wait_for(load.ended(), 10 * NO_HANG_S)
        ended_s = time.perf_counter() - killed_s
    tally = load.tally
    failed = {kind: count for kind, count in tally.kinds.items() if kind != "ok"}
    is_prompt = off_s is not None and off_s <= READY_OFF_S and ended_s <= NO_HANG_S
    stage.findings.note(
        "deaths",
        f"{role} killed under load",
        f"not ready after {'never' if off_s is None else f'{off_s:.2f} s'}; all clients had their end after "
        f"{ended_s:.1f} s: {failed}; {tally.num_ok} answers, {num_ok} of them before; "
        f"{tally.num_wrong} wrong",
        is_prompt and "hung" not in failed and not tally.num_wrong and bool(failed),
        load=tally.as_dict(),
        ready_off_s=off_s,
        ended_s=ended_s,
    )
    return before


async def _start_again(stage: Stage, role: str, before: dict[str, Any]) -> None:
    await asyncio.to_thread(stage.server.restart)
    after = await _catalog(stage)
    is_right = await _answers_right(stage)
    stage.findings.note(
        "deaths",
        f"started again after the death of the {role}",
        f"ready after {stage.server.start_s[-1]:.0f} s with {len(after)} names, "
        + ("the same catalog" if after == before else f"another catalog: {_difference(before, after)}"),
        after == before and is_right,
        start_s=stage.server.start_s[-1],
    )


async def _is_off(stage: Stage, url: str) -> bool:
    try:
        async with stage.session.get(f"{url}/health") as response:
            return response.status != 200
    except OSError:
        return True


async def _catalog(stage: Stage) -> dict[str, Any]:
    """Return name -> what serves: digest -> state, without what drains."""
    async with stage.session.get(f"{stage.url}/v1/patches") as response:
        cards = (await response.json())["data"]
    return {
        card["name"]: {v["digest"]: v["state"] for v in card["versions"] if v["state"] != "draining"}
        for card in cards
    }


def _difference(before: dict[str, Any], after: dict[str, Any]) -> str:
    names = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    return ", ".join(names)


async def _answers_right(stage: Stage) -> bool:
    asks = [
        Ask(i % 2, content.name, False, stage.references.num_tokens)
        for i, content in enumerate(stage.contents.mixed)
    ]
    outcomes = [await send(stage.session, stage.url, ask) for ask in asks]
    return all(o.is_ok and stage.references.judge(o) in ("same", "tie") for o in outcomes)


@dataclass(frozen=True)
class NameState:
    """What a name means, as far as callers can find out."""

    active: str | None
    is_pinned: bool
    canary: str | None


async def _name_state(stage: Stage, name: str) -> NameState:
    answer = await call_admin(stage.session, stage.server, "GET", f"{name}/history")
    if answer.status == 404:
        return NameState(None, False, None)
    record = answer.document
    active, canary = record["active"], record["canary"]
    return NameState(
        active["digest"] if active else None, record["is_pinned"], canary["digest"] if canary else None
    )


async def _kill_during_calls(stage: Stage, num_kills: int) -> None:
    took_s = 0.0
    findings: list[str] = []
    num_answered = num_before = num_after = 0
    for index in range(num_kills + 1):
        before = await _prepare(stage)
        after = _after(stage)
        started_s = time.perf_counter()
        calls = [asyncio.create_task(_call(stage, name)) for name in _turned(KILLED, index)]
        if index == 0:
            # No process is killed the first time: it shows how long the calls take together, and that they do
            # what they should.
            answers = [await call for call in calls]
            took_s = time.perf_counter() - started_s
            states = {name: await _name_state(stage, name) for name in KILLED}
            if not all(answer.is_ok for answer in answers) or states != after:
                raise CheckFailed([f"admin calls: expected {after}, got {states}"])
            continue
        await asyncio.sleep(took_s * (index - 0.5) / num_kills)
        stage.server.kill_all()
        ended = dict(zip(_turned(KILLED, index), [await call for call in calls], strict=True))
        await asyncio.to_thread(stage.server.restart)
        for name in KILLED:
            state = await _name_state(stage, name)
            served = await _served(stage, name)
            possible = (after[name],) if ended[name].is_ok else (before[name], after[name])
            num_answered += ended[name].is_ok
            num_before += state == before[name] != after[name]
            num_after += state == after[name]
            if state not in possible or served not in (state.active, state.canary):
                findings.append(f"kill {index}, {name}: {state}, answered by {served}; possible: {possible}")
    stage.findings.note(
        "deaths",
        f"everything killed {num_kills} times during a PUT, a DELETE, an activation and a canary",
        f"{num_answered} of {4 * num_kills} calls had been answered; afterwards {num_before} names as before "
        f"their call, {num_after} as after it" + (f"; {len(findings)} neither" if findings else ""),
        not findings,
        calls_took_s=took_s,
        findings=findings[:10],
    )


def _turned(names: Sequence[str], index: int) -> list[str]:
    """Return the calls in another order for each kill, so that each is the first in its turn."""
    shift = index % len(names)
    return [*names[shift:], *names[:shift]]


async def _prepare(stage: Stage) -> dict[str, NameState]:
    """Bring the names of this part to where their calls begin."""
    for name in KILLED:
        await call_admin(stage.session, stage.server, "DELETE", name)
        old, new = stage.contents[name]
        stage.server.install(old)
        await _loaded(stage, old)
        await require_admin(
            stage.session, stage.server, "POST", f"{name}/activate", body={"version": old.version}
        )
        if name == PUT:
            await require_admin(
                stage.session, stage.server, "POST", f"{name}/activate", body={"follow": True}
            )
        else:
            stage.server.install(new)
            await _loaded(stage, new)
    return {name: await _name_state(stage, name) for name in KILLED}


async def _loaded(stage: Stage, content: Content) -> None:
    async def holds() -> bool:
        return (await stage.resident()).get(content.digest) in ("active", "loaded")

    if await eventually(holds, 60.0, 0.02) is None:
        raise CheckFailed([f"{content.reference}: expected it to be loaded, got {await stage.resident()}"])


def _after(stage: Stage) -> dict[str, NameState]:
    contents = stage.contents
    return {
        PUT: NameState(contents[PUT][1].digest, False, None),
        DELETE: NameState(None, False, None),
        ACTIVATE: NameState(contents[ACTIVATE][1].digest, True, None),
        CANARY: NameState(contents[CANARY][0].digest, True, contents[CANARY][1].digest),
    }


async def _call(stage: Stage, name: str) -> AdminAnswer:
    new = stage.contents[name][1]
    session, server = stage.session, stage.server
    if name == PUT:
        data = await asyncio.to_thread(new.path.read_bytes)
        return await call_admin(session, server, "PUT", f"{name}/{new.version}", data=data)
    if name == DELETE:
        return await call_admin(session, server, "DELETE", name)
    body: dict[str, Any] = {"version": new.version}
    if name == ACTIVATE:
        return await call_admin(session, server, "POST", f"{name}/activate", body=body)
    return await call_admin(session, server, "POST", f"{name}/canary", body=body | {"share": 0.5})


async def _served(stage: Stage, name: str) -> str | None:
    """Return the digest that answers the bare name; ``None`` where it means nothing."""
    outcome = await send(stage.session, stage.url, Ask(0, name, False, 1))
    return outcome.digest if outcome.is_ok else None
