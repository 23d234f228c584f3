"""The question about the front end: who is asked for what, and when an answer does not count."""

import argparse
import json
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import aiohttp
import pytest
from aiohttp import web
from vllm.v1.core.sched.output import CachedRequestData, NewRequestData, SchedulerOutput

from bench import frontend
from bench.errors import CheckFailed, RequestFailed
from bench.load.answers import Chat, ask_at_rate, ask_in_turn, chat_body
from bench.report.quiet import quiet_ratio
from bench.servers.front_ends import CALLER_KEY, NUM_KEYS, OURS, canary_orders, server_spec
from bench.servers.instant_executor import FIRST_TOKEN, InstantExecutor
from bench.servers.launch import EngineOptions
from bench.servers.patch_set import PatchFile
from bench.servers.processor_time import processor_s
from server.policy.caller import Credentials, identify
from server.policy.file import load_policy

FIVE = argparse.Namespace(patches=5)


def stage(*names: str) -> frontend.Stage:
    servers = {name: frontend.Server(f"http://{name}", 1, 5) for name in names}
    return frontend.Stage(SimpleNamespace(), servers, FIVE)  # type: ignore[arg-type]


def test_ratios_are_against_vllms_own_server_whatever_is_asked_for() -> None:
    args = frontend.build_parser().parse_args(["--model", "m", "--arms", "many,header"])
    assert args.arms == ("plain", "many", "header")


def test_all_arms_are_those_that_the_page_explains() -> None:
    page = (Path(frontend.__file__).parent / "README.md").read_text()
    assert all(f"`{arm}`" in page for arm in frontend.ARMS)


def test_requests_go_through_the_patches_of_their_server() -> None:
    chats = stage("ours").chats(frontend.ARMS["joined"], 5, 1, is_streamed=False)
    assert [chat.headers["X-Policy-Patch"] for chat in chats][3:] == ["p-3, p-4", "p-4, p-0"]
    assert chats[0].patches == ("p-0@1.0.0, p-1@1.0.0",)
    (chat,) = stage("ours").chats(frontend.ARMS["alias"], 1, 1, is_streamed=True)
    assert json.loads(chat.body)["model"] == "bench:p-0"
    assert "X-Policy-Patch" not in chat.headers


def test_an_answer_without_a_patch_says_so_and_vllms_own_says_nothing() -> None:
    assert stage("ours").chats(frontend.ARMS["idle"], 1, 1, is_streamed=False)[0].patches == ("none",)
    assert stage("plain").chats(frontend.ARMS["plain"], 1, 1, is_streamed=False)[0].patches == (None,)


@pytest.fixture
async def url() -> AsyncIterator[str]:
    """A server that streams as many events as tokens are asked for, and names the patch asked for."""

    async def answer(request: web.Request) -> web.Response:
        body = await request.json()
        events = "".join("data: {}\n\n" for _ in range(body["max_tokens"] + 1)) + "data: [DONE]\n\n"
        is_refused = body["messages"][0]["content"] == "refused"
        headers = {"X-Policy-Patch": request.headers.get("X-Policy-Patch", "none")}
        return web.Response(text=events, headers=headers, status=400 if is_refused else 200)

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def test_every_request_is_answered_in_turn_and_at_a_rate(url: str) -> None:
    chats = [Chat(url, chat_body("m", "hello", 3, is_streamed=True), patches=("none",))] * 6
    async with aiohttp.ClientSession() as session:
        in_turn = await ask_in_turn(session, chats, concurrency=2)
        at_rate = await ask_at_rate(session, chats, rate_per_s=1000.0, seed="0")
    assert [len(answers.latencies_s) for answers in (in_turn, at_rate)] == [6, 6]
    assert [answers.num_events for answers in (in_turn, at_rate)] == [24, 24]


@pytest.mark.parametrize(
    ("prompt", "patches", "error"),
    [("refused", ("none",), RequestFailed), ("hello", ("p-0@1.0.0",), CheckFailed)],
)
async def test_an_answer_that_is_none_or_names_another_patch_ends_the_run(
    url: str, prompt: str, patches: tuple[str, ...], error: type[Exception]
) -> None:
    chats = [Chat(url, chat_body("m", prompt, 1, is_streamed=False), patches=patches)]
    async with aiohttp.ClientSession() as session:
        with pytest.raises(error):
            await ask_in_turn(session, chats, concurrency=1)


def test_the_policy_file_knows_the_caller(tmp_path: Path) -> None:
    flag, path = OURS["keys"].flags(tmp_path)
    assert flag == "--policy"
    policy = load_policy(Path(path)).policy
    assert len(policy.key_rules) == NUM_KEYS
    credentials = Credentials([(b"authorization", f"Bearer {CALLER_KEY}".encode())])
    assert identify(credentials, policy).key == f"caller-{NUM_KEYS // 2}"


def test_a_server_with_a_canary_has_both_versions_and_is_ordered_to_try_one(tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    for version in ("1.0.0", "2.0.0"):
        (made / f"p-0-{version}.safetensors").touch()
    patches = [PatchFile("p-0", "sha256:0", made / "p-0-1.0.0.safetensors", 1)]
    spec = server_spec("canary", EngineOptions("m"), patches, 1, tmp_path)
    assert "--admin-key-file" in spec.command
    assert sorted(path.name for path in (tmp_path / "patches-canary").iterdir()) == [
        "p-0-1.0.0.safetensors",
        "p-0-2.0.0.safetensors",
    ]
    assert [path.rpartition("/")[2] for path, _ in canary_orders("canary")] == ["activate", "canary"]
    assert not canary_orders("plain")
    assert not canary_orders("ours")


def executor() -> InstantExecutor:
    made = InstantExecutor.__new__(InstantExecutor)
    made._init_executor()
    return made


def step(scheduled: dict[str, int], new: dict[str, int], cached: dict[str, int]) -> SchedulerOutput:
    """A step: request -> tokens of it; new request -> its prompt; other request -> what is computed."""
    output = SchedulerOutput.make_empty()
    made = [
        NewRequestData(name, [7] * length, [], None, None, ([],), 0, None) for name, length in new.items()
    ]
    others = CachedRequestData.make_empty()
    others = replace(others, req_ids=list(cached), num_computed_tokens=list(cached.values()))
    return replace(
        output, scheduled_new_reqs=made, scheduled_cached_reqs=others, num_scheduled_tokens=scheduled
    )


def test_a_token_comes_when_the_prompt_is_computed_and_then_with_each_step() -> None:
    engine = executor()
    first = engine.execute_model(step({"a": 3, "b": 2}, {"a": 3, "b": 5}, {}))
    assert first.sampled_token_ids == [[FIRST_TOKEN], []]
    second = engine.execute_model(step({"a": 1, "b": 3}, {}, {"a": 3, "b": 2}), non_block=True)
    assert second.result().sampled_token_ids == [[FIRST_TOKEN + 1], [FIRST_TOKEN]]


def test_the_quiet_ratio_is_that_of_the_undisturbed_rounds() -> None:
    plain = {("run", i): 10.0 + (i % 2) * i for i in range(20)}
    ours = {("run", i): 11.0 + (i % 3) * i for i in range(20)}
    found = quiet_ratio(ours, plain)
    assert found is not None
    assert found[0] == pytest.approx(1.1)
    assert found[1] <= found[0] <= found[2]
    assert quiet_ratio({}, plain) is None


def test_processor_time_of_a_process_grows_with_what_it_computes() -> None:
    before = processor_s(os.getpid())
    sum(i * i for i in range(200_000))
    assert processor_s(os.getpid()) > before
