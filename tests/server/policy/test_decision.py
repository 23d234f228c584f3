"""The decision as tables: caller, wish, view and policy in; a patch or an error, and the rule, out."""

from dataclasses import replace
from typing import Any

import pytest

from patches.kinds.prefix import PrefixBody
from patches.manifest import Manifest
from server.errors import (
    CompositionNotPrepared,
    MalformedPatchName,
    PatchForbidden,
    PatchNotFound,
    PatchNotReady,
    PolicyPatchError,
)
from server.policy.caller import ANYONE, Caller
from server.policy.decision import Asked, decide, may_use_base
from server.policy.file import parse_policy
from server.policy.rules import OPEN_POLICY, Policy
from server.versions.selection import BASE, OptOut, PatchRef, Wish, parse_wish
from server.versions.view import CatalogView, ServedPatch


def served(name: str, version: str, digit: str, *components: ServedPatch) -> ServedPatch:
    origin: dict[str, Any] = {"method": "text"}
    if components:
        parts = [{"name": c.name, "version": c.version, "digest": c.digest} for c in components]
        origin = {"method": "compose", "components": parts}
    manifest = Manifest(name, version, None, PrefixBody(3), origin)  # type: ignore[arg-type]
    return ServedPatch(name, version, "sha256:" + digit * 64, 3, manifest, 8)


BIAS = served("bias", "1.0.0", "1")
TOXICITY_1 = served("toxicity", "1.0.0", "2")
TOXICITY_2 = served("toxicity", "2.0.0", "3")
BOTH = served("both", "1.0.0", "5", TOXICITY_2, BIAS)
SAFETY = served("safety", "1.0.0", "6")
LEGAL = served("legal", "1.0.0", "7")
SAFE_BIAS = served("safe-bias", "1.0.0", "8", SAFETY, BIAS)
SAFE_BOTH = served("safe-both", "1.0.0", "9", SAFETY, BIAS, TOXICITY_2)
SAFE_LEGAL = served("safe-legal", "1.0.0", "a", SAFETY, LEGAL)
SECRET = served("secret", "1.0.0", "b")
SAFE_SECRET = served("safe-secret", "1.0.0", "c", SAFETY, SECRET)
VIEW = CatalogView()
for patch in (
    BIAS, TOXICITY_1, TOXICITY_2, BOTH, SAFETY, LEGAL, SAFE_BIAS, SAFE_BOTH, SAFE_LEGAL, SECRET, SAFE_SECRET
):  # fmt: skip
    VIEW = VIEW.with_changes(patch, None)

NOBODY = OPEN_POLICY
DEFAULT = Policy.from_flags(default_patch="toxicity", require_patch=False)
PINNED = Policy.from_flags(default_patch="toxicity@1.0.0", require_patch=False)
REQUIRED = Policy.from_flags(default_patch="toxicity", require_patch=True)
REQUIRED_ONLY = Policy.from_flags(default_patch=None, require_patch=True)
MISSING = Policy.from_flags(default_patch="gone", require_patch=False)

T, B, N = (PatchRef("toxicity"),), (PatchRef("bias"),), OptOut.NONE
X = (PatchRef("unknown"),)


