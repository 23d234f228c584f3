"""Routes that generate, routes that run the model without a prefix, and other paths and methods."""

from tests.attacks.attempt import CHAT, Attempt

METHODS = ("GET", "PUT", "PATCH", "DELETE", "QUERY")

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
