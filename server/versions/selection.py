"""From what a request says to the patch that answers it. Pure: no I/O, no clock, no state.

Grammar of a reference, the same in the header and behind the alias's colon::

    selection := "none" | reference *( "," reference )         spaces around commas are ignored
    reference := name [ "@" version | "@sha256:" hex{12,64} ]

Everything else is refused with 400: upper case, unicode, control characters, empty elements, repeated header
lines, more than ``MAX_SELECTION_BYTES``. A gateway that folds or repeats headers must never change which
patch answers.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Literal

from patches.errors import InvalidName
from patches.headers import PATCH_HEADER
from patches.names import validate_name, validate_version
from server.errors import (
    CompositionNotPrepared,
    MalformedPatchName,
    PatchNotFound,
    PatchNotReady,
    UnsupportedWithPatch,
)
from server.versions.composition import JoinedComposition, SelectedPatch, SteeredComposition
from server.versions.view import CatalogView, NamedPatch, ServedPatch

MAX_SELECTION_BYTES = 256

_DIGEST_REFERENCE = re.compile(r"sha256:[0-9a-f]{12,64}")
_FULL_DIGEST_LENGTH = len("sha256:") + 64


@dataclass(frozen=True, slots=True)
class PatchRef:
    """One parsed reference; at most one of ``version`` and ``digest`` is set."""

    name: str
    version: str | None = None
    #: ``sha256:`` and 12 to 64 hexadecimal digits: a unique prefix is enough.
    digest: str | None = None

    def __str__(self) -> str:
        pin = self.version or self.digest
        return self.name if pin is None else f"{self.name}@{pin}"


class OptOut(Enum):
    """The wish for no patch: ``none``."""

    NONE = "none"


#: References in order, or the wish for none.
Wish = tuple[PatchRef, ...] | OptOut

Source = Literal["header", "alias", "default", "none"]


@dataclass(frozen=True, slots=True)
class Selection:
    """The decision for one request. ``patch`` is ``None`` for the base model."""

    patch: SelectedPatch | None
    #: Where the choice came from: ``none`` where nothing was chosen.
    source: Source


#: The decision for every request that neither asked for a patch nor gets one by default.
BASE = Selection(None, "none")


def parse_policy_header(values: Sequence[bytes]) -> Wish | None:
    """Parse all ``X-Policy-Patch`` lines of a request; ``None`` where there is none.

    Raises:
        MalformedPatchName: More than one line, or a value outside the grammar.
    """
    if not values:
        return None
    if len(values) > 1:
        raise MalformedPatchName(
            f"{PATCH_HEADER}: expected one header line, got {len(values)}; "
            "to compose patches, separate them by commas in one line"
        )
    try:
        # Space around a field value is no part of it (RFC 9110, 5.5), but some servers leave it there.
        text = values[0].strip(b" \t").decode("ascii")
    except UnicodeDecodeError:
        raise MalformedPatchName(f"{PATCH_HEADER}: expected ASCII, got other bytes") from None
    return parse_wish(text, PATCH_HEADER)


#: Callers send the same few selections over and over; a mistake is parsed anew each time.
_NUM_PARSED = 1024


@lru_cache(_NUM_PARSED)
def parse_wish(text: str, param: str) -> Wish:
    """Parse a selection; ``param`` names where it came from.

    Raises:
        MalformedPatchName: ``text`` is outside the grammar.
    """
    if len(text) > MAX_SELECTION_BYTES:
        raise MalformedPatchName(
            f"{param}: expected at most {MAX_SELECTION_BYTES} characters, got {len(text)}", param=param
        )
    if text == OptOut.NONE.value:
        return OptOut.NONE
    # Optional space around the members of a list is a space or a tab (RFC 9110, 5.6.1).
    return tuple(_parse_reference(part.strip(" \t"), param) for part in text.split(","))


def _parse_reference(text: str, param: str) -> PatchRef:
    name, at, pin = text.partition("@")
    try:
        validate_name(name)
        if not at:
            return PatchRef(name)
        if pin.startswith("sha256:"):
            if not _DIGEST_REFERENCE.fullmatch(pin):
                raise InvalidName(f"digest: expected sha256: and 12 to 64 of 0-9, a-f, got {pin[:80]!r}")
            return PatchRef(name, digest=pin)
        return PatchRef(name, version=validate_version(pin))
    except InvalidName as error:
        raise MalformedPatchName(f"{param}: {error}", param=param) from None


def resolve_each(refs: Sequence[PatchRef], view: CatalogView, param: str) -> list[ServedPatch]:
    """Find what each of ``refs`` means in ``view``.

    Raises:
        PatchNotFound: One means nothing that is loaded.
        PatchNotReady: One means something that is being loaded for the first time.
        MalformedPatchName: A digest prefix fits several versions.
    """
    return [_resolve_one(ref, view, param) for ref in refs]


def composition_of(patches: Sequence[ServedPatch], view: CatalogView, param: str) -> SelectedPatch:
    """Find the one patch that is ``patches`` in this order; one patch is itself.

    Prefixes are composed; at most one vector acts behind them, wherever it is named. Where nothing is
    prepared and the server may join prefixes, they are joined.

    Raises:
        CompositionNotPrepared: Nothing that is loaded is composed of exactly these prefixes.
        UnsupportedWithPatch: Several vectors are named.
    """
    prefixes = [patch for patch in patches if patch.vector is None]
    vectors = [patch for patch in patches if patch.vector is not None]
    if not vectors:
        return _prefix_of(prefixes, view, param)
    if len(vectors) > 1:
        named = " and ".join(patch.reference for patch in vectors)
        raise UnsupportedWithPatch(
            f"{param}: {named} are steering patches, of which one can act on a request; name one", param=param
        )
    if not prefixes:
        return vectors[0]
    return SteeredComposition.of(_prefix_of(prefixes, view, param), vectors[0])


def _prefix_of(
    patches: Sequence[ServedPatch], view: CatalogView, param: str
) -> ServedPatch | JoinedComposition:
    if len(patches) == 1:
        return patches[0]
    prepared = view.compositions.get(tuple(p.digest for p in patches))
    if prepared is None and view.may_compose:
        return JoinedComposition.of(tuple(patches))
    if prepared is None:
        wanted = ", ".join(p.reference for p in patches)
        raise CompositionNotPrepared(
            f"{param}: no prepared composition of {wanted} in this order is loaded; "
            "make one with `policypatch compose` and put it into the patch folder, "
            "or let the server join patches by itself with --composition joined",
            param=param,
        )
    return prepared


def _resolve_one(ref: PatchRef, view: CatalogView, param: str) -> ServedPatch:
    named = view.names.get(ref.name)
    found: ServedPatch | None = None
    if named is not None:
        if ref.version is not None:
            found = named.by_version.get(ref.version)
        elif ref.digest is not None:
            found = _by_digest(named, ref.digest, param)
        else:
            found = named.active
            if found is None and not view.is_mismatched(ref.name, None):
                raise PatchNotReady(
                    f"{param}: no version of '{ref.name}' is active; name one with @, or ask the operator",
                    param=param,
                )
    if found is not None:
        return found
    coming = view.fleet.coming if view.fleet is not None else ()
    if any(name == ref.name and ref.version in (None, version) for name, version in (*view.loading, *coming)):
        raise PatchNotReady(f"{param}: patch '{ref}' is being loaded; try again", param=param)
    if ref.name in view.weight_names:
        raise UnsupportedWithPatch(
            f"{param}: '{ref.name}' is a weight patch, which is in force for the whole server or not at all; "
            "an operator activates it",
            param=param,
        )
    if view.is_mismatched(ref.name, ref.version):
        weights = f"under {view.weights.reference}" if view.weights else "the model's own"
        raise PatchNotFound(
            f"{param}: patch '{ref}' was made for other weights than those in force ({weights})",
            param=param,
        )
    if named is None:
        raise PatchNotFound(
            f"{param}: no patch '{ref.name}' is loaded; GET /v1/patches lists all", param=param
        )
    raise PatchNotFound(
        f"{param}: patch '{ref}' is not loaded; GET /v1/patches/{ref.name} lists its versions", param=param
    )


def _by_digest(named: NamedPatch, digest: str, param: str) -> ServedPatch | None:
    matches = [p for p in named.versions if p.digest.startswith(digest)]
    if len(matches) > 1:
        raise MalformedPatchName(
            f"{param}: digest '{digest}' fits {len(matches)} versions of '{named.name}'; give more digits",
            param=param,
        )
    return matches[0] if matches else None
