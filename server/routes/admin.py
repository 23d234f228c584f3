"""``/v1/patches/{name}/…`` that change the catalog. Each needs an admin key, and each is in the audit log."""

from dataclasses import asdict, fields
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Depends, Path, Request, Security
from fastapi.security import APIKeyHeader, HTTPBearer
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from patches.headers import ADMIN_KEY_HEADER
from patches.names import NAME_PATTERN
from server.admin.access import AdminAccess, Order
from server.admin.operator import Operator
from server.routes.admin_guard import admin_route, caller, require_version, require_version_or_digest
from server.routes.patches import ErrorBody
from server.versions import sticky
from server.versions.activation import Canary, CanaryRules, Change, NameRecord, Target
from server.versions.canary import MAX_SAMPLES

#: For the OpenAPI document; the route class is what asks for the key.
SECURITY = [
    Security(HTTPBearer(auto_error=False, scheme_name="admin key as bearer token")),
    Security(APIKeyHeader(name=ADMIN_KEY_HEADER, auto_error=False, scheme_name="admin key in a header")),
]

By = Annotated[str, Depends(caller)]
Name = Annotated[str, Path(description="policy name", pattern=f"^{NAME_PATTERN.pattern}$")]


class _Body(BaseModel):
    # Strict: neither `true` nor "0.5" is a share.
    model_config = ConfigDict(extra="forbid", populate_by_name=True, allow_inf_nan=False, strict=True)


class ActivateOrder(_Body):
    """Which version the bare name is to mean."""

    version: str | None = Field(
        None, description="a version, or `sha256:` and at least 12 digits of a digest; it is pinned"
    )
    follow: bool = Field(False, description="remove the pin: the files of the folder decide again")

    dry_run: bool = Field(False, description="only say what would be active, and what would stop to serve")

    @model_validator(mode="after")
    def _names_one(self) -> "ActivateOrder":
        if (self.version is None) != self.follow:
            raise ValueError("expected either version or follow")
        if self.dry_run and self.follow:
            raise ValueError("expected dry_run beside version only")
        return self


class RollbackOrder(_Body):
    """The version to go back from."""

    expected: str | None = Field(
        None, alias="from", description="refuse where another version is active: another order came first"
    )


class CanaryOrder(_Body):
    """A canary to start, or the end of the one that runs."""

    version: str | None = Field(None, description="what a share of the requests gets")
    share: float = Field(0.05, gt=0, le=1, description="share of the requests for the bare name that get it")
    key: str = Field(
        sticky.DEFAULT,
        json_schema_extra={"pattern": sticky.PATTERN},
        description=f"what keeps a caller on one version: {sticky.MEANING}",
    )
    max_error_rate: float | None = Field(
        None, ge=0, le=1, description="abort above this share of failed requests"
    )
    max_first_token_s: float | None = Field(
        None, gt=0, description="abort above this 90th percentile, in seconds"
    )
    min_condition_met: float | None = Field(
        None, gt=0, le=1, description="abort where the condition is met by a smaller share of requests"
    )
    max_condition_met: float | None = Field(
        None, ge=0, lt=1, description="abort where the condition is met by a larger share of requests"
    )
    max_condition_change: float | None = Field(
        None, gt=0, lt=1, description="abort where that share is further from the stable version's"
    )
    promote_after_s: float | None = Field(
        None, gt=0, description="promote after keeping the rules for so many seconds"
    )
    min_requests: int = Field(
        20, ge=1, le=MAX_SAMPLES, description="with fewer requests the canary is not judged"
    )
    window_s: float = Field(300, gt=0, le=86400, description="requests before so many seconds are not judged")
    end: Literal["promote", "abort"] | None = Field(None, description="end the canary that runs")

    @field_validator("key")
    @classmethod
    def _tells_callers_apart(cls, key: str) -> str:
        try:
            sticky.StickyKey.parse(key).require_useful()
        except ValueError as error:
            raise ValueError(str(error).removeprefix("key: ")) from None
        return key

    @model_validator(mode="after")
    def _starts_or_ends(self) -> "CanaryOrder":
        if (self.version is None) == (self.end is None):
            raise ValueError("expected either version or end")
        low, high = self.min_condition_met, self.max_condition_met
        if low is not None and high is not None and low > high:
            raise ValueError(
                f"expected min_condition_met of at most max_condition_met, {high:g}, got {low:g}"
            )
        return self

    def rules(self) -> CanaryRules:
        """Return the rules that end it."""
        return CanaryRules(**{rule.name: getattr(self, rule.name) for rule in fields(CanaryRules)})


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
    reason: str | None = Field(description="why, where a rule decided")


