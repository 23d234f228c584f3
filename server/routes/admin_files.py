"""``PUT`` and ``DELETE`` of patches: files that operators put into the folder, or take out of it."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field, ValidationError

from patches.format import MAX_FILE_BYTES
from patches.headers import SIGNATURE_HEADER
from server.admin.access import AdminAccess, Order
from server.admin.operator import Operator
from server.admin.uploads import Uploads
from server.catalog.catalog import Catalog
from server.errors import PatchTooLarge
from server.routes.admin import REFUSED, SECURITY, By, Name, PatchTarget, target_of
from server.routes.admin_guard import (
    MAX_BODY_BYTES,
    admin_route,
    invalid_call,
    require_version,
    require_version_or_digest,
    takes_upload,
)
from server.routes.patches import PatchCard, card_of
from server.versions.activation import NameRecord
from server.versions.view import ServedPatch

_UPLOAD = {
    "requestBody": {
        "required": True,
        "content": {
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {"file": {"type": "string", "description": "a file of the patch folder"}},
                    "required": ["file"],
                    "additionalProperties": False,
                }
            },
        },
    },
    "parameters": [
        {
            "in": "header",
            "name": SIGNATURE_HEADER,
            "required": False,
            "description": "the signature file of an upload, in base64",
            "schema": {"type": "string"},
        }
    ],
}


class FolderFile(BaseModel, extra="forbid", strict=True):
    """A file that lies in the patch folder."""

    file: str = Field(max_length=255)


class Removal(BaseModel):
    """What an order to delete left."""

    name: str
    active: PatchTarget | None = Field(description="what the bare name means now")
    num_in_flight: int = Field(description="requests that used what was deleted")
    is_forced: bool = Field(description="whether they were ended; otherwise they run to their end")


def admin_files_router(
    catalog: Catalog, operator: Operator, uploads: Uploads, access: AdminAccess
) -> APIRouter:
    """Make the routes that change files."""
    router = APIRouter(
        prefix="/v1/patches",
        tags=["policy patches: admin"],
        dependencies=SECURITY,
        route_class=admin_route(access),
    )
    Force = Annotated[bool, Query(description="end the requests that use it with an error")]  # noqa: N806

    @router.put(
        "/{name}/{version}", summary="Add a patch", status_code=201, responses=REFUSED, openapi_extra=_UPLOAD
    )
    async def put(
        request: Request,
        response: Response,
        by: By,
        name: Name,
        version: str,
        hold: Annotated[bool, Query(description="it never becomes active by itself")] = False,
    ) -> PatchCard:
        require_version(version)
        with access.order(request, "put", by, f"{name}@{version}") as order:
            holder = operator.holder(by) if hold else None
            if not takes_upload(request):
                served, is_new = await uploads.load(name, version, await _folder_file(request), holder)
            else:
                _check_length(request)
                async with uploads.receive(request.stream(), request.headers.get(SIGNATURE_HEADER)) as upload:
                    served, is_new = await uploads.put(name, version, upload, holder)
            _note(order, served)
            response.status_code = 201 if is_new else 200
            return card_of(catalog, name)

    @router.delete("/{name}/{version}", summary="Delete a version", responses=REFUSED)
    async def remove_version(
        request: Request, by: By, name: Name, version: str, force: Force = False
    ) -> Removal:
        require_version_or_digest(version)
        with access.order(request, "remove", by, f"{name}@{version}"):
            return _removal(name, force, *await operator.remove(name, version, by, is_forced=force))

    @router.delete("/{name}", summary="Delete all versions", responses=REFUSED)
    async def remove(request: Request, by: By, name: Name, force: Force = False) -> Removal:
        with access.order(request, "remove", by, name):
            return _removal(name, force, *await operator.remove(name, None, by, is_forced=force))

    return router


async def _folder_file(request: Request) -> str:
    body = await request.body()
    assert len(body) <= MAX_BODY_BYTES
    try:
        return FolderFile.model_validate_json(body).file
    except ValidationError as error:
        raise invalid_call(error.errors()[0], "body") from None


def _check_length(request: Request) -> None:
    """Refuse what says itself that it is too large, before a byte of it is read."""
    told = request.headers.get("content-length", "0")
    if told.isdecimal() and int(told[:20]) > MAX_FILE_BYTES:
        raise PatchTooLarge(
            f"file: expected at most {MAX_FILE_BYTES} bytes, got a Content-Length of {told[:20]}"
        )


def _note(order: Order, served: ServedPatch) -> None:
    order.patch, order.digest = served.reference, served.digest


def _removal(name: str, is_forced: bool, record: NameRecord, num_in_flight: int) -> Removal:
    return Removal(
        name=name, active=target_of(record.active), num_in_flight=num_in_flight, is_forced=is_forced
    )
