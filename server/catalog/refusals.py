"""Why files are refused, and which of them are refused now."""

import logging
import os
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from patches.base_model import BaseModel
from patches.errors import BaseModelMismatch, PatchFormatError
from patches.fingerprint import require_patch_fits
from patches.format import Patch
from patches.manifest import Manifest
from patches.terminal import one_line
from server.errors import (
    BaseModelConflict,
    FileRefused,
    InvalidPatchFile,
    KindUnsupported,
    PatchConflict,
    PatchTooLarge,
)
from server.memory.residency import ResidencyError
from server.metrics.patches import PatchMetrics
from server.trust.trust import TRUST_REASONS
from server.versions.view import FileFailure, ServedPatch

logger = logging.getLogger(__name__)

#: Why a file that is a valid patch can still be refused, beside ``patches.errors.FORMAT_REASONS``.
CATALOG_REASONS = (
    "base_model_mismatch",
    "kind_unsupported",
    "too_many_tokens",
    "not_compiled",
    "conflict",
    "residency_failed",
    "unload_failed",
    "folder_unreadable",
    "internal",
    *sorted(TRUST_REASONS),
)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What a patch has to fit."""

    base_model: BaseModel
    #: Virtual tokens that the model's context leaves room for.
    max_num_tokens: int
    #: Kind -> why its patches can't act here.
    refused_kinds: Mapping[str, str] = field(default_factory=dict)


class Refusals:
    """Keeps one failure per path, and the metrics in step with it."""

    def __init__(self, metrics: PatchMetrics) -> None:
        self._metrics = metrics
        metrics.files.expect_reasons(CATALOG_REASONS)
        self._failures: dict[Path, FileFailure] = {}

    def all(self) -> list[FileFailure]:
        """List the files that are refused now, and the folder where it can't be read."""
        return list(self._failures.values())

    def get(self, path: Path) -> FileFailure | None:
        """Return why ``path`` is refused, if it is."""
        return self._failures.get(path)

    def conflicts(self) -> list[tuple[Path, FileFailure]]:
        """Return what is refused because a rival has the same name and version."""
        return [(path, failure) for path, failure in self._failures.items() if failure.reason == "conflict"]

    def paths(
        self, reasons: Collection[str], name: str | None = None, version: str | None = None
    ) -> list[Path]:
        """List what is refused for one of ``reasons``, of all patches, of one, or of one version."""
        return [
            path
            for path, failure in self._failures.items()
            if failure.reason in reasons
            and name in (None, failure.name)
            and version in (None, failure.version)
        ]

    def drop(self, path: Path) -> bool:
        """Forget that ``path`` is refused, and return whether it was."""
        if self._failures.pop(path, None) is None:
            return False
        self._count()
        return True

    def add(
        self,
        path: Path,
        refusal: FileRefused,
        manifest: Manifest | None = None,
        *,
        is_preliminary: bool = False,
    ) -> FileFailure:
        """Refuse ``path``; ``manifest`` is what it holds, where that could be read.

        What is preliminary is neither counted nor in the log: another file may make this one right.
        """
        before = self._failures.get(path)
        # Where the files lie is not told over HTTP.
        message = one_line(refusal.message.replace(f"{path.parent}{os.sep}", ""))
        reason = refusal.reason
        is_news = before is None or before.reason != reason
        failure = FileFailure(
            one_line(path.name),
            reason,
            refusal.code,
            message,
            since_s=time.time() if before is None or is_news else before.since_s,
            name=manifest.name if manifest is not None else None,
            version=manifest.version if manifest is not None else None,
        )
        self._failures[path] = failure
        if is_preliminary:
            return failure
        self._metrics.files.load_failed(reason)
        self._count()
        if is_news and reason != "folder_unreadable":
            self._metrics.swaps.file_refused(failure.name)
        if is_news:
            logger.error("%s is refused (%s): %s", failure.file, reason, message)
        return failure

    def _count(self) -> None:
        self._metrics.files.set_refused_files(
            sum(failure.reason != "folder_unreadable" for failure in self._failures.values())
        )


def require_servable(patch: Patch, model: ServedModel) -> None:
    """Raise where a valid patch can't be served here.

    Raises:
        BaseModelMismatch: It was made for another base model.
        FileRefused: Its kind is not served here, it is too long, or it has no K/V.
    """
    manifest = patch.manifest
    require_patch_fits(model.base_model, manifest)
    if problem := model.refused_kinds.get(manifest.kind):
        raise KindUnsupported(f"this server takes no patches of the kind {manifest.kind}: {problem}")
    if manifest.num_virtual_tokens > model.max_num_tokens:
        raise PatchTooLarge(
            f"num_virtual_tokens: expected at most {model.max_num_tokens} (what the context leaves), "
            f"got {manifest.num_virtual_tokens}",
            reason="too_many_tokens",
        )
    if manifest.body.payload[0] not in patch.tensors:
        raise InvalidPatchFile(
            "the file holds embeddings but no K/V; make it with `policypatch compile`", reason="not_compiled"
        )


def refusal_of(path: Path, error: Exception) -> FileRefused:
    """Return the reason why a file could not be loaded, as an error of this server."""
    match error:
        case FileRefused():
            return error
        case PatchFormatError(reason="too_large"):
            return PatchTooLarge(str(error))
        case PatchFormatError():
            return InvalidPatchFile(str(error), reason=error.reason)
        case BaseModelMismatch():
            return BaseModelConflict(str(error))
        case ResidencyError():
            return FileRefused(f"the workers did not take it: {error}", reason="residency_failed")
    logger.error("patch file %s: loading it failed unexpectedly", one_line(path.name), exc_info=error)
    return FileRefused(f"internal error: {type(error).__name__}")


def held_conflict(keeper: ServedPatch) -> PatchConflict:
    """Make the error of a file under whose version an operator made other content active."""
    return PatchConflict(
        f"{keeper.reference} is active with different content by an operator's call; "
        "give this one another version, or let the folder decide again with `patches activate --follow`"
    )
