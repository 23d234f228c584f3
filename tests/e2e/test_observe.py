"""Traces and the JSON log of a real server: one request, found again in each of them."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import PatchMaker, RunningServer, StartServer
from tests.e2e.otlp_receiver import Received, Receiver, receiving

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.server("own", why="sends spans, writes a log of JSON and an audit log, knows a tenant"),
]

SECRET = "a text that only the model may read"
POLICY = """\
version: 1
others: {allow: all, allow_none: true}
tenants: {header: X-Tenant, trusted: [127.0.0.1], rules: {acme: {allow: all, allow_none: true}}}
"""


@pytest.fixture(scope="module")
def receiver() -> Iterator[tuple[Receiver, int]]:
    with receiving() as started:
        yield started


@pytest.fixture(scope="module")
def server(
    start_module_server: StartServer,
    tiny_model: Path,
    tiny_patches: PatchMaker,
    receiver: tuple[Receiver, int],
    tmp_path_factory: pytest.TempPathFactory,
) -> RunningServer:
    folder = tmp_path_factory.mktemp("observed")
    (folder / "policy.yaml").write_text(POLICY)
    server = start_module_server(
        tiny_model,
        *("--dtype", "float32", "--max-model-len", "512"),
        *("--otlp-traces-endpoint", f"http://127.0.0.1:{receiver[1]}", "--log-format", "json"),
        *("--policy", str(folder / "policy.yaml"), "--audit-log", str(folder / "audit.jsonl")),
    )
    server.wait_ready()
    server.install(tiny_patches.of_token_ids("traced", list(range(200, 248))))
    return server


def ask(server: RunningServer, number: int, **headers: str) -> Any:
    """Ask in a trace of its own; gives the answer, the trace and the caller's span."""
    trace_id, span_id = f"{number:032x}", f"{number:016x}"
    answer = server.client.post(
        "/v1/completions",
        headers={"traceparent": f"00-{trace_id}-{span_id}-01", "X-Request-Id": f"r-{number}", **headers},
        json={"model": "base", "prompt": SECRET, "max_tokens": 4, "temperature": 0, "ignore_eos": True},
    )
    return answer, trace_id, span_id


def lines_of(server: RunningServer) -> list[dict[str, Any]]:
    """The lines of the server's log, without what is cut off at its end."""
    text = server.log.read_text(encoding="utf-8", errors="replace")
    return [json.loads(line) for line in text[: text.rindex("\n") + 1].split("\n") if line]


def line_of(server: RunningServer, request_id: str) -> dict[str, Any]:
    deadline = time.monotonic() + 30
    while True:
        found = [line for line in lines_of(server) if line.get("request_id") == request_id]
        if found:
            (line,) = found
            return line
        assert time.monotonic() < deadline, server.log_tail()
        time.sleep(0.05)


def test_a_request_is_one_trace_from_the_caller_to_the_write_of_its_prefix(
    server: RunningServer, receiver: tuple[Receiver, int], tiny_patches: PatchMaker
) -> None:
    digest = tiny_patches.of_token_ids("traced", list(range(200, 248))).digest
    answer, trace_id, span_id = ask(server, 0xA1, **{"X-Policy-Patch": "traced", "X-Tenant": "acme"})
    assert answer.status_code == 200, answer.text
    expected = {
        "policypatch.request",
        "policy_patch.select",
        "policy_patch.residency",
        "policy_patch.inject",
        "llm_request",
    }
    spans = receiver[0].wait_for(lambda found: {s.name for s in found} >= expected, trace_id)

    root = spans["policypatch.request"]
    assert root.parent_id == span_id
    for name in expected - {"policypatch.request"}:
        assert spans[name].parent_id == root.span_id, name
        assert root.start_s <= spans[name].start_s <= spans[name].end_s, name
    known = {
        "policy_patch.patch": "traced",
        "policy_patch.version": "1.0.0",
        "policy_patch.digest": digest,
        "policy_patch.caller": "tenants.acme",
    }
    for name in ("policypatch.request", "llm_request"):
        assert spans[name].attributes.items() >= known.items(), name
    assert spans["policy_patch.inject"].attributes["policy_patch.digest"] == digest
    assert root.attributes["policy_patch.generation_tokens"] == 4
    assert root.attributes["http.request_id"] == "r-161"
    assert SECRET not in repr(receiver[0].spans)


