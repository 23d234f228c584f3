"""Adds policy patches to an app that serves the OpenAI API."""

from collections.abc import Awaitable, Callable

from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from server.catalog.catalog import Catalog
from server.errors import PolicyPatchError
from server.metrics.patches import PatchMetrics
from server.request.decider import Decider
from server.request.middleware import PolicyPatchMiddleware
from server.request.refusal import refusal_body
from server.request.scope import current_credentials, reject
from server.routes.admin_app import Admin
from server.routes.patches import patches_router
from server.routes.ready import ready_router


async def no_engine() -> None:
    """Pass: there is no engine that could fail."""


def install(
    app: FastAPI,
    *,
    catalog: Catalog | None,
    decider: Decider,
    metrics: PatchMetrics,
    admin: Admin | None = None,
    alive: Callable[[], Awaitable[None]] = no_engine,
) -> None:
    """Add the middleware, the ``/v1/patches`` routes and the error handler.

    The middleware goes to the inside of those that are there: a request that authentication refuses learns
    nothing about patches. To be called once, before the app serves its first request. Without
    ``admin`` the app only describes the catalog, and without ``catalog`` another process does.
    ``alive`` raises ``NotInStep`` where the engine can't answer.
    """
    if app.middleware_stack is not None:
        raise RuntimeError("app: expected one that serves no request yet")
    app.user_middleware.append(Middleware(PolicyPatchMiddleware, decider=decider, metrics=metrics))
    app.include_router(ready_router(decider.require_current, alive, decider.needs))
    if admin is not None:
        admin.add_routes(app)
    if catalog is not None:
        app.include_router(patches_router(catalog, lambda: decider.terms(current_credentials.get())))

    async def answer_refusal(request: Request, error: Exception) -> Response:
        assert isinstance(error, PolicyPatchError)
        # Recorded, so that the middleware counts it as a refusal and not as any client error.
        reject(error)
        return JSONResponse(
            refusal_body(error, request.url.path), status_code=error.status, headers=dict(error.headers())
        )

    app.add_exception_handler(PolicyPatchError, answer_refusal)