@pytest.mark.parametrize(
    ("header", "alias", "policy", "expected"),
    [
        (None, None, NOBODY, (None, "none")),
        (B, None, NOBODY, (BIAS, "header")),
        (None, B, NOBODY, (BIAS, "alias")),
        (T, B, NOBODY, (TOXICITY_2, "header")),
        (T, X, NOBODY, (TOXICITY_2, "header")),
        (N, B, NOBODY, (None, "header")),
        (N, None, NOBODY, (None, "header")),
        (None, N, NOBODY, (None, "alias")),
        (X, None, NOBODY, PatchNotFound),
        (X, B, NOBODY, PatchNotFound),
        (None, X, NOBODY, PatchNotFound),
        (None, None, DEFAULT, (TOXICITY_2, "default")),
        (None, None, PINNED, (TOXICITY_1, "default")),
        (B, None, DEFAULT, (BIAS, "header")),
        (None, B, DEFAULT, (BIAS, "alias")),
        (N, None, DEFAULT, (None, "header")),
        (None, N, DEFAULT, (None, "alias")),
        (X, None, DEFAULT, PatchNotFound),
        (None, None, REQUIRED, (TOXICITY_2, "default")),
        (B, None, REQUIRED, (BIAS, "header")),
        (N, None, REQUIRED, PatchForbidden),
        (None, N, REQUIRED, PatchForbidden),
        (N, B, REQUIRED, PatchForbidden),
        (None, None, REQUIRED_ONLY, PatchForbidden),
        (B, None, REQUIRED_ONLY, (BIAS, "header")),
        (None, B, REQUIRED_ONLY, (BIAS, "alias")),
        (None, None, MISSING, PatchNotReady),
        (B, None, MISSING, (BIAS, "header")),
        (N, None, MISSING, (None, "header")),
    ],
)
def test_with_flags_a_request_gets(header: Any, alias: Any, policy: Policy, expected: Any) -> None:
    decision = decide(ANYONE, Asked(header, alias), VIEW, policy)
    if isinstance(expected, tuple):
        assert (decision.selection.patch, decision.selection.source) == expected
    else:
        with pytest.raises(expected):
            _ = decision.selection


@pytest.mark.parametrize("flag", ["", "None", "none", "A", "a,,b", "a b"])
def test_a_default_patch_outside_the_grammar_is_refused_at_start(flag: str) -> None:
    with pytest.raises(MalformedPatchName, match="--default-patch"):
        Policy.from_flags(default_patch=flag, require_patch=False)


FILE = parse_policy(
    b"""
version: 1
default: bias
alias: [bias, toxicity, secret]
others:
  allow: [bias, toxicity@2.0.0, both]
keys:
  - {name: free, sha256: "%(a)b", allow: all, allow_none: true, default: none}
  - {name: narrow, sha256: "%(b)b", allow: [toxicity]}
  - {name: pinned, sha256: "%(c)b", allow: ["toxicity@sha256:%(d)b"], default: toxicity@1.0.0}
  - {name: nothing, sha256: "%(e)b"}
tenants:
  header: X-Tenant
  trusted: [10.0.0.1]
  rules:
    acme: {allow: [bias, both], default: both}
    free: {allow: all, allow_none: true}
"""
    % {b"a": b"a" * 64, b"b": b"b" * 64, b"c": b"c" * 64, b"d": b"2" * 64, b"e": b"e" * 64}
)

NONE = OptOut.NONE


def wish(text: str | None) -> Wish | None:
    return parse_wish(text, "x") if text is not None else None


