"""The id of a request, and the line that the log has on it."""

import logging
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import httpx
import pytest

from server.request.access_log import AccessLog
from server.request.trace import NoTracing
from tests.server.stand import Stand, Stream

PIRATE = {"X-Policy-Patch": "pirate"}
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE_ID}-00f067aa0ba902b7-01"


@pytest.fixture
async def client(stand: Stand) -> AsyncIterator[httpx.AsyncClient]:
    app = AccessLog(stand.app, is_written=True, excluded=["/health"])
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


@pytest.fixture
def lines() -> Iterator[list[dict[str, Any]]]:
    """What each line says, by field."""
    found: list[dict[str, Any]] = []
    plain = set(vars(logging.makeLogRecord({})))

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append({key: value for key, value in vars(record).items() if key not in plain})

    logger, keep = logging.getLogger("server.request.access_log"), Keep()
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(keep)
    yield found
    logger.removeHandler(keep)
    logger.setLevel(level)


async def ask(
    client: httpx.AsyncClient,
    headers: Mapping[str, str] = PIRATE,
    path: str = "/v1/chat/completions",
    **body: Any,
) -> httpx.Response:
    return await client.post(path, headers=headers, json=body)


async def test_a_request_gets_one_line_with_what_answered_it(
    stand: Stand, client: httpx.AsyncClient, lines: list[dict[str, Any]]
) -> None:
    patch = await stand.load()
    await ask(client, PIRATE | {"X-Request-Id": "abc-1", "traceparent": TRACEPARENT}, stream=True)
    (line,) = lines
    assert (line.pop("first_token_s") >= 0, line.pop("duration_s") >= 0) == (True, True)
    assert line == {
        "request_id": "abc-1",
        "trace_id": TRACE_ID,
        "method": "POST",
        "path": "/v1/chat/completions",
        "status": 200,
        "outcome": "ok",
        "patch": "pirate",
        "version": "1.0.0",
        "digest": patch.digest,
        "caller": "flags",
        "prompt_tokens": 0,
        "generation_tokens": 3,
    }


@pytest.mark.parametrize(
    ("headers", "body", "expected"),
    [
        ({}, {}, {"outcome": "ok", "patch": "none", "generation_tokens": 3}),
        ({"X-Policy-Patch": "gone"}, {}, {"outcome": "rejected", "code": "patch_not_found", "status": 404}),
        (PIRATE, {"model": "no-such"}, {"outcome": "client_error", "status": 404}),
        (PIRATE, {"breaks": True}, {"outcome": "server_error", "status": 500}),
    ],
)
async def test_the_outcome_is_that_of_the_metrics(
    stand: Stand,
    client: httpx.AsyncClient,
    lines: list[dict[str, Any]],
    headers: dict[str, str],
    body: dict[str, Any],
    expected: dict[str, Any],
) -> None:
    await stand.load()
    await ask(client, headers, **body)
    (line,) = lines
    assert line.items() >= expected.items()


@pytest.mark.parametrize(
    ("margins", "told"),
    [
        ([], {}),
        ([-0.25], {"condition": "not_met", "margin": -0.25}),
        ([3.0, 0.5], {"condition": "met", "margin": 0.5}),
        ([3.0, -0.5], {"condition": "mixed", "margin": -0.5}),
    ],
)
async def test_the_line_says_how_the_condition_was_decided(
    stand: Stand,
    client: httpx.AsyncClient,
    lines: list[dict[str, Any]],
    margins: list[float],
    told: dict[str, Any],
) -> None:
    await stand.load()
    stand.engine.margins = margins
    await ask(client)
    (line,) = lines
    assert {key: line[key] for key in ("condition", "margin") if key in line} == told


async def test_a_response_that_runs_on_gets_its_line_when_it_ends(
    stand: Stand, client: httpx.AsyncClient, lines: list[dict[str, Any]]
) -> None:
    await stand.load()
    stand.engine.may_start.clear()
    assert (await ask(client, path="/v1/responses")).status_code == 200
    assert lines == []
    stand.engine.may_start.set()
    await stand.app.state.background
    await stand.until(lambda: lines)
    assert (lines[0]["outcome"], lines[0]["generation_tokens"]) == ("ok", 3)


