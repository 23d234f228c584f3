"""Ways to get past a required patch, to a forbidden one, or to another caller's rights: none may work.

The app is the real one, around an engine that answers with the digest of the patch it was asked to use; so
what got through is what the engine was asked for, whatever the answer says.
"""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from server.policy.file import parse_policy

GATEWAY = "10.0.0.9"
RESEARCH_KEY = "research-key"
RESEARCH_HASH = hashlib.sha256(RESEARCH_KEY.encode()).hexdigest()

POLICY = parse_policy(
    b"""
version: 1
required: [safety]
alias: [pirate]
others: {allow: [pirate, "pinned@1.0.0"]}
keys:
  - {name: research, sha256: %s, allow: [pirate, sailor]}
tenants:
  header: X-Tenant
  trusted: [10.0.0.9]
  rules:
    acme: {allow: [sailor]}
    small: {allow: []}
"""
    % RESEARCH_HASH.encode()
)

CHAT = "/v1/chat/completions"


@dataclass(frozen=True)
class Attempt:
    """One try, and the only patch that may answer it; ``None`` where nothing may."""

    what: str
    answer: str | None = None
    header: bytes | str | None = None
    model: str = "demo"
    headers: tuple[tuple[str | bytes, str | bytes], ...] = ()
    path: str = CHAT
    peer: str = "192.0.2.7"
    body: dict[str, Any] = field(default_factory=dict)
    method: str = "POST"


def key(text: str) -> tuple[str, str]:
    return ("Authorization", f"Bearer {text}")


def through_gateway(what: str, header: str, *headers: tuple[str, str]) -> Attempt:
    return Attempt(f"through the gateway: {what}", None, header, headers=headers, peer=GATEWAY)


SAFE_PIRATE = "safety.pirate"
KEY = key(RESEARCH_KEY)
ACME, SMALL, UNDERSCORED = ("X-Tenant", "acme"), ("X-Tenant", "small"), ("X_Tenant", "acme")
OPT_OUT = ("x-policy-patch", "none")