@pytest.mark.parametrize(
    ("key", "tenant", "header", "alias", "expected", "rule"),
    [
        # Neither a listed key nor a tenant: `others`.
        (None, None, None, None, BIAS, "default"),
        (None, None, "bias", None, BIAS, "others.allow"),
        (None, None, "bias@1.0.0", None, BIAS, "others.allow"),
        (None, None, "toxicity", None, TOXICITY_2, "others.allow"),
        (None, None, "toxicity@2.0.0", None, TOXICITY_2, "others.allow"),
        (None, None, f"toxicity@sha256:{'3' * 20}", None, TOXICITY_2, "others.allow"),
        (None, None, "toxicity@1.0.0", None, PatchForbidden, "others.allow"),
        (None, None, f"toxicity@sha256:{'2' * 20}", None, PatchForbidden, "others.allow"),
        (None, None, "toxicity, bias", None, BOTH, "others.allow"),
        (None, None, "both", None, BOTH, "others.allow"),
        (None, None, "toxicity, secret", None, PatchForbidden, "others.allow"),
        (None, None, "bias, toxicity", None, CompositionNotPrepared, "catalog"),
        (None, None, "secret", None, PatchForbidden, "others.allow"),
        (None, None, "unheard-of", None, PatchForbidden, "others.allow"),
        (None, None, "bias@9.9.9", None, PatchNotFound, "catalog"),
        (None, None, "none", None, PatchForbidden, "others.allow_none"),
        # The alias: what it may name, and what the caller may choose.
        (None, None, None, "bias", BIAS, "others.allow"),
        (None, None, None, "both", PatchForbidden, "alias.allow"),
        (None, None, None, "secret", PatchForbidden, "others.allow"),
        (None, None, None, "none", PatchForbidden, "others.allow_none"),
        (None, None, "both", "secret", BOTH, "others.allow"),
        (None, None, "secret", "bias", PatchForbidden, "others.allow"),
        ("free", None, None, "none", PatchForbidden, "alias.allow_none"),
        ("free", None, None, "legal", PatchForbidden, "alias.allow"),
        # A listed key.
        ("free", None, None, None, None, "keys.free.default"),
        ("free", None, "none", None, None, "keys.free.allow_none"),
        ("free", None, "secret", None, SECRET, "keys.free.allow"),
        ("free", None, "unheard-of", None, PatchNotFound, "catalog"),
        ("narrow", None, None, None, BIAS, "default"),
        ("narrow", None, "toxicity@1.0.0", None, TOXICITY_1, "keys.narrow.allow"),
        ("narrow", None, "bias", None, PatchForbidden, "keys.narrow.allow"),
        ("narrow", None, "none", None, PatchForbidden, "keys.narrow.allow_none"),
        ("pinned", None, None, None, TOXICITY_1, "keys.pinned.default"),
        ("pinned", None, "toxicity@1.0.0", None, TOXICITY_1, "keys.pinned.allow"),
        ("pinned", None, "toxicity", None, PatchForbidden, "keys.pinned.allow"),
        ("nothing", None, "bias", None, PatchForbidden, "keys.nothing.allow"),
        ("nothing", None, None, None, BIAS, "default"),
        ("taken-out", None, "bias", None, BIAS, "others.allow"),
        # A tenant, and both.
        (None, "acme", None, None, BOTH, "tenants.acme.default"),
        (None, "acme", "bias", None, BIAS, "tenants.acme.allow"),
        (None, "acme", "toxicity", None, PatchForbidden, "tenants.acme.allow"),
        (None, "unlisted", "bias", None, PatchForbidden, "tenants.others"),
        (None, "unlisted", None, None, PatchForbidden, "tenants.others"),
        ("free", "unlisted", None, None, PatchForbidden, "tenants.others"),
        ("free", "acme", None, None, BOTH, "tenants.acme.default"),
        ("free", "acme", "bias", None, BIAS, "keys.free.allow and tenants.acme.allow"),
        ("free", "acme", "secret", None, PatchForbidden, "tenants.acme.allow"),
        ("free", "acme", "none", None, PatchForbidden, "tenants.acme.allow_none"),
        ("free", "free", "none", None, None, "keys.free.allow_none and tenants.free.allow_none"),
        ("narrow", "free", "bias", None, PatchForbidden, "keys.narrow.allow"),
        ("narrow", "free", "none", None, PatchForbidden, "keys.narrow.allow_none"),
        ("narrow", "acme", "toxicity", None, PatchForbidden, "tenants.acme.allow"),
        ("narrow", "free", None, None, BIAS, "default"),
        ("pinned", "free", None, None, TOXICITY_1, "keys.pinned.default"),
        ("pinned", "acme", None, None, BOTH, "tenants.acme.default"),
    ],
)
def test_by_a_file_a_request_gets(
    key: str | None, tenant: str | None, header: str | None, alias: str | None, expected: Any, rule: str
) -> None:
    decision = decide(Caller(key, tenant), Asked(wish(header), wish(alias)), VIEW, FILE)
    if isinstance(expected, type):
        assert isinstance(decision.outcome, expected)
    else:
        assert decision.selection.patch is expected
    assert decision.rule == rule


GUARDED = parse_policy(b"version: 1\nrequired: [safety]\nothers: {allow: [bias, toxicity, safe-bias, both]}")
GUARDED_DEFAULT = parse_policy(b"version: 1\nrequired: [safety]\ndefault: bias\nothers: {allow: [toxicity]}")
TWICE = parse_policy(b"version: 1\nrequired: [safety, legal]\nothers: {allow: all}")


