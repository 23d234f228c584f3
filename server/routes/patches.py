"""``GET /v1/patches`` and ``GET /v1/patches/{name}``: what is loaded, what drains, what was refused."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Literal

from fastapi import APIRouter
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field

from patches.names import VersionKey, version_key
from server.catalog.catalog import Catalog
from server.catalog.residents import ResidentRow
from server.errors import PatchNotFound
from server.policy.terms import Terms
from server.trust.trust import Trust
from server.versions.view import FileFailure


class PatchVersion(BaseModel):
    """One content on the workers."""

    version: str
    digest: str = Field(description="`sha256:` and 64 hexadecimal digits over manifest and tensors")
    state: Literal["active", "loaded", "previous", "draining", "mismatched"] = Field(
        description="`active`: what the bare name means. `loaded`: can be named with its version or digest. "
        "`previous`: kept for a rollback only. `mismatched`: made for other weights than those in force. "
        "`draining`: takes no new requests and goes with its last one."
    )
    kind: str
    num_virtual_tokens: int
    nbytes: int = Field(description="bytes of its tensors, added up over all workers")
    tier: Literal["memory", "disk"] = Field(
        description="`memory`: the workers hold the tensors. `disk`: the next request waits for the file."
    )
    in_flight: int = Field(description="requests that this version is answering")
    origin_method: str = Field(description="how the patch was made")
    license: str | None
    changelog: str | None
    signer: str | None = Field(description="who signed it, where the server demands signatures")


class PatchCard(BaseModel):
    """One patch by name."""

    object: Literal["policy_patch"] = "policy_patch"
    name: str
    active_version: str | None = Field(description="null where only draining versions are left")
    versions: list[PatchVersion] = Field(description="highest semantic version first")


class PatchFailure(BaseModel):
    """A file that is refused, or the folder where it can't be read."""

    file: str
    reason: str = Field(description="the `reason` label of `policy_patch_load_failures_total`")
    code: str = Field(description="the error code that belongs to the reason")
    message: str
    since: datetime
    name: str | None = Field(description="where the file could be read")
    version: str | None = Field(description="where the file could be read")


class TrustReport(BaseModel):
    """Which signatures the server accepts."""

    is_signature_required: bool
    signers: list[str] = Field(description="whose signature counts")
    num_revoked: int = Field(description="digests that never load")
    minimum_versions: dict[str, str] = Field(description="what signatures asked for, by patch name")
    problems: list[str] = Field(
        description="keys or list that can't be read; what was read before stays in force"
    )


class FleetReport(BaseModel):
    """Where the server stands in the catalog of its fleet."""

    revision: int = Field(description="in force")
    heard: int = Field(description="the newest that was verified")
    lease_seconds: float = Field(description="until the catalog has to be stamped anew; below 0 it ran out")
    retained: list[int] = Field(description="earlier revisions that requests can be decided by")
    problem: str | None = Field(description="why it can't be followed further")


class PatchList(BaseModel):
    """Everything about the catalog."""

    object: Literal["list"] = "list"
    data: list[PatchCard]
    failures: list[PatchFailure]
    default_patch: str | None = Field(description="what requests get that name nothing")
    is_patch_required: bool = Field(description="whether `none` is refused")
    trust: TrustReport
    fleet: FleetReport | None = Field(description="null where the server follows no catalog")


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(BaseModel):
    """The OpenAI error object."""

    error: ErrorDetail


