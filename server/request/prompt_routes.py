"""Which HTTP routes can honour a patch.

A table, because "everything else" has to be refused: a route of a new vLLM release that was never examined
answers 400 where a patch is named, and never the base model's text.
"""

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType

from starlette.routing import Match
from starlette.types import Scope

from patches.headers import ADAPTER_HEADER, asgi_name

_ADAPTER_NAME = asgi_name(ADAPTER_HEADER)


class RouteKind(Enum):
    """What a route does with a prompt."""

    #: Generates through the engine client, where the patch is applied.
    GENERATES = "generates"
    #: As GENERATES, but may answer before the engine is asked (background responses, ``response.created``
    #: events).
    GENERATES_LATER = "generates_later"
    #: Runs the model without generating; a prefix can't be mapped in front.
    ENCODES = "encodes"
    #: Touches no model; a patch that a client names with every request, in whatever way, does no harm.
    NEUTRAL = "neutral"
    #: Everything else.
    OTHER = "other"

    def __init__(self, word: str) -> None:
        #: Whether a patch can be honoured; asked half a dozen times a request.
        self.is_generating = word in ("generates", "generates_later")


_KINDS: Mapping[str, RouteKind] = MappingProxyType(
    {
        "/v1/chat/completions": RouteKind.GENERATES,
        "/v1/chat/completions/batch": RouteKind.GENERATES,
        "/v1/completions": RouteKind.GENERATES,
        "/v1/messages": RouteKind.GENERATES,
        "/v1/responses": RouteKind.GENERATES_LATER,
        "/cohere/v2/chat": RouteKind.GENERATES,
        "/inference/v1/generate": RouteKind.GENERATES,
        "/invocations": RouteKind.GENERATES,
        "/v1/embeddings": RouteKind.ENCODES,
        "/v2/embed": RouteKind.ENCODES,
        "/pooling": RouteKind.ENCODES,
        "/classify": RouteKind.ENCODES,
        "/score": RouteKind.ENCODES,
        "/v1/score": RouteKind.ENCODES,
        "/rerank": RouteKind.ENCODES,
        "/v1/rerank": RouteKind.ENCODES,
        "/v2/rerank": RouteKind.ENCODES,
        "/generative_scoring": RouteKind.ENCODES,
        "/v1/systemone": RouteKind.ENCODES,
        "/v1/audio/transcriptions": RouteKind.ENCODES,
        "/v1/audio/translations": RouteKind.ENCODES,
        "/v1/realtime": RouteKind.ENCODES,
        "/tokenize": RouteKind.NEUTRAL,
        "/detokenize": RouteKind.NEUTRAL,
        "/v1/messages/count_tokens": RouteKind.NEUTRAL,
        "/ping": RouteKind.NEUTRAL,
    }
)


#: Amazon SageMaker's routes: what stands around them there replaces ``model`` by a header, and by nothing
#: where the header is missing.
_LOSING_MODEL = frozenset({"/invocations"})


def route_kind(path: str, root_path: str = "") -> RouteKind:
    """Classify a request path.

    Args:
        path: The ASGI scope's ``path``.
        root_path: The ASGI scope's ``root_path``, which ``path`` may begin with.
    """
    path = _below(root_path, path)
    kind = _KINDS.get(path)
    if kind is not None:
        return kind
    # Starlette redirects a trailing slash to the route without one.
    kind = _KINDS.get(path.rstrip("/"))
    if kind is not None:
        return kind
    if path.startswith("/v1/patches/"):
        return RouteKind.NEUTRAL
    if path.startswith("/v1/responses/") and path.endswith("/cancel"):
        return RouteKind.NEUTRAL
    return RouteKind.OTHER


def loses_model(scope: Scope) -> bool:
    """Return whether the route of a request will not see the ``model`` of its body."""
    return _below(scope.get("root_path", ""), scope["path"]).rstrip("/") in _LOSING_MODEL


def replacing_model(scope: Scope) -> str | None:
    """Return what a route that loses the ``model`` will see in its place, if anything."""
    names = (value.decode("latin-1") for name, value in scope["headers"] if name == _ADAPTER_NAME)
    return next((name for name in names if name), None)


def is_routed(scope: Scope) -> bool:
    """Return whether the app has a route for the path, by whatever method."""
    return any(route.matches(scope)[0] is not Match.NONE for route in scope["app"].routes)


def _below(root_path: str, path: str) -> str:
    return path[len(root_path) :] if root_path and path.startswith(root_path) else path