@pytest.mark.parametrize(
    ("policy", "header", "expected", "rule"),
    [
        (GUARDED, None, SAFETY, "required"),
        (GUARDED, "bias", SAFE_BIAS, "required, others.allow"),
        (GUARDED, "safety", SAFETY, "required, others.allow"),
        (GUARDED, "safety@1.0.0", SAFETY, "required, others.allow"),
        (GUARDED, "safety, bias", SAFE_BIAS, "required, others.allow"),
        (GUARDED, "bias, safety", SAFE_BIAS, "required, others.allow"),
        (GUARDED, "bias, toxicity", SAFE_BOTH, "required, others.allow"),
        (GUARDED, "bias, safety, toxicity", SAFE_BOTH, "required, others.allow"),
        (GUARDED, "safe-bias", SAFE_BIAS, "required, others.allow"),
        (GUARDED, "toxicity", CompositionNotPrepared, "catalog"),
        (GUARDED, "toxicity, bias", CompositionNotPrepared, "catalog"),
        (GUARDED, "both", CompositionNotPrepared, "catalog"),
        (GUARDED, "bias, bias", CompositionNotPrepared, "catalog"),
        (GUARDED, "safe-bias, toxicity", CompositionNotPrepared, "catalog"),
        (GUARDED, "safe-both", PatchForbidden, "others.allow"),
        (GUARDED, "secret", PatchForbidden, "others.allow"),
        (GUARDED, "safety, secret", PatchForbidden, "others.allow"),
        (GUARDED, "none", PatchForbidden, "required"),
        (GUARDED_DEFAULT, None, SAFE_BIAS, "required, default"),
        (GUARDED_DEFAULT, "safety", SAFETY, "required, others.allow"),
        (TWICE, None, SAFE_LEGAL, "required"),
        (TWICE, "legal, safety", SAFE_LEGAL, "required, others.allow"),
        (TWICE, "safety", SAFE_LEGAL, "required, others.allow"),
        (TWICE, "bias", CompositionNotPrepared, "catalog"),
        (TWICE, "safe-bias", CompositionNotPrepared, "catalog"),
    ],
)
def test_what_is_required_is_in_front_of_every_answer(
    policy: Policy, header: str | None, expected: Any, rule: str
) -> None:
    decision = decide(ANYONE, Asked(wish(header)), VIEW, policy)
    if isinstance(expected, type):
        assert isinstance(decision.outcome, expected)
    else:
        assert decision.selection.patch is expected
    assert decision.rule == rule


def test_an_older_version_of_a_required_patch_does_not_stand_for_it() -> None:
    older = served("safety", "0.9.0", "d")
    view = VIEW.with_changes(older, None)
    every = parse_policy(b"version: 1\nrequired: [safety]\nothers: {allow: all}")
    for policy, error in ((GUARDED, PatchForbidden), (every, CompositionNotPrepared)):
        decision = decide(ANYONE, Asked(wish("safety@0.9.0")), view, policy)
        assert isinstance(decision.outcome, error)


def test_a_missing_composition_is_named_with_all_of_its_parts() -> None:
    outcome = decide(ANYONE, Asked(wish("toxicity")), VIEW, GUARDED).outcome
    assert isinstance(outcome, CompositionNotPrepared)
    assert "composition of safety@1.0.0, toxicity@2.0.0 in this order" in outcome.message
    assert "`policypatch compose`" in outcome.message
    assert outcome.status == 400


@pytest.mark.parametrize("header", [None, "bias", "safety", "safe-bias"])
def test_a_required_patch_that_is_missing_is_503_whatever_is_asked_for(header: str | None) -> None:
    """It is the operator's to repair, and no answer is better than one without it."""
    outcome = decide(ANYONE, Asked(wish(header)), VIEW.with_changes(None, SAFETY), GUARDED).outcome
    assert isinstance(outcome, PatchNotReady)
    assert "required" in outcome.message