ATTEMPTS = [
    # Leaving the required patch out
    Attempt("name nothing", "safety"),
    Attempt("opt out", None, "none"),
    Attempt("opt out in capitals", None, "NONE"),
    Attempt("opt out beside a patch", None, "none, pirate"),
    Attempt("opt out behind a patch", None, "pirate, none"),
    Attempt("opt out with a version", None, "none@1.0.0"),
    Attempt("opt out with spaces", None, " none "),
    Attempt("opt out by alias", None, model="demo:none"),
    Attempt("opt out by alias under a header", SAFE_PIRATE, "pirate", model="demo:none"),
    Attempt("opt out by header over an alias", None, "none", model="demo:pirate"),
    Attempt("an empty header", None, ""),
    Attempt("a blank header", None, "   "),
    Attempt("a comma", None, ","),
    Attempt("null", None, "null"),
    Attempt("an older version of the required one", None, "safety@0.9.0"),
    Attempt("an older version before it", None, "safety@0.9.0, safety"),
    Attempt("an older version by its digest", None, "OLD-DIGEST"),
    Attempt("the required one itself", "safety", "safety"),
    Attempt("the required one last", SAFE_PIRATE, "pirate, safety"),
    Attempt("the required one twice", "safety", "safety, safety"),
    Attempt("a composition in which it comes last", None, "pirate-safety"),
    Attempt("a patch that calls itself safety-like", None, "safety2"),
    # Reaching a patch that is not allowed
    Attempt("by name", None, "secret"),
    Attempt("by version", None, "secret@1.0.0"),
    Attempt("by digest", None, "SECRET-DIGEST"),
    Attempt("another version of a pinned one", None, "pinned"),
    Attempt("another version of a pinned one by number", None, "pinned@2.0.0"),
    Attempt("a forbidden digest under an allowed name", None, "PIRATE-AS-SECRET"),
    Attempt("behind an allowed one", None, "pirate, secret"),
    Attempt("before an allowed one", None, "secret, pirate"),
    Attempt("behind the required one", None, "safety, secret"),
    Attempt("by its prepared composition", None, "safety.secret"),
    Attempt("by a composition with an allowed one", None, "secret.pirate"),
    Attempt("by alias", None, model="demo:secret"),
    Attempt("by an alias that only the header may name", None, model="demo:safety"),
    Attempt("by alias, with an allowed header", SAFE_PIRATE, "pirate", model="demo:secret"),
    Attempt("by header, with an allowed alias", None, "secret", model="demo:pirate"),
    Attempt("by alias in two steps", None, model="demo:pirate:secret"),
    Attempt("by alias with a list", None, model="demo:pirate,secret"),
    Attempt("that is not loaded", None, "nowhere"),
    # Tricks of spelling
    Attempt("capitals", None, "Secret"),
    Attempt("a Cyrillic letter", None, "sеcret".encode()),  # noqa: RUF001
    Attempt("a full-width comma", None, "pirate，secret".encode()),  # noqa: RUF001
    Attempt("a zero-width space", None, "none\u200b".encode()),
    Attempt("a byte-order mark", None, b"\xef\xbb\xbfnone"),
    Attempt("a no-break space", None, b"none\xa0"),
    Attempt("Latin-1", None, b"s\xe9cret"),
    Attempt("NUL at the end", None, b"pirate\x00none"),
    Attempt("a line break", None, b"pirate\nX-Policy-Patch: none"),
    Attempt("a folded line", None, b"pirate\r\n none"),
    Attempt("a tab", None, b"pirate,\tnone"),
    Attempt("quotes", None, '"none"'),
    Attempt("percent-encoding", None, "%6eone"),
    Attempt("a path", None, "../secret"),
    Attempt("a wildcard", None, "*"),
    Attempt("a parameter", None, "pirate;v=secret"),
    Attempt("semicolons for commas", None, "pirate;secret"),
    Attempt("trailing comma", None, "pirate,"),
    Attempt("an oversize value", None, "pirate," * 5000 + "pirate"),
    Attempt("an oversize name", None, "p" * 65),
    Attempt("JSON", None, '["secret"]'),
    # Tricks with headers
    Attempt("two headers that agree", None, headers=(("X-Policy-Patch", "pirate"),) * 2),
    Attempt("two headers, none last", None, headers=(("X-Policy-Patch", "pirate"), OPT_OUT)),
    Attempt("two headers, none first", None, headers=(OPT_OUT, ("X-Policy-Patch", "pirate"))),
    Attempt("a header with underscores", "safety", headers=(("X_Policy_Patch", "secret"),)),
    Attempt("the digest header", "safety", headers=(("X-Policy-Patch-Digest", "sha256:" + "0" * 64),)),
    Attempt("a forwarded header", "safety", headers=(("X-Forwarded-X-Policy-Patch", "none"),)),
    Attempt("a method override", "safety", headers=(("X-HTTP-Method-Override", "GET"),)),
    Attempt("a rewritten URL", "safety", headers=(("X-Original-URL", "/health"),)),
    Attempt("a trailer of the body", "safety", body={"X-Policy-Patch": "none", "x-policy-patch": "none"}),
    # The body
    Attempt("a patch in the body", "safety", body={"policy_patch": "none", "patch": "secret"}),
    Attempt("extra headers in the body", "safety", body={"extra_headers": {"X-Policy-Patch": "none"}}),
    Attempt("a query", "safety", path=f"{CHAT}?X-Policy-Patch=none&policy_patch=secret"),
    # Somebody else's key
    Attempt("an allowed key's patch", None, "sailor"),
    Attempt("a wrong key", None, "sailor", headers=(key("guess"),)),
    Attempt("the hash in place of the key", None, "sailor", headers=(key(RESEARCH_HASH),)),
    Attempt("the key's name", None, "sailor", headers=(key("research"),)),
    Attempt("the key in capitals", None, "sailor", headers=(key("RESEARCH-KEY"),)),
    Attempt("the key with a space", None, "sailor", headers=(key("research-key "),)),
    Attempt("the key without a scheme", None, "sailor", headers=(("Authorization", RESEARCH_KEY),)),
    Attempt("the key as a cookie", None, "sailor", headers=(("Cookie", "api_key=research-key"),)),
    Attempt("two keys", None, "pirate", headers=(key("guess"), KEY)),
    Attempt("a key in each header", None, "pirate", headers=(key("guess"), ("x-api-key", RESEARCH_KEY))),
    Attempt("the key, for what it may not have", None, "secret", headers=(KEY,)),
    Attempt("the key, to opt out", None, "none", headers=(KEY,)),
    Attempt("the key, and an alias outside the list", None, model="demo:sailor", headers=(KEY,)),
    # Somebody else's tenant
    Attempt("a tenant from anywhere", None, "sailor", headers=(ACME,)),
    Attempt("a tenant from anywhere, naming nothing", None, headers=(ACME,)),
    Attempt("a tenant in other capitals", None, "sailor", headers=(("x-TENANT", "acme"),)),
    Attempt("X-Forwarded-For", None, "sailor", headers=(ACME, ("X-Forwarded-For", GATEWAY))),
    Attempt("X-Forwarded-For, a list", None, "sailor", headers=(ACME, ("X-Forwarded-For", "10.0.0.9, ::1"))),
    Attempt("X-Real-IP", None, "sailor", headers=(ACME, ("X-Real-IP", GATEWAY))),
    Attempt("Forwarded", None, "sailor", headers=(ACME, ("Forwarded", f"for={GATEWAY}"))),
    Attempt("X-Forwarded-For: unix", None, "sailor", headers=(ACME, ("X-Forwarded-For", "unix"))),
    Attempt("from this machine", None, "sailor", headers=(ACME,), peer="127.0.0.1"),
    Attempt("from a neighbour", None, "sailor", headers=(ACME,), peer="10.0.0.8"),
    Attempt("from an address called unix", None, "sailor", headers=(ACME,), peer="unix"),
    Attempt("a tenant's header with an underscore", None, "pirate", headers=(UNDERSCORED,)),
    through_gateway("two tenants", "sailor", SMALL, ACME),
    through_gateway("a folded tenant", "sailor", ("X-Tenant", "small, acme")),
    through_gateway("both spellings", "sailor", SMALL, UNDERSCORED),
    through_gateway("an empty tenant", "pirate", ("X-Tenant", "")),
    through_gateway("an unknown tenant", "pirate", ("X-Tenant", "nobody")),
    through_gateway("others' rights", "pirate", SMALL),
    through_gateway("opting out", "none", ACME),
    through_gateway("a key to widen it", "sailor", SMALL, KEY),
    through_gateway("a key's patch", "pirate", ACME, KEY),
    through_gateway("capitals", "sailor", ("X-Tenant", "ACME")),
    # Other routes, and other ways to write this one
    Attempt("responses, opting out", None, "none", path="/v1/responses"),
    Attempt("responses, a forbidden patch", None, "secret", path="/v1/responses"),
    Attempt("responses, naming nothing", "safety", path="/v1/responses"),
    Attempt("embeddings", None, path="/v1/embeddings"),
    Attempt("embeddings, opting out", None, "none", path="/v1/embeddings"),
    Attempt("embeddings by alias", None, path="/v1/embeddings", model="demo:pirate"),
    Attempt("invocations", None, path="/invocations"),
    Attempt("invocations, opting out", None, "none", path="/invocations"),
    Attempt("rendering under a forbidden alias", None, path="/v1/completions/render", model="demo:secret"),
    Attempt("a route that nobody listed", "safety", path="/v1/unlisted"),
    Attempt("a route that nobody listed, opting out", None, "none", path="/v1/unlisted"),
    Attempt("a route that nobody listed, a patch", None, "pirate", path="/v1/unlisted"),
    Attempt("a slash at the end", None, "none", path=f"{CHAT}/"),
    Attempt("two slashes", None, "none", path="//v1/chat/completions"),
    Attempt("capitals in the path", None, "none", path="/V1/chat/completions"),
    Attempt("an encoded path", None, "none", path="/v1/chat%2Fcompletions"),
    Attempt("dots in the path", None, "none", path="/v1/x/../chat/completions"),
    Attempt("generating by GET", None, "none", path="/v1/by-get", method="GET"),
    Attempt("a stream, opting out", None, "none", body={"stream": True}),
    Attempt("a stream, naming nothing", "safety", body={"stream": True}),
    Attempt("a stream under a forbidden alias", None, model="demo:secret", body={"stream": True}),
]  # fmt: skip