def test_the_base_models_spans_say_that_no_patch_answered(
    server: RunningServer, receiver: tuple[Receiver, int]
) -> None:
    _, trace_id, _ = ask(server, 0xA2)

    def are_there(found: list[Received]) -> bool:
        return {"policypatch.request", "llm_request"} <= {span.name for span in found}

    spans = receiver[0].wait_for(are_there, trace_id)
    assert spans["llm_request"].attributes["policy_patch.patch"] == "none"
    assert "policy_patch.inject" not in spans


def test_a_trace_that_its_caller_does_not_keep_is_not_sent(
    server: RunningServer, receiver: tuple[Receiver, int]
) -> None:
    headers = {"traceparent": f"00-{0xA3:032x}-{0xA3:016x}-00", "X-Policy-Patch": "traced"}
    ask(server, 0xA3, **headers)
    _, trace_id, _ = ask(server, 0xA4)
    receiver[0].wait_for(lambda found: any(s.name == "policypatch.request" for s in found), trace_id)
    assert not [span for span in receiver[0].spans if span.trace_id == f"{0xA3:032x}"]


def test_the_log_is_json_with_one_line_for_the_request_and_no_text_of_it(server: RunningServer) -> None:
    answer, trace_id, _ = ask(server, 0xB1, **{"X-Policy-Patch": "traced", "X-Tenant": "acme"})
    assert answer.headers["x-request-id"] == "r-177"
    line = line_of(server, "r-177")
    assert (
        line.items()
        >= {
            "patch": "traced",
            "version": "1.0.0",
            "digest": answer.headers["x-policy-patch-digest"],
            "caller": "tenants.acme",
            "outcome": "ok",
            "status": 200,
            "path": "/v1/completions",
            "generation_tokens": 4,
            "trace_id": trace_id,
        }.items()
    )
    assert line["prompt_tokens"] == answer.json()["usage"]["prompt_tokens"]
    assert 0 < line["first_token_s"] < line["duration_s"]
    text = server.log.read_text(encoding="utf-8", errors="replace")
    assert SECRET not in text
    # Warnings and progress that libraries print past any log while the engine starts, too.
    assert [
        line for line in text[: text.rindex("\n")].split("\n") if not isinstance(json.loads(line), dict)
    ] == []


def test_the_request_id_is_the_same_in_answer_audit_and_the_engines_id(server: RunningServer) -> None:
    answer, _, _ = ask(server, 0xB2, **{"X-Policy-Patch": "traced"})
    assert answer.json()["id"] == "cmpl-r-178"
    (index,) = (i for i, flag in enumerate(server.process.args) if flag == "--audit-log")
    audit = Path(server.process.args[index + 1])
    deadline = time.monotonic() + 30
    while '"request_id":"r-178"' not in audit.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_latencies_name_a_trace_where_the_scraper_speaks_openmetrics(server: RunningServer) -> None:
    _, trace_id, _ = ask(server, 0xB3, **{"X-Policy-Patch": "traced"})
    page = server.client.get("/metrics", headers={"Accept": "application/openmetrics-text"}).text
    assert page.endswith("# EOF\n")
    bucket = r'^policy_patch_time_to_first_token_seconds_bucket{.*patch="traced".*} .* # '
    assert re.search(bucket + f'{{trace_id="{trace_id}"}}', page, re.MULTILINE)


def test_an_answer_that_is_not_streamed_had_its_first_token_before_its_last(server: RunningServer) -> None:
    def first_tokens_s() -> float:
        return server.metric("policy_patch_time_to_first_token_seconds_sum", patch="traced")

    before = first_tokens_s()
    answer = server.client.post(
        "/v1/completions",
        headers={"X-Policy-Patch": "traced", "X-Request-Id": "whole"},
        json={"model": "base", "prompt": SECRET, "max_tokens": 200, "ignore_eos": True},
    )
    assert answer.json()["usage"]["completion_tokens"] == 200
    assert first_tokens_s() - before < line_of(server, "whole")["duration_s"] / 4


def test_a_collector_that_is_gone_slows_nothing_and_the_log_says_so_once(
    server: RunningServer, receiver: tuple[Receiver, int]
) -> None:
    receiver[0].stop()
    deadline = time.monotonic() + 120
    while server.metric("policy_patch_spans_dropped_total") < 20:
        assert ask(server, 0xC1, **{"X-Policy-Patch": "traced"})[0].status_code == 200
        assert time.monotonic() < deadline
        time.sleep(0.2)
    said = [line["message"] for line in lines_of(server) if "traces can't be sent" in line["message"]]
    assert len(said) == 1
    assert not [line for line in lines_of(server) if "opentelemetry" in line["name"]]