async def test_nothing_that_is_asked_or_answered_is_in_a_line(
    stand: Stand, client: httpx.AsyncClient, lines: list[dict[str, Any]]
) -> None:
    await stand.load()
    secret = "a text that only the model may read"
    await ask(client, messages=[{"role": "user", "content": secret}], breaks=True)
    await ask(client, path=f"/v1/chat/completions?q={secret}")
    assert len(lines) == 2
    assert secret not in repr(lines)


async def test_health_checks_can_be_left_out(client: httpx.AsyncClient, lines: list[dict[str, Any]]) -> None:
    await client.get("/health")
    await client.get("/v1/models")
    assert [line["path"] for line in lines] == ["/v1/models"]


async def test_the_clients_id_is_kept_and_answered(stand: Stand, client: httpx.AsyncClient) -> None:
    await stand.load()
    answer = await ask(client, PIRATE | {"X-Request-Id": "Root=1-67891233;a/b+c@d"})
    assert answer.headers.get_list("x-request-id") == ["Root=1-67891233;a/b+c@d"]


@pytest.mark.parametrize("sent", ["", "a b", 'say "hi"', "x" * 129, "line\tbreak", "ä"])
async def test_an_id_that_can_stand_nowhere_is_replaced(client: httpx.AsyncClient, sent: str) -> None:
    answer = await client.get("/v1/models", headers=[(b"X-Request-Id", sent.encode("latin-1"))])
    (given,) = answer.headers.get_list("x-request-id")
    assert len(given) == 32
    assert int(given, 16)


async def test_every_request_without_an_id_gets_one_of_its_own(client: httpx.AsyncClient) -> None:
    given = {(await client.get("/v1/models")).headers["x-request-id"] for _ in range(5)}
    assert len(given) == 5


@pytest.mark.parametrize(
    ("sent", "trace_id", "is_sampled"),
    [
        (TRACEPARENT, TRACE_ID, True),
        (TRACEPARENT[:-1] + "0", TRACE_ID, False),
        (TRACEPARENT + "-more", TRACE_ID, True),
        (TRACEPARENT.replace(TRACE_ID, "0" * 32), None, False),
        (TRACEPARENT.upper(), None, False),
        ("ff" + TRACEPARENT[2:], None, False),
        ("nonsense", None, False),
    ],
)
def test_the_trace_of_a_caller_is_known_without_tracing(
    sent: str, trace_id: str | None, is_sampled: bool
) -> None:
    trace = NoTracing().begin([(b"traceparent", sent.encode())], "x")
    assert (trace.trace_id, trace.is_sampled) == (trace_id, is_sampled)


async def test_latencies_name_the_trace_where_openmetrics_is_spoken(
    stand: Stand, client: httpx.AsyncClient
) -> None:
    from prometheus_client.openmetrics.exposition import generate_latest

    await stand.load()
    await ask(client, PIRATE | {"traceparent": TRACEPARENT})
    await ask(client, PIRATE | {"traceparent": TRACEPARENT.replace("4bf9", "ffff")[:-1] + "0"})
    marked = [line for line in generate_latest(stand.registry).decode().splitlines() if "# {" in line]
    names = {line.partition("{")[0] for line in marked}
    assert names == {
        "policy_patch_time_to_first_token_seconds_bucket",
        "policy_patch_inter_token_latency_seconds_bucket",
    }
    assert all(f'# {{trace_id="{TRACE_ID}"}}' in line for line in marked)


async def test_a_client_that_goes_away_has_cancelled(stand: Stand, lines: list[dict[str, Any]]) -> None:
    await stand.load()
    stand.engine.may_go_on.clear()
    app: Any = AccessLog(stand.app, is_written=True)
    stream = Stream(app, "pirate", {"stream": True}, "/v1/chat/completions")
    await stream.start()
    await stream.hang_up()
    stand.engine.may_go_on.set()
    await stand.until(lambda: lines)
    assert lines[0]["outcome"] == "cancelled"


async def test_a_patch_is_not_named_where_the_engine_was_not_asked_under_it(
    stand: Stand, client: httpx.AsyncClient, lines: list[dict[str, Any]]
) -> None:
    await stand.load()
    await ask(client, PIRATE, model="no-such")
    assert not {"patch", "version", "digest", "arm"} & lines[0].keys()
