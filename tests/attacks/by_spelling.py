"""Other spellings of names, and other headers."""

from tests.attacks.attempt import OPT_OUT, Attempt

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