class PatchCanary(BaseModel):
    """A version that a share of the requests gets."""

    version: str
    digest: str
    share: float
    key: str
    max_error_rate: float | None
    max_first_token_s: float | None
    min_condition_met: float | None
    max_condition_met: float | None
    max_condition_change: float | None
    promote_after_s: float | None
    min_requests: int
    window_s: float
    by: str
    since: datetime


class PatchRecord(BaseModel):
    """What is active, and how that came about."""

    name: str
    active: PatchTarget | None
    is_pinned: bool = Field(description="no file changes what is active")
    previous: list[PatchTarget] = Field(description="what a rollback goes back to, the first that is loaded")
    rolled_back: list[PatchTarget] = Field(description="these become active again only by a call")
    canary: PatchCanary | None
    history: list[PatchChange] = Field(description="latest first")


class ActivationPreview(BaseModel):
    """What an activation would do; nothing was changed."""

    name: str
    would_activate: PatchTarget
    mismatched: list[str] = Field(description="served now, and made for other weights than those would be")
    kept: list[str] = Field(description="of those, what would go on to be served: `--mismatched keep`")
    refused_for: list[str] = Field(description="what the policy needs of these; they forbid the activation")


#: What the OpenAPI document says about refusals.
REFUSED: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody} for status in (400, 401, 403, 404, 409, 413, 422, 500)
}


def admin_router(operator: Operator, access: AdminAccess) -> APIRouter:
    """Make the routes through which ``operator`` gets orders."""
    router = APIRouter(
        prefix="/v1/patches",
        tags=["policy patches: admin"],
        dependencies=SECURITY,
        route_class=admin_route(access),
    )

    @router.post("/{name}/activate", summary="Choose the active version", responses=REFUSED)
    async def activate(
        request: Request, by: By, name: Name, body: ActivateOrder
    ) -> PatchRecord | ActivationPreview:
        if body.version is not None and body.dry_run:
            access.require_unmanaged()
            require_version_or_digest(body.version)
            target, effects = operator.effects(name, body.version)
            would = PatchTarget(version=target.version, digest=target.digest)
            return ActivationPreview(
                name=name,
                would_activate=would,
                mismatched=effects.mismatched,
                kept=effects.kept,
                refused_for=effects.lost,
            )
        wish = f"{name}@{body.version}" if body.version is not None else name
        with access.order(request, "follow" if body.follow else "activate", by, wish) as order:
            if body.version is None:
                return _answer(order, name, await operator.follow(name, by))
            require_version_or_digest(body.version)
            return _answer(order, name, await operator.activate(name, body.version, by))

    @router.post("/{name}/rollback", summary="Go back to what was active before", responses=REFUSED)
    async def rollback(
        request: Request, by: By, name: Name, body: Annotated[RollbackOrder | None, Body()] = None
    ) -> PatchRecord:
        expected = body.expected if body is not None else None
        with access.order(request, "rollback", by, name) as order:
            if expected is not None:
                require_version(expected, "from")
            return _answer(order, name, await operator.rollback(name, by, expected=expected))

    @router.post("/{name}/canary", summary="Try a version on a share of requests", responses=REFUSED)
    async def canary(request: Request, by: By, name: Name, body: CanaryOrder) -> PatchRecord:
        if body.end is not None:
            with access.order(request, body.end, by, name) as order:
                return _answer(order, name, await operator.end_canary(name, body.end, by))
        assert body.version is not None
        with access.order(request, "canary", by, f"{name}@{body.version} {body.share:g} {body.key}") as order:
            require_version_or_digest(body.version)
            record = await operator.start_canary(
                name, body.version, by, share=body.share, key=body.key, rules=body.rules()
            )
            return _answer(order, name, record)

    @router.get("/{name}/history", summary="What was active, and why", responses=REFUSED)
    async def history(by: By, name: Name) -> PatchRecord:
        return _record(name, operator.record(name))

    return router


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
        canary=_canary(record.canary),
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
        reason=change.reason,
    )


def _canary(canary: Canary | None) -> PatchCanary | None:
    if canary is None:
        return None
    return PatchCanary(
        version=canary.target.version,
        digest=canary.target.digest,
        share=canary.share,
        key=canary.key,
        **asdict(canary.rules),
        by=canary.by,
        since=datetime.fromtimestamp(canary.at_s, UTC),
    )
