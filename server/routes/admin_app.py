"""Everything that operators reach over HTTP, in one object: on the port of the models, or on its own."""

import contextlib
import socket
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace

from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from server import __version__
from server.admin.access import AdminAccess
from server.admin.listener import AdminListener
from server.admin.operator import Operator
from server.admin.uploads import Uploads
from server.catalog.catalog import Catalog
from server.errors import PolicyPatchError
from server.policy.caller import Credentials
from server.policy.rules import OPEN_POLICY
from server.policy.terms import Terms, terms_of
from server.request.decider import Decider
from server.routes.admin import admin_router
from server.routes.admin_files import admin_files_router
from server.routes.admin_guard import admin_route
from server.routes.patches import patches_router


@dataclass(frozen=True, slots=True)
class Admin:
    """What the admin routes need."""

    catalog: Catalog
    operator: Operator
    uploads: Uploads
    access: AdminAccess

    def add_routes(self, app: FastAPI) -> None:
        """Add the routes that change the catalog; before those that describe it, whose paths are wider."""
        app.include_router(admin_router(self.operator, self.access))
        app.include_router(admin_files_router(self.catalog, self.operator, self.uploads, self.access))

    def app(self, decider: Decider) -> FastAPI:
        """Make an app of these routes and those that describe the catalog; all ask for an admin key."""
        app = FastAPI(title="policypatch admin", version=__version__)
        self.add_routes(app)

        def terms() -> Terms:
            # The rules of the policy don't bind an operator.
            everything = terms_of(Credentials(), OPEN_POLICY)
            return replace(decider.terms(Credentials()), rules=everything.rules)

        app.include_router(patches_router(self.catalog, terms, admin_route(self.access)))
        app.add_exception_handler(PolicyPatchError, answer_refusal)
        return app

    def listen(
        self, decider: Decider, listener: socket.socket | None, around: Middleware
    ) -> AbstractAsyncContextManager[object]:
        """Serve the app inside a middleware on a bound socket while the context lasts, if there is one."""
        if listener is None:
            return contextlib.nullcontext()
        app = self.app(decider)
        app.user_middleware.insert(0, around)
        return AdminListener(app, listener)


async def answer_refusal(request: Request, error: Exception) -> Response:
    """Answer with the OpenAI error object of ``error``."""
    assert isinstance(error, PolicyPatchError)
    return JSONResponse(error.body(), status_code=error.status, headers=dict(error.headers()))
