"""What a file must pass before the workers see anything of it."""

import asyncio
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

from patches.format import Patch
from patches.signing.signature import Signature
from server.catalog.read_ahead import ReadAhead
from server.catalog.refusals import ServedModel, refusal_of, require_servable
from server.trust.trust import Trust


class Intake:
    """Examines files for one server."""

    def __init__(
        self, model: ServedModel, trust: Trust, weights_digests: Callable[[], Collection[str]] = tuple
    ) -> None:
        self.model = model
        #: Of the model under each weight patch that may be in force.
        self._weights_digests = weights_digests
        #: Which files are accepted.
        self.trust = trust
        #: Reads them.
        self.files = ReadAhead()

    async def examine(self, path: Path) -> Patch:
        """Return what a file holds, if it could be served.

        Raises:
            FileRefused: It could not.
        """
        try:
            patch = await self.read(path)
            await self.admit(path, patch)
        except Exception as error:
            # Whatever an untrusted file does to the reader, it is the file that is refused.
            raise refusal_of(path, error) from error
        return patch

    async def read(self, path: Path) -> Patch:
        """Read a file, which is a valid patch then; whether it may be served is for ``admit`` to say."""
        return await self.files.read(path)

    async def admit(self, path: Path, patch: Patch, *, is_ordered: bool = False) -> Signature | None:
        """Decide whether ``patch``, read from ``path``, may be served here.

        Args:
            path: Its signature lies beside it.
            patch: What it holds.
            is_ordered: An operator's order needs it, so it may be a downgrade.

        Raises:
            BaseModelMismatch: It was made for another base model.
            FileRefused: It may not.
        """
        model, digest = self.model, patch.manifest.base_model.weights_digest
        if digest in self._weights_digests():
            # It serves while that weight patch is in force.
            model = replace(model, base_model=replace(model.base_model, weights_digest=digest))
        require_servable(patch, model)
        if not self.trust.is_signature_required:
            # Nothing is read from disk.
            return self.trust.check(path, patch, is_ordered=is_ordered)
        return await asyncio.to_thread(self.trust.check, path, patch, is_ordered=is_ordered)
