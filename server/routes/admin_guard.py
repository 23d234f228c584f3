"""What all admin routes do before anything else: ask for a key, and bound what is read."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from server.admin.access import AdminAccess
from server.errors import AdminCallInvalid

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

            async def guarded(request: Request) -> Response:
                request.state.admin = await access.admit(request)
                if request.headers.get("content-type", "").startswith("application/json"):
                    require_small(request)
                try:
                    return await handle(request)
                except RequestValidationError as error:
                    raise _invalid(error) from None

            return guarded

    return AdminRoute


async def caller(request: Request) -> str:
    """Return the name of the key that the current call came with."""
    # No plain function: FastAPI would look the name up in another thread.
    name: str = request.state.admin
    return name


def require_small(request: Request) -> None:
    """Refuse a JSON body that is too large, or whose length is not given.

    Raises:
        AdminCallInvalid: It is.
    """
    length = request.headers.get("content-length", "")
    if not length.isdecimal() or int(length) > MAX_BODY_BYTES:
        raise AdminCallInvalid(f"body: expected a Content-Length of at most {MAX_BODY_BYTES}")


def _invalid(error: RequestValidationError) -> AdminCallInvalid:
    # What was sent is not repeated: it may hold a key.
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    return AdminCallInvalid(f"{where}: {problem['msg']}")
