"""The app behind ``--admin-listen``: the routes about the catalog, and nothing that runs the model."""

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from server import __version__
from server.admin_desk import AdminDesk
from server.catalog import Catalog
from server.errors import PolicyPatchError
from server.gate import PatchGate
from server.operator import Operator
from server.routes.admin import admin_router
from server.routes.patches import patches_router


def create_admin_app(*, catalog: Catalog, gate: PatchGate, operator: Operator, desk: AdminDesk) -> FastAPI:
    """Make the app."""
    app = FastAPI(title="policypatch admin", version=__version__)
    app.include_router(admin_router(operator, desk))
    app.include_router(patches_router(catalog, gate))
    app.add_exception_handler(PolicyPatchError, answer_refusal)
    return app


async def answer_refusal(request: Request, error: Exception) -> Response:
    """Answer with the OpenAI error object of ``error``."""
    assert isinstance(error, PolicyPatchError)
    return JSONResponse(error.body(), status_code=error.status, headers=dict(error.headers()))