@pytest.fixture
async def patches(stand: Any) -> dict[str, str]:
    """Load what is there to be reached; gives digest -> name."""
    plain = {
        name: await stand.load(name, fill=float(index))
        for index, name in enumerate(("safety", "pirate", "sailor", "secret", "pinned"))
    }
    plain["safety@0.9.0"] = await stand.load("safety", "0.9.0", fill=20.0)
    plain["pinned@2.0.0"] = await stand.load("pinned", "2.0.0", fill=21.0)
    orders = {
        "safety.pirate": ("safety", "pirate"),
        "safety.sailor": ("safety", "sailor"),
        "safety.secret": ("safety", "secret"),
        "safety.pinned2": ("safety", "pinned@2.0.0"),
        "old-pirate": ("safety@0.9.0", "pirate"),
        "safety.old": ("safety", "safety@0.9.0"),
        "pirate-safety": ("pirate", "safety"),
        "secret.pirate": ("secret", "pirate"),
        "pirate.secret": ("pirate", "secret"),
        "safety.pirate.secret": ("safety", "pirate", "secret"),
        "safety.secret.pirate": ("safety", "secret", "pirate"),
    }
    for index, (name, parts) in enumerate(orders.items()):
        components = [
            {"name": plain[p].name, "version": plain[p].version, "digest": plain[p].digest} for p in parts
        ]
        origin = {"method": "compose", "components": components}
        plain[name] = await stand.load(name, origin=origin, fill=30.0 + index)
    stand.gate.policy = POLICY
    return {patch.digest: name for name, patch in plain.items()}


