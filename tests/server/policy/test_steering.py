"""Steering patches and the policy: what is required acts on every answer, whatever lies in front."""

from typing import Any

import pytest

from patches.kinds.prefix import PrefixBody
from patches.kinds.steering import Steering, SteeringBody
from patches.manifest import Manifest
from server.errors import UnsupportedWithPatch
from server.policy.caller import ANYONE
from server.policy.decision import Asked, decide
from server.policy.file import parse_policy
from server.versions.selection import parse_wish
from server.versions.view import CatalogView, ServedPatch


def steering(name: str, digit: str) -> ServedPatch:
    body = SteeringBody(Steering("residual", "relative", 0.1))
    manifest = Manifest(name, "1.0.0", None, body, {"method": "icv"})  # type: ignore[arg-type]
    return ServedPatch.of(manifest, "sha256:" + digit * 64, 8)


def served(name: str, version: str, digit: str, *components: ServedPatch) -> ServedPatch:
    origin: dict[str, Any] = {"method": "text"}
    if components:
        parts = [{"name": c.name, "version": c.version, "digest": c.digest} for c in components]
        origin = {"method": "compose", "components": parts}
    manifest = Manifest(name, version, None, PrefixBody(3), origin)  # type: ignore[arg-type]
    return ServedPatch(name, version, "sha256:" + digit * 64, 3, manifest, 8)


BIAS = served("bias", "1.0.0", "1")
TOXICITY = served("toxicity", "2.0.0", "3")
BOTH = served("both", "1.0.0", "5", TOXICITY, BIAS)
SAFETY = served("safety", "1.0.0", "6")
SAFE_BIAS = served("safe-bias", "1.0.0", "8", SAFETY, BIAS)
CALM, COOL = steering("calm", "d"), steering("cool", "e")
VIEW = CatalogView()
for patch in (BIAS, TOXICITY, BOTH, SAFETY, SAFE_BIAS, CALM, COOL):
    VIEW = VIEW.with_changes(patch, None)


@pytest.mark.parametrize(
    ("required", "header", "parts"),
    [
        ("calm", None, [CALM]),
        ("calm", "calm", [CALM]),
        ("calm", "bias", [BIAS, CALM]),
        ("calm", "both", [BOTH, CALM]),
        ("calm, safety", "bias", [SAFE_BIAS, CALM]),
        ("safety, calm", "safe-bias", [SAFE_BIAS, CALM]),
        ("safety", "calm", [SAFETY, CALM]),
        ("safety", "calm, safety, bias", [SAFE_BIAS, CALM]),
    ],
)
def test_a_required_vector_acts_on_every_answer_whatever_lies_in_front(
    required: str, header: str | None, parts: list[ServedPatch]
) -> None:
    policy = parse_policy(f"version: 1\nrequired: [{required}]\nothers: {{allow: all}}".encode())
    asked = Asked(parse_wish(header, "x") if header is not None else None)
    outcome = decide(ANYONE, asked, VIEW, policy).selection
    assert outcome.patch is not None
    assert list(outcome.patch.parts) == parts


def test_a_second_vector_beside_a_required_one_is_refused_and_says_which_is_required() -> None:
    policy = parse_policy(b"version: 1\nrequired: [calm]\nothers: {allow: all}")
    with pytest.raises(UnsupportedWithPatch, match=r"this server puts calm@1\.0\.0 into every answer"):
        _ = decide(ANYONE, Asked(parse_wish("cool", "x")), VIEW, policy).selection
