"""Another caller's rights: keys and tenants."""

from tests.attacks.attempt import CHAT, GATEWAY, KEY, KEY_HASH, RESEARCH_KEY, Attempt, bearer

ACME, SMALL, UNDERSCORED = ("X-Tenant", "acme"), ("X-Tenant", "small"), ("X_Tenant", "acme")


def _through_gateway(
    what: str, header: str | None, *headers: tuple[str, str], answer: str | None = None
) -> Attempt:
    return Attempt(f"through the gateway: {what}", answer, header, headers=headers, peer=GATEWAY)


KEYS = (
    Attempt("an allowed key's patch", None, "sailor"),
    Attempt("a wrong key", None, "sailor", headers=(bearer("guess"),)),
    Attempt("no key at all behind the scheme", None, "sailor", headers=(("Authorization", "Bearer "),)),
    Attempt("the hash in place of the key", None, "sailor", headers=(bearer(KEY_HASH),)),
    Attempt("the key's name", None, "sailor", headers=(bearer("research"),)),
    Attempt("the key in capitals", None, "sailor", headers=(bearer("RESEARCH-KEY"),)),
    Attempt("the beginning of the key", None, "sailor", headers=(bearer("research-ke"),)),
    Attempt("more than the key", None, "sailor", headers=(bearer("research-key2"),)),
    Attempt("the key with a space before it", None, "sailor", headers=(bearer(" research-key"),)),
    Attempt("the key without a scheme", None, "sailor", headers=(("Authorization", RESEARCH_KEY),)),
    Attempt("the key under another scheme", None, "sailor", headers=(("Authorization", f"Key {KEY[1]}"),)),
    Attempt("the key as a cookie", None, "sailor", headers=(("Cookie", "api_key=research-key"),)),
    Attempt("the key in a query", None, "sailor", path=f"{CHAT}?api_key={RESEARCH_KEY}"),
    Attempt("the key in the body", None, "sailor", body={"api_key": RESEARCH_KEY}),
    Attempt("the key in a proxy's header", None, "sailor", headers=(("Proxy-Authorization", KEY[1]),)),
    Attempt("two keys", None, "pirate", headers=(bearer("guess"), KEY)),
    Attempt("the same key twice", None, "pirate", headers=(KEY, KEY)),
    Attempt("a list of keys", None, "sailor", headers=(bearer(f"guess, Bearer {RESEARCH_KEY}"),)),
    Attempt("a key in each header", None, "pirate", headers=(bearer("guess"), ("x-api-key", RESEARCH_KEY))),
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