@pytest.fixture(autouse=True)
def routes(stand: Any) -> None:
    """Routes that ask the engine although the table of routes does not know that they do."""

    async def generate() -> Any:
        return {"tokens": [token async for token in stand.engine.generate()]}

    async def by_get() -> Any:
        return {"ok": True}

    stand.app.add_api_route("/v1/unlisted", generate, methods=["POST"])
    stand.app.add_api_route("/v1/by-get", generate, methods=["GET"])


def header_value(attempt: Attempt, patches: dict[str, str]) -> bytes | str | None:
    digests = {name: digest for digest, name in patches.items()}
    return {
        "OLD-DIGEST": f"safety@{digests['safety@0.9.0']}",
        "SECRET-DIGEST": f"secret@{digests['secret'][:40]}",
        "PIRATE-AS-SECRET": f"pirate@{digests['secret']}",
    }.get(str(attempt.header), attempt.header)


def as_bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


async def send(stand: Any, attempt: Attempt, patches: dict[str, str]) -> httpx.Response:
    value = header_value(attempt, patches)
    headers = [("Content-Type", "application/json"), *attempt.headers]
    if value is not None:
        headers.append(("X-Policy-Patch", value))
    raw = [
        (k.encode() if isinstance(k, str) else k, v.encode() if isinstance(v, str) else v) for k, v in headers
    ]
    transport = httpx.ASGITransport(stand.app, raise_app_exceptions=False, client=(attempt.peer, 4711))
    body = json.dumps({"model": attempt.model, **attempt.body}).encode()
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.request(attempt.method, attempt.path, headers=raw, content=body)


@pytest.mark.parametrize("attempt", ATTEMPTS, ids=lambda attempt: attempt.what)
async def test_no_attempt_gets_through(stand: Any, patches: dict[str, str], attempt: Attempt) -> None:
    response = await send(stand, attempt, patches)
    if attempt.path == "/v1/responses" and response.status_code == 200:
        await stand.app.state.background
    reached = [patches[d.patch.digest] if d.patch else "the base model" for d in stand.engine.decisions]
    if attempt.answer is None:
        assert reached == []
        assert response.status_code >= 300
        assert "tokens" not in response.text
        assert "embedding" not in response.text
    else:
        assert reached == [attempt.answer]
        assert response.status_code == 200


def test_there_are_enough_attempts() -> None:
    assert len(ATTEMPTS) >= 120
    assert len({attempt.what for attempt in ATTEMPTS}) == len(ATTEMPTS)
    assert sum(attempt.answer is None for attempt in ATTEMPTS) >= 100


@pytest.mark.parametrize(
    ("attempt", "answer"),
    [
        (Attempt("a listed key", header="sailor", headers=(key(RESEARCH_KEY),)), "safety.sailor"),
        (
            Attempt("a tenant", header="sailor", headers=(("X-Tenant", "acme"),), peer=GATEWAY),
            "safety.sailor",
        ),
        (Attempt("an alias", model="demo:pirate"), SAFE_PIRATE),
        (Attempt("anybody", header="pirate"), SAFE_PIRATE),
    ],
    ids=lambda value: getattr(value, "what", ""),
)
async def test_what_is_allowed_is_had(
    stand: Any, patches: dict[str, str], attempt: Attempt, answer: str
) -> None:
    response = await send(stand, attempt, patches)
    assert response.status_code == 200
    assert response.headers["x-policy-patch"].partition("@")[0] == answer