def test_a_default_that_lacks_its_composition_with_the_required_is_503() -> None:
    outcome = decide(ANYONE, Asked(), VIEW.with_changes(None, SAFE_BIAS), GUARDED_DEFAULT).outcome
    assert isinstance(outcome, PatchNotReady)
    assert "safety@1.0.0, bias@1.0.0" in outcome.message


def test_a_refusal_does_not_tell_whether_a_patch_is_loaded() -> None:
    loaded = decide(ANYONE, Asked(wish("secret")), VIEW, GUARDED).outcome
    absent = decide(ANYONE, Asked(wish("secrex")), VIEW, GUARDED).outcome
    assert isinstance(loaded, PatchForbidden)
    assert isinstance(absent, PatchForbidden)
    assert loaded.message.replace("secret", "secrex") == absent.message


def test_without_others_unknown_callers_get_nothing_at_all() -> None:
    policy = parse_policy(b"version: 1\ndefault: bias")
    for header in (None, "bias", "none"):
        decision = decide(ANYONE, Asked(wish(header)), VIEW, policy)
        assert isinstance(decision.outcome, PatchForbidden)
        assert decision.rule == "others"


@pytest.mark.parametrize(
    ("policy", "caller", "expected"),
    [
        (OPEN_POLICY, ANYONE, True),
        (REQUIRED, ANYONE, False),
        (DEFAULT, ANYONE, True),
        (GUARDED, ANYONE, False),
        (FILE, ANYONE, False),
        (FILE, Caller("free"), True),
        (FILE, Caller("free", "acme"), False),
        (FILE, Caller("free", "free"), True),
    ],
)
def test_who_may_use_the_base_model_without_generating(
    policy: Policy, caller: Caller, expected: bool
) -> None:
    assert may_use_base(caller, policy) is expected


WISHES = [None, "none", "bias", "toxicity@1.0.0", "safety", "secret", "bias, toxicity", "safe-bias", "gone"]


@pytest.mark.parametrize("header", WISHES)
@pytest.mark.parametrize("alias", WISHES)
@pytest.mark.parametrize("policy", [GUARDED, GUARDED_DEFAULT, TWICE])
def test_no_wish_gets_an_answer_that_lacks_what_is_required(
    policy: Policy, header: str | None, alias: str | None
) -> None:
    outcome = decide(ANYONE, Asked(wish(header), wish(alias)), VIEW, policy).outcome
    if isinstance(outcome, PolicyPatchError):
        return
    assert outcome.patch is not None
    digests = [part.digest for part in outcome.patch.manifest.components] or [outcome.patch.digest]
    names = [ref.name for ref in policy.required]
    required = [patch.digest for patch in (SAFETY, LEGAL) if patch.name in names]
    assert digests[: len(required)] == required


def test_nothing_named_under_an_open_policy_is_the_base() -> None:
    assert decide(ANYONE, Asked(), VIEW, OPEN_POLICY).selection is BASE


@pytest.mark.parametrize(
    ("document", "asked", "parts"),
    [
        ("others: {allow: all}", "toxicity, safety", [TOXICITY_2, SAFETY]),
        ("required: [safety]\nothers: {allow: all}", "toxicity", [SAFETY, TOXICITY_2]),
        ("prepared_only: true\nothers: {allow: all}", "toxicity, safety", None),
        ("prepared_only: true\nrequired: [safety]\nothers: {allow: all}", "toxicity", None),
        ("prepared_only: true\nothers: {allow: all}", "toxicity, bias", [BOTH]),
    ],
)
def test_a_policy_can_forbid_what_nobody_prepared(document: str, asked: str, parts: Any) -> None:
    """On a server that was started with ``--composition joined``."""
    policy = parse_policy(f"version: 1\n{document}".encode())
    view = replace(VIEW, may_compose=True)
    outcome = decide(ANYONE, Asked(parse_wish(asked, "header")), view, policy).outcome
    if parts is None:
        assert isinstance(outcome, CompositionNotPrepared)
    else:
        assert not isinstance(outcome, PolicyPatchError)
        assert outcome.patch is not None
        assert list(outcome.patch.parts) == parts
