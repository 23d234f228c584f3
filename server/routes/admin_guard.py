"""What all admin routes do before anything else: ask for a key, and bound what is read."""

import json
import logging
import re
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi.dependencies.utils import get_flat_dependant
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message

from patches.canonical import parse_json
from patches.errors import InvalidName
from patches.names import validate_version
from server.admin.access import AdminAccess
from server.errors import AdminCallInvalid, PolicyPatchError

logger = logging.getLogger(__name__)

#: A JSON body of an admin call, at most. Uploads are read piece by piece, with a bound of their own.
MAX_BODY_BYTES = 1 << 16

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


def admin_route(access: AdminAccess) -> type[APIRoute]:
    """Make the class of routes that ``access`` guards."""

    class AdminRoute(APIRoute):
        """Admits the caller before a byte of the body is read, and answers faults with our error object."""

        def get_route_handler(self) -> Handler:
            """Wrap FastAPI's handler, which reads the body before it looks at any key."""
            handle = super().get_route_handler()
            self._parameters = {field.alias for field in get_flat_dependant(self.dependant).query_params}
            # As ``AdminAccess.order`` calls it: endpoints are named for what they do.
            action = self.name.partition("_")[0]

            async def guarded(request: Request) -> Response:
                by = request.state.admin = await access.admit(request)
                try:
                    return await self._handled(request, handle)
                except (PolicyPatchError, ClientDisconnect) as error:
                    if request.method != "GET":
                        access.refused(request, action, by, error)
                    if isinstance(error, PolicyPatchError):
                        raise
                    logger.info("%s %s: the caller broke it off", request.method, request.url.path)
                    # It reaches no one; a status has to stand in the server's own log.
                    return Response(status_code=HTTPStatus.BAD_REQUEST)

            return guarded

        async def _handled(self, request: Request, handle: Handler) -> Response:
            try:
                parameters = request.query_params.multi_items()
                _require_single(parameters)
                if request.method != "GET":
                    _require_known(parameters, self._parameters)
                if not takes_upload(request):
                    request = await with_small_body(request)
                    body = await request.body()
                    _require_clear(body)
                    if request.method == "DELETE" and body.strip():
                        raise AdminCallInvalid(
                            "body: expected none, since this call has parameters in its query"
                        )
                    if body and self.body_field is not None:
                        _require_json_type(request)
                return await handle(request)
            except RequestValidationError as error:
                raise invalid_call(error.errors()[0]) from None
            except HTTPException as error:
                # FastAPI's own answer to a body that its JSON reader gives up on.
                raise AdminCallInvalid("body: expected JSON, got something else") from error

    return AdminRoute


def takes_upload(request: Request) -> bool:
    """Return whether the body is a patch file rather than an order in JSON."""
    return request.method == "PUT" and _media_type(request) != "application/json"


def invalid_call(problem: Mapping[str, Any], *before: str) -> AdminCallInvalid:
    """Return the refusal of what pydantic found, named by its place; ``before`` is where that begins."""
    # What was sent is not repeated: it may hold a key.
    where = ".".join(str(part) for part in (*before, *problem["loc"]))
    return AdminCallInvalid(f"{where}: {problem['msg'].removeprefix('Value error, ')}")


async def caller(request: Request) -> str:
    """Return the name of the key that the current call came with."""
    # No plain function: FastAPI would look the name up in another thread.
    name: str = request.state.admin
    return name


async def with_small_body(request: Request) -> Request:
    """Return a request whose body is read already: whole, chunked or not there at all.

    Raises:
        AdminCallInvalid: It is larger than a body of an admin call may be; the rest stays unread.
        ClientDisconnect: The caller went away before it was whole.
    """
    told = request.headers.get("content-length", "0")
    if told.isdecimal() and int(told[:20]) > MAX_BODY_BYTES:
        raise AdminCallInvalid(f"body: expected at most {MAX_BODY_BYTES} bytes, got {told[:20]}")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise AdminCallInvalid(f"body: expected at most {MAX_BODY_BYTES} bytes, got more")

    async def again() -> Message:
        return {"type": "http.request", "body": bytes(body), "more_body": False}

    return Request(request.scope, again)


def require_version(version: str, param: str = "version") -> None:
    """Check that a text which a call was sent as ``param`` is a version.

    Raises:
        AdminCallInvalid: It is none.
    """
    try:
        validate_version(version)
    except InvalidName as error:
        message = str(error).removeprefix("version: ")
        raise AdminCallInvalid(f"{param}: {message}", param=param) from None


def require_version_or_digest(version: str) -> None:
    """Check that a text is a version, or begins as a digest does.

    Raises:
        AdminCallInvalid: It is neither.
    """
    if not version.startswith("sha256:"):
        require_version(version)


def _require_single(parameters: Sequence[tuple[str, str]]) -> None:
    seen: set[str] = set()
    for name, _ in parameters:
        if name in seen:
            raise AdminCallInvalid(f"query: expected {name[:80]!r} once, got it twice")
        seen.add(name)


def _require_known(parameters: Sequence[tuple[str, str]], known: Collection[str]) -> None:
    """Refuse what would change nothing: ``?dry_run=true`` must not be carried out for being a mistake."""
    for name, _ in parameters:
        if name not in known:
            expected = (
                f"only {', '.join(sorted(known))}" if known else "none, since this call takes a JSON body"
            )
            raise AdminCallInvalid(f"query: expected {expected}, got {name[:80]!r}")


def _require_clear(body: bytes) -> None:
    """Refuse JSON that a reader may take in two ways: of a key that stands there twice, which one counts?"""
    try:
        parse_json(body)
    except (json.JSONDecodeError, UnicodeDecodeError):
        # The route says where it ends to be JSON, or takes no body.
        return
    except ValueError as error:
        raise AdminCallInvalid(f"body: {error}") from None


def _require_json_type(request: Request) -> None:
    """Refuse a body of another type in words: FastAPI takes it for bytes, and asks for an object."""
    media_type = _media_type(request)
    if not re.fullmatch(r"application/(.+\+)?json", media_type):
        raise AdminCallInvalid(
            f"Content-Type: expected application/json, got {media_type[:80] or 'none'}; say what the body is"
        )


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()
