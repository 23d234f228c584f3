"""Servers that are wrong in one way each are refused."""

import pytest

from bench.errors import CheckFailed
from bench.load.arms import ARMS, DEFAULT_ARMS, Question, require_arms
from bench.load.client import send_closed_loop
from bench.run.correctness import Expectation, check_replies, check_servers
from bench.servers.fake import FakeServer, policy_ids

POLICY = " ".join(f"rule{i}" for i in range(60))
ALL = require_arms(DEFAULT_ARMS)
PROMPTS = [[2, *range(100 + 50 * i, 140 + 50 * i), 4, 3] for i in range(4)]


async def check_stand_ins(
    serve, session, *, plain: str | None = None, ours: str | None = None, is_real: bool = True
):
    """Check two stand-ins that have the given faults."""
    server = FakeServer(POLICY, "kind", fault=ours)
    urls = {"plain": await serve(FakeServer(fault=plain)), "ours": await serve(server)}
    models = {"plain": "fake", "ours": "fake"}
    question = Question(urls, models, "kind", tuple(policy_ids(POLICY)), num_output_tokens=8)
    expectation = Expectation(server.digest, num_warm_tokens=32, is_model_real=is_real)
    return await check_servers(session, question, ALL, PROMPTS, expectation)


async def test_check_passes_servers_that_are_right(serve, session) -> None:
    facts = await check_stand_ins(serve, session)
    assert facts["idle_agrees_with_plain"] == facts["patched_agrees_with_text"] == 1
    assert facts["patched_agrees_with_idle"] < 0.1
    assert facts["num_cached_tokens"]["text-warm"] == [0, 32, 32, 32]
    assert facts["num_cached_tokens"]["text-cold"] == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("fault", "finding"),
    [
        ("drop_digest", r"patched: X-Policy-Patch-Digest: expected sha256:\w+, got None"),
        ("ignore_patch", "patched: X-Policy-Patch: expected 'kind' with a version, got 'none'"),
        (
            "leak_prefix",
            r"patched: \(prompt tokens, .*expected \(43, 8, 'length'\), got \(105, 8, 'length'\)",
        ),
        ("one_short", r"idle: .*expected \(43, 8, 'length'\), got \(43, 7, 'length'\)"),
    ],
)
async def test_check_refuses_a_patched_server_that_is_wrong(serve, session, fault: str, finding: str) -> None:
    with pytest.raises(CheckFailed, match=finding):
        await check_stand_ins(serve, session, ours=fault)


async def test_check_refuses_a_cache_that_is_not_warm(serve, session) -> None:
    with pytest.raises(CheckFailed, match="text-warm: expected 32 cached prompt tokens, got"):
        await check_stand_ins(serve, session, plain="forget_cache")


async def test_check_refuses_a_patch_that_changes_nothing(serve, session) -> None:
    class Pretending(FakeServer):
        """Names the patch, and answers as the base model."""

        async def _stream(self, response, body, prefix) -> None:
            await super()._stream(response, body, [])

    server = Pretending(POLICY, "kind", token_delay_s=0)
    urls = {"plain": await serve(FakeServer()), "ours": await serve(server)}
    question = Question(urls, dict.fromkeys(urls, "fake"), "kind", tuple(policy_ids(POLICY)), 8)
    real = Expectation(server.digest, None, is_model_real=True)
    arms = require_arms(["idle", "patched", "text-cold"])
    with pytest.raises(CheckFailed) as failure:
        await check_servers(session, question, arms, PROMPTS, real)
    assert any("expected the patch to change an answer" in finding for finding in failure.value.findings)
    assert any("begin as those of text-cold" in finding for finding in failure.value.findings)


async def test_check_refuses_a_plain_server_that_is_patched(serve, session) -> None:
    url = await serve(FakeServer(POLICY, "kind"))
    question = Question({"plain": url}, {"plain": "fake"}, "kind", tuple(policy_ids(POLICY)), 8)
    with pytest.raises(CheckFailed, match="plain: X-Policy-Patch: expected no patch, got 'none'"):
        await check_servers(session, question, [ARMS["plain"]], PROMPTS, Expectation(None, None, True))


async def test_check_does_not_judge_answers_of_random_weights(serve, session) -> None:
    await check_stand_ins(serve, session, is_real=False)


async def test_replies_of_another_version_are_found(serve, session) -> None:
    server = FakeServer(POLICY, "kind")
    question = Question({"ours": await serve(server)}, {"ours": "fake"}, "kind", (), 8)
    requests = [question.request(ARMS["patched"], ids, salt="") for ids in PROMPTS]
    replies = await send_closed_loop(session, requests, concurrency=4)
    assert check_replies(question, ARMS["patched"], PROMPTS, replies, server.digest) == []
    findings = check_replies(question, ARMS["patched"], PROMPTS, replies, "sha256:" + "0" * 64)
    assert len(findings) == 1


def test_unknown_arms_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected some of plain, .*; got warm"):
        require_arms(["plain", "warm"])
    with pytest.raises(ValueError, match="got none"):
        require_arms([])