def patches_router(
    catalog: Catalog, terms_now: Callable[[], Terms], route_class: type[APIRoute] = APIRoute
) -> APIRouter:
    """Make the routes that describe ``catalog``, as far as ``terms_now`` lets the current caller see it."""
    router = APIRouter(prefix="/v1/patches", tags=["policy patches"], route_class=route_class)

    @router.get("", summary="List policy patches")
    async def list_patches() -> PatchList:
        terms = terms_now()
        return PatchList(
            data=_cards((row for row in catalog.rows() if terms.sees(row.patch)), catalog.trust),
            failures=[_failure(failure) for failure in catalog.failures() if _may_know(terms, failure)],
            default_patch=", ".join(map(str, terms.default)) if isinstance(terms.default, tuple) else None,
            is_patch_required=terms.is_patch_required,
            trust=_trust(catalog.trust, terms),
            fleet=_fleet(catalog, terms),
        )

    @router.get("/{name}/{version}", summary="Describe a version", responses={404: {"model": ErrorBody}})
    async def describe_version(name: str, version: str) -> PatchVersion:
        terms = terms_now()
        rows = (row for row in catalog.rows(name) if terms.sees(row.patch))
        for card in _cards(rows, catalog.trust):
            for found in card.versions:
                if version == found.version:
                    return found
        raise PatchNotFound(
            f"'{name[:64]}@{version[:80]}' is not loaded; GET /v1/patches/{name[:64]} lists what is",
            param="version",
        )

    @router.get("/{name}", summary="Describe a policy patch", responses={404: {"model": ErrorBody}})
    async def describe_patch(name: str) -> PatchCard:
        terms = terms_now()
        rows = (row for row in catalog.rows(name) if terms.sees(row.patch))
        cards = _cards(rows, catalog.trust)
        if not cards:
            raise PatchNotFound(f"no patch '{name[:64]}' is loaded; GET /v1/patches lists all", param="name")
        return cards[0]

    return router


def card_of(catalog: Catalog, name: str) -> PatchCard:
    """Describe all versions of a patch that is on the workers."""
    (card,) = _cards((row for row in catalog.rows() if row.patch.name == name), catalog.trust)
    return card


def _may_know(terms: Terms, failure: FileFailure) -> bool:
    # What could not be read has no name that a rule could be asked about.
    return terms.is_unrestricted or (failure.name is not None and terms.sees_name(failure.name))


def _trust(trust: Trust, terms: Terms) -> TrustReport:
    bounds = trust.minimum_versions
    return TrustReport(
        is_signature_required=trust.is_signature_required,
        signers=trust.signers,
        num_revoked=trust.num_revoked,
        minimum_versions={name: bounds[name] for name in sorted(bounds) if terms.sees_name(name)},
        problems=list(trust.problems) if terms.is_unrestricted else [],
    )


def _fleet(catalog: Catalog, terms: Terms) -> FleetReport | None:
    fleet = catalog.view.fleet
    if fleet is None:
        return None
    return FleetReport(
        revision=fleet.number,
        heard=fleet.heard,
        lease_seconds=round(fleet.lease_ends_s - time.monotonic(), 1),
        retained=sorted(fleet.retained),
        problem=catalog.fleet_problem if terms.is_unrestricted else None,
    )


def _cards(rows: Iterable[ResidentRow], trust: Trust) -> list[PatchCard]:
    by_name: dict[str, list[ResidentRow]] = defaultdict(list)
    for row in rows:
        by_name[row.patch.name].append(row)
    return [_card(name, by_name[name], trust) for name in sorted(by_name)]


def _card(name: str, rows: list[ResidentRow], trust: Trust) -> PatchCard:
    # Served content before draining content of the same version.
    rows.sort(key=_rank, reverse=True)
    active = next((row.patch.version for row in rows if row.is_active), None)
    return PatchCard(name=name, active_version=active, versions=[_version(row, trust) for row in rows])


def _rank(row: ResidentRow) -> tuple[VersionKey, bool, bool]:
    return version_key(row.patch.version), not row.is_draining, not row.is_previous


def _version(row: ResidentRow, trust: Trust) -> PatchVersion:
    patch = row.patch
    signature = trust.signature_of(patch.digest)
    return PatchVersion(
        version=patch.version,
        digest=patch.digest,
        state=_state(row),
        kind=patch.kind,
        num_virtual_tokens=patch.num_tokens,
        nbytes=patch.nbytes,
        tier="memory" if row.is_in_memory else "disk",
        in_flight=row.num_in_flight,
        origin_method=str(patch.manifest.origin.get("method", "unknown")),
        license=patch.manifest.license,
        changelog=patch.manifest.changelog,
        signer=signature.key.signer if signature is not None else None,
    )


def _state(row: ResidentRow) -> Literal["active", "loaded", "previous", "draining", "mismatched"]:
    if row.is_active:
        return "active"
    if row.is_previous:
        return "previous"
    if row.is_mismatched and not row.is_draining:
        return "mismatched"
    return "draining" if row.is_draining else "loaded"


def _failure(failure: FileFailure) -> PatchFailure:
    return PatchFailure(
        file=failure.file,
        reason=failure.reason,
        code=failure.code,
        message=failure.message,
        since=datetime.fromtimestamp(failure.since_s, UTC),
        name=failure.name,
        version=failure.version,
    )
