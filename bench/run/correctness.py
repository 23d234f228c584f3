"""Before anything is timed, each arm must give the answers that its name promises.

A patch that a proxy drops, a cache that is not warm or a server that stops early all give fine figures. What
``check_servers`` looks at a few prompts first, ``check_replies`` checks again on every answer that is timed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from bench.errors import CheckFailed
from bench.load.arms import ARMS, Arm, Question
from bench.load.client import Reply, send_one
from patches.headers import DIGEST_HEADER, PATCH_HEADER


@dataclass(frozen=True)
class Expectation:
    """What answers have to look like, as far as the bench knows.

    Attributes:
        patch_digest: digest of the patch; ``None`` where the bench did not load it.
        num_warm_tokens: policy tokens that a warm prefix cache holds, whole blocks only; ``None`` where the
            servers were not started by the bench and need not say.
        is_model_real: weights are not random, so that answers mean something.
    """

    patch_digest: str | None
    num_warm_tokens: int | None
    is_model_real: bool


def check_replies(
    question: Question,
    arm: Arm,
    prompts: Sequence[Sequence[int]],
    replies: Sequence[Reply],
    patch_digest: str | None,
) -> list[str]:
    """Return what is wrong with the answers of an arm; each finding once."""
    findings: dict[str, None] = {}
    for user_ids, reply in zip(prompts, replies, strict=True):
        expected = (question.num_prompt_tokens(arm, user_ids), question.num_output_tokens, "length")
        got = (reply.num_prompt_tokens, reply.trace.num_output_tokens, reply.finish_reason)
        if got != expected:
            findings[
                f"{arm.name}: (prompt tokens, output tokens, finish): expected {expected}, got {got}"
            ] = None
        findings.update(dict.fromkeys(_check_headers(question, arm, reply.headers, patch_digest)))
    return list(findings)


async def check_servers(
    session: aiohttp.ClientSession,
    question: Question,
    arms: Sequence[Arm],
    prompts: Sequence[Sequence[int]],
    expectation: Expectation,
) -> dict[str, Any]:
    """Ask every arm every prompt, one at a time, and judge the answers.

    Returns:
        Facts for the records: how far answers agree, and the prompt tokens found cached.

    Raises:
        CheckFailed: an arm does not do what its name promises.
        RequestFailed: an answer was an error or incomplete.
    """
    replies: dict[str, list[Reply]] = {}
    for arm in arms:
        requests = [question.request(arm, ids, salt=f"gate-{i}") for i, ids in enumerate(prompts)]
        replies[arm.name] = [await send_one(session, request) for request in requests]
    findings = [
        finding
        for arm in arms
        for finding in check_replies(question, arm, prompts, replies[arm.name], expectation.patch_digest)
    ]
    findings += _check_cache(replies, expectation.num_warm_tokens)
    if expectation.is_model_real:
        findings += _check_agreement(replies)
    if findings:
        raise CheckFailed(findings)
    return {
        "num_prompts": len(prompts),
        "num_cached_tokens": {name: [r.num_cached_tokens for r in got] for name, got in replies.items()},
        "patch_digest": replies["patched"][0].headers[DIGEST_HEADER] if "patched" in replies else None,
        "idle_agrees_with_plain": _agreement(replies, "idle", "plain"),
        "patched_agrees_with_text": _agreement(replies, "patched", "text-cold"),
        "patched_agrees_with_idle": _agreement(replies, "patched", "idle"),
    }


def _check_headers(
    question: Question, arm: Arm, headers: Mapping[str, str], patch_digest: str | None
) -> list[str]:
    name, digest = headers.get(PATCH_HEADER), headers.get(DIGEST_HEADER)
    if arm.is_patched:
        asked = question.patch_name.partition("@")[0]
        findings = []
        if name is None or name.partition("@")[0] != asked:
            findings.append(f"{arm.name}: {PATCH_HEADER}: expected {asked!r} with a version, got {name!r}")
        if digest is None or not digest.startswith("sha256:") or digest != (patch_digest or digest):
            findings.append(
                f"{arm.name}: {DIGEST_HEADER}: expected {patch_digest or 'sha256:…'}, got {digest!r}"
            )
        return findings
    allowed = (None, "none") if arm.server == "ours" else (None,)
    return [
        f"{arm.name}: {header}: expected no patch, got {value!r}"
        for header, value in ((PATCH_HEADER, name), (DIGEST_HEADER, digest))
        if value not in allowed
    ]


def _check_cache(replies: Mapping[str, Sequence[Reply]], num_warm_tokens: int | None) -> list[str]:
    """User prompts are all new, so only a policy that stands in front of them may be found in the cache."""
    findings = []
    for name, got in replies.items():
        cached = [reply.num_cached_tokens for reply in got]
        is_warm = ARMS[name].has_policy_text and ARMS[name].salt == "none"
        if not is_warm and any(cached):
            findings.append(f"{name}: expected no cached prompt tokens, got {cached}")
        # The first request of the arm is the one that warms the cache.
        if is_warm and num_warm_tokens is not None and set(cached[1:]) - {num_warm_tokens}:
            findings.append(f"{name}: expected {num_warm_tokens} cached prompt tokens, got {cached}")
    return findings


def _check_agreement(replies: Mapping[str, Sequence[Reply]]) -> list[str]:
    """A patch must change answers, in the way that its text does; a patch that is not used must not.

    Reduced precision may turn a near tie late in an answer, so answers agree where they begin alike.
    """
    findings = []
    if {"patched", "idle"} <= replies.keys() and _agreement(replies, "patched", "idle") == 1:
        findings.append("patched: expected the patch to change an answer, got the unpatched answers")
    for name, reference in (("idle", "plain"), ("patched", "text-cold"), ("embeds", "text-cold")):
        if not {name, reference} <= replies.keys():
            continue
        alike = [
            one.pieces[0] == other.pieces[0]
            for one, other in zip(replies[name], replies[reference], strict=True)
        ]
        if sum(alike) * 2 < len(alike):
            findings.append(f"{name}: expected answers that begin as those of {reference}, got others")
    return findings


def _agreement(replies: Mapping[str, Sequence[Reply]], name: str, reference: str) -> float | None:
    """Return the mean share of leading stream events that two arms' answers have in common."""
    if not {name, reference} <= replies.keys():
        return None
    shares = []
    for one, other in zip(replies[name], replies[reference], strict=True):
        pairs = list(zip(one.pieces, other.pieces, strict=False))
        num_equal = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
        shares.append(num_equal / len(pairs))
    return sum(shares) / len(shares)
