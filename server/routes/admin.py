"""``/v1/patches/{name}/…`` that change the catalog. Each needs an admin key, and each is in the audit log."""

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Path, Request, Security
from fastapi.security import APIKeyHeader, HTTPBearer
from pydantic import BaseModel, ConfigDict, Field, model_validator

from patches.errors import InvalidName
from patches.names import NAME_PATTERN, validate_version
from server.activation import Change, NameRecord, Target
from server.admin_desk import ADMIN_KEY_HEADER, AdminDesk, Order
from server.errors import AdminCallInvalid
from server.operator import Operator
from server.routes.admin_route import admin_route, caller
from server.routes.patches import ErrorBody

#: For the OpenAPI document; the route class is what asks for the key.
SECURITY = [
    Security(HTTPBearer(auto_error=False, scheme_name="admin key as bearer token")),
    Security(APIKeyHeader(name=ADMIN_KEY_HEADER, auto_error=False, scheme_name="admin key in a header")),
]

By = Annotated[str, Depends(caller)]
Name = Annotated[str, Path(description="policy name", pattern=f"^{NAME_PATTERN.pattern}$")]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class ActivateOrder(_Body):
    """Which version the bare name shall mean."""

    version: str | None = Field(
        None, description="a version, or `sha256:` and at least 12 digits of a digest; it is pinned"
    )
    follow: bool = Field(False, description="take the pin away: the files of the folder decide again")

    @model_validator(mode="after")
    def _names_one(self) -> "ActivateOrder":
        if (self.version is None) != self.follow:
            raise ValueError("expected either version or follow")
        return self


class RollbackOrder(_Body):
    """What to leave."""

    expected: str | None = Field(
        None, alias="from", description="refuse where another version is active: someone was faster"
    )


class PatchTarget(BaseModel):
    """One content."""

    version: str
    digest: str


class PatchChange(BaseModel):
    """One entry of a history."""

    at: datetime
    action: str = Field(description="`folder`, or the call that caused it")
    by: str = Field(description="name of the admin key; `folder` where a file did it")
    active: PatchTarget | None
    is_pinned: bool


class PatchRecord(BaseModel):
    """What is active, and how that came about."""

    name: str
    active: PatchTarget | None
    is_pinned: bool = Field(description="no file changes what is active")
    previous: list[PatchTarget] = Field(description="what a rollback goes back to, the first that is loaded")
    rolled_back: list[PatchTarget] = Field(description="never active again without a call")
    history: list[PatchChange] = Field(description="latest first")


#: What the OpenAPI document says about refusals.
REFUSED: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody} for status in (400, 401, 403, 404, 409, 413, 422, 500)
}


def admin_router(operator: Operator, desk: AdminDesk) -> APIRouter:
    """Make the routes through which ``operator`` gets orders."""
    router = APIRouter(
        prefix="/v1/patches",
        tags=["policy patches: admin"],
        dependencies=SECURITY,
        route_class=admin_route(desk),
    )

    @router.post("/{name}/activate", summary="Choose the active version", responses=REFUSED)
    async def activate(request: Request, by: By, name: Name, body: ActivateOrder) -> PatchRecord:
        wish = f"{name}@{body.version}" if body.version is not None else name
        with desk.order(request, "follow" if body.follow else "activate", by, wish) as order:
            if body.version is None:
                return _answer(order, name, await operator.follow(name, by))
            _check_version(body.version)
            return _answer(order, name, await operator.activate(name, body.version, by))

    @router.post("/{name}/rollback", summary="Go back to what was active before", responses=REFUSED)
    async def rollback(
        request: Request, by: By, name: Name, body: Annotated[RollbackOrder | None, Body()] = None
    ) -> PatchRecord:
        expected = body.expected if body is not None else None
        with desk.order(request, "rollback", by, name) as order:
            return _answer(order, name, await operator.rollback(name, by, expected=expected))

    @router.get("/{name}/history", summary="What was active, and why", responses=REFUSED)
    async def history(by: By, name: Name) -> PatchRecord:
        return _record(name, operator.record(name))

    return router


def _check_version(version: str) -> None:
    try:
        if not version.startswith("sha256:"):
            validate_version(version)
    except InvalidName as error:
        raise AdminCallInvalid(str(error), param="version") from None


def _answer(order: Order, name: str, record: NameRecord) -> PatchRecord:
    if record.active is not None:
        order.patch, order.digest = f"{name}@{record.active.version}", record.active.digest
    return _record(name, record)


def _record(name: str, record: NameRecord) -> PatchRecord:
    return PatchRecord(
        name=name,
        active=target_of(record.active),
        is_pinned=record.is_pinned,
        previous=[PatchTarget(version=t.version, digest=t.digest) for t in record.previous],
        rolled_back=[PatchTarget(version=t.version, digest=t.digest) for t in record.rolled_back],
        history=[_change(change) for change in record.history],
    )


def target_of(target: Target | None) -> PatchTarget | None:
    """Describe a content, if there is one."""
    return PatchTarget(version=target.version, digest=target.digest) if target is not None else None


def _change(change: Change) -> PatchChange:
    return PatchChange(
        at=datetime.fromtimestamp(change.at_s, UTC),
        action=change.action,
        by=change.by,
        active=target_of(change.active),
        is_pinned=change.is_pinned,
    )
