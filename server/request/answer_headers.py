"""What the headers of an answer say of the patches that had a part in it. Pure."""

from collections.abc import Iterable

from patches.headers import (
    ARM_HEADER,
    AS_OF_HEADER,
    COMPOSITION_HEADER,
    CONDITION_HEADER,
    DELTA_HEADER,
    DIGEST_HEADER,
    PATCH_HEADER,
    REVISION_HEADER,
    WEIGHTS_HEADER,
    asgi_name,
)
from server.request.prompt_routes import RouteKind
from server.request.scope import RequestScope

PATCH_NAME = asgi_name(PATCH_HEADER)
AS_OF_NAME = asgi_name(AS_OF_HEADER)
_DIGEST_NAME = asgi_name(DIGEST_HEADER)
_COMPOSITION_NAME = asgi_name(COMPOSITION_HEADER)
_CONDITION_NAME = asgi_name(CONDITION_HEADER)
_DELTA_NAME = asgi_name(DELTA_HEADER)
_ARM_NAME = asgi_name(ARM_HEADER)
_REVISION_NAME = asgi_name(REVISION_HEADER)

_BASE = (PATCH_NAME, b"none")
_OTHER_WEIGHTS = (asgi_name(WEIGHTS_HEADER), b"other")

Headers = Iterable[tuple[bytes, bytes]]


def answer_headers(request: RequestScope, status: int) -> Headers:
    """Name what answers; what never reached the engine claims nothing."""
    if request.selection is not None and (request.reached_engine or request.may_run_later(status)):
        headers = [*_of_selection(request), *_of_condition(request), *_of_weights(request)]
        if request.revision is not None:
            headers.append((_REVISION_NAME, b"%d" % request.revision))
        return headers
    # Only the base model can have answered there.
    is_of_base = request.kind is RouteKind.ENCODES and 200 <= status < 300
    return [_BASE, *_of_weights(request)] if is_of_base else ()


def is_event_stream(headers: Headers) -> bool:
    """Return whether these are the headers of a stream of server-sent events."""
    return any(
        name.lower() == b"content-type" and value.startswith(b"text/event-stream") for name, value in headers
    )


def _of_selection(request: RequestScope) -> Headers:
    patch = request.selection.patch if request.selection is not None else None
    if patch is None:
        return (_BASE,)
    headers = [
        (PATCH_NAME, patch.reference.encode("ascii")),
        (_DIGEST_NAME, patch.digest.encode("ascii")),
    ]
    if request.arm is not None:
        headers.append((_ARM_NAME, request.arm[1].encode("ascii")))
    if patch.form is not None:
        headers.append((_COMPOSITION_NAME, patch.form.encode("ascii")))
    return headers


def _of_condition(request: RequestScope) -> Headers:
    condition = request.condition
    return () if condition is None else ((_CONDITION_NAME, condition.encode("ascii")),)


def _of_weights(request: RequestScope) -> Headers:
    weights = request.weights
    if weights is None:
        return ()
    in_force = (_DELTA_NAME, weights.encode("ascii"))
    return (in_force, _OTHER_WEIGHTS) if request.is_mismatched else (in_force,)
