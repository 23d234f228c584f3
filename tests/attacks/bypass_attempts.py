"""Ways to get past a required patch, to a forbidden one, or to another caller's rights: none may work.

A list, and the policy and the patches that it is made for. Who sends them has to know which patch answered by
other means than the answer's own word.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

HERE = "127.0.0.1"
#: Connections from here, and from nowhere else, may name a tenant. On Linux all of 127/8 can be bound.
GATEWAY = "127.0.0.2"
RESEARCH_KEY = "research-key"
_HASH = hashlib.sha256(RESEARCH_KEY.encode()).hexdigest()

POLICY = f"""\
version: 1
required: [safety]
alias: [pirate]
others: {{allow: [pirate, "pinned@1.0.0"]}}
keys:
  - {{name: research, sha256: {_HASH}, allow: [pirate, sailor]}}
tenants:
  header: X-Tenant
  trusted: [{GATEWAY}]
  rules:
    acme: {{allow: [sailor]}}
    small: {{allow: []}}
"""

#: Name@version of each plain patch.
PLAIN = (
    "safety@1.0.0",
    "safety@0.9.0",
    "pirate@1.0.0",
    "sailor@1.0.0",
    "secret@1.0.0",
    "pinned@1.0.0",
    "pinned@2.0.0",
)
#: Name of each composition -> its components in order. Many of them are baits.
COMPOSED = {
    "safety.pirate": ("safety@1.0.0", "pirate@1.0.0"),
    "safety.sailor": ("safety@1.0.0", "sailor@1.0.0"),
    "safety.secret": ("safety@1.0.0", "secret@1.0.0"),
    "safety.pinned2": ("safety@1.0.0", "pinned@2.0.0"),
    "old-pirate": ("safety@0.9.0", "pirate@1.0.0"),
    "safety.old": ("safety@1.0.0", "safety@0.9.0"),
    "pirate-safety": ("pirate@1.0.0", "safety@1.0.0"),
    "secret.pirate": ("secret@1.0.0", "pirate@1.0.0"),
    "pirate.secret": ("pirate@1.0.0", "secret@1.0.0"),
    "safety.pirate.secret": ("safety@1.0.0", "pirate@1.0.0", "secret@1.0.0"),
    "safety.secret.pirate": ("safety@1.0.0", "secret@1.0.0", "pirate@1.0.0"),
}

CHAT = "/v1/chat/completions"
SAFE_PIRATE = "safety.pirate"


@dataclass(frozen=True)
class Attempt:
    """One try, and the only patch that may answer it; ``None`` where nothing may."""

    what: str
    answer: str | None = None
    #: Value of X-Policy-Patch; ``{secret}`` and the like stand for digests.
    header: bytes | str | None = None
    #: ``demo`` stands for the served name.
    model: str = "demo"
    headers: tuple[tuple[str | bytes, str | bytes], ...] = ()
    path: str = CHAT
    peer: str = HERE
    body: dict[str, Any] = field(default_factory=dict)
    method: str = "POST"

    @staticmethod
    def with_digests(text: Any, digests: Mapping[str, str]) -> Any:
        """Put digests in place of ``{name@version}``; ``{name@version:19}`` is the beginning of one."""
        if not isinstance(text, str):
            return text

        def digest_of(match: re.Match[str]) -> str:
            return digests[match[1]][: int(match[2]) if match[2] else None]

        return re.sub(r"\{([a-z]+@[0-9.]+)(?::([0-9]+))?\}", digest_of, text)


def _key(text: str) -> tuple[str, str]:
    return ("Authorization", f"Bearer {text}")


def _through_gateway(
    what: str, header: str | None, *headers: tuple[str, str], answer: str | None = None
) -> Attempt:
    return Attempt(f"through the gateway: {what}", answer, header, headers=headers, peer=GATEWAY)


KEY = _key(RESEARCH_KEY)
METHODS = ("GET", "PUT", "PATCH", "DELETE", "QUERY")
ACME, SMALL, UNDERSCORED = ("X-Tenant", "acme"), ("X-Tenant", "small"), ("X_Tenant", "acme")
OPT_OUT = ("x-policy-patch", "none")

LEAVING_IT_OUT = (
    Attempt("name nothing", "safety"),
    Attempt("opt out", None, "none"),
    Attempt("opt out in capitals", None, "NONE"),
    Attempt("opt out beside a patch", None, "none, pirate"),
    Attempt("opt out behind a patch", None, "pirate, none"),
    Attempt("opt out with a version", None, "none@1.0.0"),
    Attempt("opt out with spaces", None, " none "),
    Attempt("opt out twice", None, "none,none"),
    Attempt("opt out by alias", None, model="demo:none"),
    Attempt("opt out by alias in capitals", None, model="demo:NONE"),
    Attempt("opt out by alias under a header", SAFE_PIRATE, "pirate", model="demo:none"),
    Attempt("opt out by header over an alias", None, "none", model="demo:pirate"),
    Attempt("an empty header", None, ""),
    Attempt("a blank header", None, "   "),
    Attempt("an empty alias", None, model="demo:"),
    Attempt("a comma", None, ","),
    *(Attempt(f"{word} for none", None, word) for word in ("null", "off", "false", "0", "base", "default")),
    Attempt("an older version of the required one", None, "safety@0.9.0"),
    Attempt("an older version before it", None, "safety@0.9.0, safety"),
    Attempt("an older version behind it", None, "safety, safety@0.9.0"),
    Attempt("an older version by its digest", None, "safety@{safety@0.9.0}"),
    Attempt("an older version by alias", None, model="demo:safety@0.9.0"),
    Attempt("an older version in a composition", None, "old-pirate"),
    Attempt("a required version that does not exist", None, "safety@9.0.0"),
    Attempt("the required one itself", "safety", "safety"),
    Attempt("the required one by version", "safety", "safety@1.0.0"),
    Attempt("the required one by digest", "safety", "safety@{safety@1.0.0}"),
    Attempt("the required one last", SAFE_PIRATE, "pirate, safety"),
    Attempt("the required one first", SAFE_PIRATE, "safety, pirate"),
    Attempt("the required one twice", "safety", "safety, safety"),
    Attempt("an allowed one twice", None, "pirate, pirate"),
    Attempt("a composition in which it comes last", None, "pirate-safety"),
    Attempt("a patch that calls itself safety-like", None, "safety2"),
)  # fmt: skip

REACHING_A_FORBIDDEN_ONE = (
    Attempt("by name", None, "secret"),
    Attempt("by version", None, "secret@1.0.0"),
    Attempt("by digest", None, "secret@{secret@1.0.0}"),
    Attempt("by a short digest", None, "secret@{secret@1.0.0:19}"),
    Attempt("by digest without a name", None, "{secret@1.0.0}"),
    Attempt("another version of a pinned one", None, "pinned"),
    Attempt("another version of a pinned one by number", None, "pinned@2.0.0"),
    Attempt("another version of a pinned one by digest", None, "pinned@{pinned@2.0.0}"),
    Attempt("another version of a pinned one in a composition", None, "safety.pinned2"),
    Attempt("a forbidden digest under an allowed name", None, "pirate@{secret@1.0.0}"),
    Attempt("a required digest under an allowed name", None, "pirate@{safety@1.0.0}"),
    Attempt("a range of versions", None, "pinned@^1"),
    Attempt("behind an allowed one", None, "pirate, secret"),
    Attempt("before an allowed one", None, "secret, pirate"),
    Attempt("behind the required one", None, "safety, secret"),
    Attempt("behind both", None, "safety, pirate, secret"),
    Attempt("between both", None, "safety, secret, pirate"),
    *(Attempt(f"by the composition {name}", None, name) for name in COMPOSED if "secret" in name),
    Attempt("by a composition with a version", None, "safety.secret@1.0.0"),
    Attempt("by alias", None, model="demo:secret"),
    Attempt("by alias with a version", None, model="demo:secret@1.0.0"),
    Attempt("by alias with a digest", None, model="demo:secret@{secret@1.0.0}"),
    Attempt("by an alias that only the header may name", None, model="demo:safety"),
    Attempt("by a composition as alias", None, model="demo:safety.secret"),
    Attempt("by alias, with an allowed header", SAFE_PIRATE, "pirate", model="demo:secret"),
    Attempt("by header, with an allowed alias", None, "secret", model="demo:pirate"),
    Attempt("by alias in two steps", None, model="demo:pirate:secret"),
    Attempt("by alias with a list", None, model="demo:pirate,secret"),
    Attempt("by alias behind a space", None, model="demo: secret"),
    Attempt("by alias of another model", None, model="other:secret"),
    Attempt("by a model that has the patch's name", None, model="secret"),
    Attempt("that is not loaded", None, "nowhere"),
)  # fmt: skip

SPELLING = (
    Attempt("capitals", None, "Secret"),
    Attempt("a Cyrillic letter", None, "sеcret".encode()),  # noqa: RUF001
    Attempt("a full-width letter", None, "ｓecret".encode()),  # noqa: RUF001
    Attempt("a full-width comma", None, "pirate，secret".encode()),  # noqa: RUF001
    Attempt("an Arabic comma", None, "pirate،none".encode()),
    Attempt("a long s", None, "ſecret".encode()),  # noqa: RUF001
    Attempt("a combining mark", None, "pirate\u0301".encode()),
    Attempt("a zero-width space", None, "none\u200b".encode()),
    Attempt("a zero-width space in an alias", None, model="demo:none\u200b"),
    Attempt("a Cyrillic letter in an alias", None, model="demo:nоne"),  # noqa: RUF001
    Attempt("a full-width colon", None, model="demo：none"),  # noqa: RUF001
    Attempt("right-to-left", None, "\u202eenon".encode()),
    Attempt("a byte-order mark", None, b"\xef\xbb\xbfnone"),
    Attempt("a no-break space", None, b"none\xa0"),
    Attempt("Latin-1", None, b"s\xe9cret"),
    Attempt("overlong UTF-8", None, b"\xc0\xae\xc0\xae/none"),
    Attempt("UTF-16", None, "none".encode("utf-16-le")),
    Attempt("NUL at the end", None, b"pirate\x00none"),
    Attempt("NUL in an alias", None, model="demo:pirate\x00none"),
    Attempt("a line break", None, b"pirate\nX-Policy-Patch: none"),
    Attempt("a line break in an alias", None, model="demo:pirate\nnone"),
    Attempt("a folded line", None, b"pirate\r\n none"),
    Attempt("a vertical tab", None, b"pirate,\x0bnone"),
    Attempt("a delete character", None, b"none\x7f"),
    Attempt("a tab", None, b"pirate,\tnone"),
    Attempt("quotes", None, '"none"'),
    Attempt("single quotes", None, "'none'"),
    Attempt("an escape", None, "\\u006eone"),
    Attempt("percent-encoding", None, "%6eone"),
    Attempt("an HTML entity", None, "&#110;one"),
    Attempt("a path", None, "../secret"),
    Attempt("a URL", None, "file:///patches/secret-1.0.0.safetensors"),
    Attempt("a file name", None, "secret-1.0.0.safetensors"),
    Attempt("a wildcard", None, "*"),
    Attempt("a pattern", None, "s*"),
    Attempt("a negation", None, "!safety"),
    Attempt("a removal", None, "-safety"),
    Attempt("a quality value", None, "none;q=1, safety;q=0"),
    Attempt("a parameter", None, "pirate;v=secret"),
    Attempt("semicolons for commas", None, "pirate;secret"),
    Attempt("a trailing comma", None, "pirate,"),
    Attempt("a leading comma", None, ",none"),
    Attempt("an oversize value", None, "pirate," * 5000 + "pirate"),
    Attempt("an oversize value that ends in none", None, " " * 300 + "none"),
    Attempt("an oversize name", None, "p" * 65),
    Attempt("an oversize alias", None, model="demo:" + "pirate," * 5000 + "none"),
    Attempt("an expression", None, "${none}"),
    Attempt("a template", None, "{{none}}"),
    Attempt("JSON", None, '["secret"]'),
)

HEADERS = (
    Attempt("two headers that agree", None, headers=(("X-Policy-Patch", "pirate"),) * 2),
    Attempt("two headers, none last", None, headers=(("X-Policy-Patch", "pirate"), OPT_OUT)),
    Attempt("two headers, none first", None, headers=(OPT_OUT, ("X-Policy-Patch", "pirate"))),
    Attempt("two headers, one empty", None, headers=(("X-Policy-Patch", ""), OPT_OUT)),
    Attempt("two headers in two spellings", None, headers=(("X-POLICY-PATCH", "safety"), OPT_OUT)),
    Attempt("a header in capitals", None, headers=(("X-POLICY-PATCH", "none"),)),
    Attempt("a header with underscores", "safety", headers=(("X_Policy_Patch", "none"),)),
    Attempt("a header without its X", "safety", headers=(("Policy-Patch", "none"),)),
    Attempt("a header with a dot", "safety", headers=(("X.Policy.Patch", "none"),)),
    Attempt("the digest header", "safety", headers=(("X-Policy-Patch-Digest", "sha256:" + "0" * 64),)),
    Attempt("a forwarded header", "safety", headers=(("X-Forwarded-X-Policy-Patch", "none"),)),
    Attempt("named as hop-by-hop", None, "none", headers=(("Connection", "close, X-Policy-Patch"),)),
    Attempt("a cookie", "safety", headers=(("Cookie", "X-Policy-Patch=none; policy_patch=none"),)),
    Attempt("a method override", "safety", headers=(("X-HTTP-Method-Override", "GET"),)),
    Attempt("a rewritten URL", "safety", headers=(("X-Original-URL", "/health"),)),
    Attempt("another URL rewritten", "safety", headers=(("X-Rewrite-URL", "/health"),)),
    Attempt("another host", "safety", headers=(("X-Forwarded-Host", "localhost"),)),
    Attempt("another prefix", "safety", headers=(("X-Forwarded-Prefix", "/health"),)),
    Attempt("vLLM's request id", "safety", headers=(("X-Request-Id", "none"),)),
    Attempt("vLLM's data-parallel rank", "safety", headers=(("X-data-parallel-rank", "0"),)),
)  # fmt: skip

#: Fields of a body that vLLM knows, or that people hope it knows. What is required answers, or nothing.
BODY_FIELDS: dict[str, Any] = {
    "a patch": {"policy_patch": "none", "patch": "secret", "policy": "none"},
    "headers": {"extra_headers": {"X-Policy-Patch": "none"}, "headers": {"X-Policy-Patch": "none"}},
    "a header's name": {"X-Policy-Patch": "none", "x-policy-patch": "none"},
    "an extra body": {"extra_body": {"policy_patch": "none", "model": "demo:none"}},
    "metadata": {"metadata": {"policy_patch": "none"}},
    "a user": {"user": "acme"},
    "a tenant": {"X-Tenant": "acme", "tenant": "acme"},
    "a stream": {"stream": True},
    "a salt": {"cache_salt": "sha256:" + "0" * 64},
    "our salt": {"cache_salt": "patch:sha256:" + "0" * 64},
    "a template's arguments": {"chat_template_kwargs": {"policy_patch": "none"}},
    "an empty claim": {"kv_transfer_params": {"policy_patch": ["sha256:" + "0" * 64, 0]}},
    "a foreign claim": {"kv_transfer_params": {"do_remote_prefill": True}},
    "a claim that is null": {"kv_transfer_params": {"policy_patch": None}},
    "a claim in vLLM's extras": {"vllm_xargs": {"kv_transfer_params": "{}"}},
    "a flag in vLLM's extras": {"vllm_xargs": {"skip_reading_prefix_cache": 1}},
    "a sampling flag": {"skip_reading_prefix_cache": True},
    "prompt log-probabilities": {"prompt_logprobs": 1},
    "a LoRA adapter": {"lora": "a", "lora_request": {"lora_name": "a", "lora_int_id": 1, "lora_path": "/"}},
    "embeddings of a prompt": {"prompt_embeds": "AAAA"},
    "token ids": {"prompt_token_ids": [1, 2, 3]},
    "an earlier response": {"previous_response_id": "resp_0"},
    "a data-parallel rank": {"data_parallel_rank": 0},
    "a request id": {"request_id": "none"},
}
BODY = (
    *(
        Attempt(f"{what}, in the body: {field_name}", answer, header, body=body)
        for what, answer, header in (
            ("naming nothing", "safety", None),
            ("opting out", None, "none"),
            ("a forbidden patch", None, "secret"),
        )
        for field_name, body in BODY_FIELDS.items()
    ),
    Attempt("a stream under a forbidden alias", None, model="demo:secret", body={"stream": True}),
    Attempt("a query", "safety", path=f"{CHAT}?X-Policy-Patch=none&policy_patch=secret&model=demo:none"),
)

KEYS = (
    Attempt("an allowed key's patch", None, "sailor"),
    Attempt("a wrong key", None, "sailor", headers=(_key("guess"),)),
    Attempt("no key at all behind the scheme", None, "sailor", headers=(("Authorization", "Bearer "),)),
    Attempt("the hash in place of the key", None, "sailor", headers=(_key(_HASH),)),
    Attempt("the key's name", None, "sailor", headers=(_key("research"),)),
    Attempt("the key in capitals", None, "sailor", headers=(_key("RESEARCH-KEY"),)),
    Attempt("the beginning of the key", None, "sailor", headers=(_key("research-ke"),)),
    Attempt("more than the key", None, "sailor", headers=(_key("research-key2"),)),
    Attempt("the key with a space before it", None, "sailor", headers=(_key(" research-key"),)),
    Attempt("the key without a scheme", None, "sailor", headers=(("Authorization", RESEARCH_KEY),)),
    Attempt("the key under another scheme", None, "sailor", headers=(("Authorization", f"Key {KEY[1]}"),)),
    Attempt("the key as a cookie", None, "sailor", headers=(("Cookie", "api_key=research-key"),)),
    Attempt("the key in a query", None, "sailor", path=f"{CHAT}?api_key={RESEARCH_KEY}"),
    Attempt("the key in the body", None, "sailor", body={"api_key": RESEARCH_KEY}),
    Attempt("the key in a proxy's header", None, "sailor", headers=(("Proxy-Authorization", KEY[1]),)),
    Attempt("two keys", None, "pirate", headers=(_key("guess"), KEY)),
    Attempt("the same key twice", None, "pirate", headers=(KEY, KEY)),
    Attempt("a list of keys", None, "sailor", headers=(_key(f"guess, Bearer {RESEARCH_KEY}"),)),
    Attempt("a key in each header", None, "pirate", headers=(_key("guess"), ("x-api-key", RESEARCH_KEY))),
    Attempt("the key, for what it may not have", None, "secret", headers=(KEY,)),
    Attempt("the key, to opt out", None, "none", headers=(KEY,)),
    Attempt("the key, naming nothing", "safety", headers=(KEY,)),
    Attempt("the key, for what it may have", "safety.sailor", "sailor", headers=(KEY,)),
    Attempt("the key, and an alias outside the list", None, model="demo:sailor", headers=(KEY,)),
)  # fmt: skip

TENANTS = (
    Attempt("a tenant from anywhere", None, "sailor", headers=(ACME,)),
    Attempt("a tenant from anywhere, naming nothing", None, headers=(ACME,)),
    Attempt("a tenant in other capitals", None, "sailor", headers=(("x-TENANT", "acme"),)),
    *(
        Attempt(f"a tenant, and {name}: {value}", None, "sailor", headers=(ACME, (name, value)))
        for name, value in (
            ("X-Forwarded-For", GATEWAY),
            ("X-Forwarded-For", f"{GATEWAY}, ::1"),
            ("X-Forwarded-For", "unix"),
            ("X-Real-IP", GATEWAY),
            ("X-Client-IP", GATEWAY),
            ("True-Client-IP", GATEWAY),
            ("Forwarded", f"for={GATEWAY}"),
            ("Via", f"1.1 {GATEWAY}"),
        )
    ),
    Attempt("from a neighbour", None, "sailor", headers=(ACME,), peer="127.0.0.3"),
    Attempt("a tenant's header with an underscore", None, "pirate", headers=(UNDERSCORED,)),
    _through_gateway("what it may have", "sailor", ACME, answer="safety.sailor"),
    _through_gateway("naming nothing", None, SMALL, answer="safety"),
    _through_gateway("two tenants", "sailor", SMALL, ACME),
    _through_gateway("the same tenant twice", "sailor", ACME, ACME),
    _through_gateway("a folded tenant", "sailor", ("X-Tenant", "small, acme")),
    _through_gateway("both spellings", "sailor", SMALL, UNDERSCORED),
    _through_gateway("an empty tenant", "pirate", ("X-Tenant", "")),
    _through_gateway("an unknown tenant", "pirate", ("X-Tenant", "nobody")),
    _through_gateway("a tenant called others", "pirate", ("X-Tenant", "others")),
    _through_gateway("a path as tenant", "sailor", ("X-Tenant", "small/../acme")),
    _through_gateway("others' rights", "pirate", SMALL),
    _through_gateway("opting out", "none", ACME),
    _through_gateway("a key to widen it", "sailor", SMALL, KEY),
    _through_gateway("a key's patch", "pirate", ACME, KEY),
    _through_gateway("capitals", "sailor", ("X-Tenant", "ACME")),
)  # fmt: skip

#: Routes that generate, beside chat.
GENERATING = ("/v1/completions", "/v1/responses", "/v1/messages", "/v1/chat/completions/batch")
#: Routes that run the model without a prefix.
CLOSED = ("/v1/embeddings", "/pooling", "/classify", "/score", "/rerank", "/v1/audio/transcriptions")

ROUTES = (
    *(Attempt(f"{path}, opting out", None, "none", path=path) for path in GENERATING),
    *(Attempt(f"{path}, a forbidden patch", None, "secret", path=path) for path in GENERATING),
    *(Attempt(f"{path}, naming nothing", None, path=path) for path in CLOSED),
    *(Attempt(f"{path}, opting out", None, "none", path=path) for path in CLOSED),
    *(Attempt(f"{path}, the required patch", None, "safety", path=path) for path in CLOSED),
    Attempt("/v1/embeddings by alias", None, path="/v1/embeddings", model="demo:pirate"),
    Attempt("rendering under a forbidden alias", None, path="/v1/completions/render", model="demo:secret"),
    Attempt("a slash at the end", None, "none", path=f"{CHAT}/"),
    Attempt("two slashes", None, "none", path="//v1/chat/completions"),
    Attempt("capitals in the path", None, "none", path="/V1/chat/completions"),
    Attempt("an encoded path", None, "none", path="/v1/chat%2Fcompletions"),
    Attempt("a semicolon in the path", None, "none", path="/v1/chat/completions;x=/health"),
    Attempt("a NUL in the path", None, "none", path="/v1/chat/completions%00"),
    Attempt("dots in the path", None, "none", path="/v1/x/../chat/completions"),
    Attempt("encoded dots in the path", None, "none", path="/health/%2e%2e/v1/chat/completions"),
    *(Attempt(f"{method} for POST", None, "none", method=method) for method in METHODS),
)

GROUPS: dict[str, tuple[Attempt, ...]] = {
    "leaving the required patch out": LEAVING_IT_OUT,
    "reaching a forbidden patch": REACHING_A_FORBIDDEN_ONE,
    "spelling": SPELLING,
    "headers": HEADERS,
    "the body": BODY,
    "somebody else's key": KEYS,
    "somebody else's tenant": TENANTS,
    "routes, paths, methods": ROUTES,
}
ATTEMPTS = tuple(attempt for group in GROUPS.values() for attempt in group)
