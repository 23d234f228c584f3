"""What the leader tells followers, as JSON: contents, what names mean, and the policy.

Laws: ``content_of(content_body(patch, signer)) == (patch, signer)``; a view that is built of all name bodies
of another view serves the same.
"""

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pydantic import TypeAdapter

from patches.manifest import decode_manifest, encode_manifest
from server.frontends.channel import Body
from server.versions.activation import Canary
from server.versions.revision import FleetRevision
from server.versions.view import CanaryArm, CatalogView, ServedPatch

_CANARIES = TypeAdapter(Canary)
_FLEETS = TypeAdapter(FleetRevision)


def content_body(patch: ServedPatch, signer: str | None) -> Body:
    """Describe a content, its manifest whole."""
    return {
        "digest": patch.digest,
        "nbytes": patch.nbytes,
        "manifest": encode_manifest(patch.manifest),
        "signer": signer,
    }


def content_of(body: Body) -> tuple[ServedPatch, str | None]:
    """Read a content, and who signed it.

    Raises:
        PatchFormatError: The manifest can't be read.
    """
    manifest = decode_manifest(body["manifest"])
    return ServedPatch.of(manifest, body["digest"], body["nbytes"]), body["signer"]


def name_body(view: CatalogView, name: str) -> Body | None:
    """Describe what ``name`` means in ``view``, by digests; ``None`` where it means nothing."""
    named = view.names.get(name)
    if named is None:
        return None
    arm = view.canaries.get(name)
    return {
        "versions": [patch.digest for patch in named.versions],
        "active": named.active.digest if named.active is not None else None,
        "canary": (
            {"digest": arm.patch.digest, "rules": _CANARIES.dump_python(arm.canary, mode="json")}
            if arm is not None
            else None
        ),
    }


def with_name_body(
    view: CatalogView, name: str, body: Body | None, find: Callable[[str], ServedPatch]
) -> CatalogView:
    """Return the view in which ``name`` means what ``body`` says; ``find`` returns contents by digest.

    Raises:
        LookupError: ``find`` does not know one.
    """
    if body is None:
        return view.with_name(name, (), None)
    active: Any = body["active"]
    canary: Any = body["canary"]
    return view.with_name(
        name,
        [find(digest) for digest in body["versions"]],
        find(active) if active is not None else None,
        CanaryArm(find(canary["digest"]), _CANARIES.validate_python(canary["rules"])) if canary else None,
    )


def weights_body(view: CatalogView) -> Body:
    """Describe which weights are in force, and what that means for names."""
    return {
        "in_force": view.weights.digest if view.weights is not None else None,
        "names": sorted(view.weight_names),
        "mismatched": sorted(view.mismatched),
        "kept": sorted(view.kept),
    }


def with_weights_body(view: CatalogView, body: Body, find: Callable[[str], ServedPatch]) -> CatalogView:
    """Return the view under the weights that ``body`` says; ``find`` returns contents by digest."""
    digest: Any = body["in_force"]
    return replace(
        view,
        weights=find(digest) if digest is not None else None,
        weight_names=frozenset(body["names"]),
        mismatched=frozenset((name, version) for name, version in body["mismatched"]),
        kept=frozenset(body["kept"]),
    )


def fleet_body(view: CatalogView) -> Any:
    """Describe where the server stands in its fleet's catalog; ``None`` where it follows none."""
    return _FLEETS.dump_python(view.fleet, mode="json") if view.fleet is not None else None


def with_fleet_body(view: CatalogView, body: Any) -> CatalogView:
    """Return the view in which the server stands where ``body`` says."""
    return replace(view, fleet=_FLEETS.validate_json(json.dumps(body)) if body is not None else None)


def bytes_text(data: bytes) -> str:
    """Write bytes as text."""
    return base64.b64encode(data).decode("ascii")


def text_bytes(text: str) -> bytes:
    """Read what ``bytes_text`` wrote."""
    return base64.b64decode(text, validate=True)
