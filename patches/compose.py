"""Several patches as one: their embeddings one after the other, K/V computed anew.

The order matters, since each part reads the ones before it. The K/V of the parts can't be reused: a later
part sits at other positions and attends to what precedes it. The manifest records the parts, so a server
finds the prepared composition for a request that names the same patches in the same order.
"""

from collections.abc import Sequence

import torch

from patches.compile import compile_patch
from patches.errors import BaseModelMismatch, ComposeError, InvalidName
from patches.fingerprint import require_fits
from patches.format import Patch
from patches.kinds.prefix import MAX_NUM_VIRTUAL_TOKENS
from patches.label import Label
from patches.manifest import require_kind
from patches.model import LoadedModel
from patches.names import validate_name


def compose_patches(model: LoadedModel, patches: Sequence[Patch], label: Label) -> Patch:
    """Join patches in order into one.

    Args:
        model: The base model of all of them.
        patches: At least two, each with embeddings.
        label: Name, version and notes of the composition; ``composed_name`` gives the usual name.

    Raises:
        ComposeError: Too few patches, one without embeddings, or too many tokens in all.
        BaseModelMismatch: A patch belongs to another model.
        CompileError: The model has fewer positions than the composition has tokens.
        KindMismatch: One is a steering patch, which acts beside any prefix as it is.
    """
    if len(patches) < 2:
        raise ComposeError(f"patches: expected at least two to compose, got {len(patches)}")
    for patch in patches:
        require_kind(patch.manifest, "prefix", "a request can name it beside any composition")
    rows = [_embeddings_of(patch) for patch in patches]
    num_tokens = sum(len(part) for part in rows)
    if num_tokens > MAX_NUM_VIRTUAL_TOKENS:
        raise ComposeError(
            f"patches: expected at most {MAX_NUM_VIRTUAL_TOKENS} virtual tokens in all, got {num_tokens}"
        )
    for patch in patches:
        require_composable(patch, model)
    # Of mixed dtypes the wider one holds both exactly.
    dtype = rows[0].dtype if len({part.dtype for part in rows}) == 1 else torch.float32
    components = [
        {"name": p.manifest.name, "version": p.manifest.version, "digest": p.digest} for p in patches
    ]
    embeddings = torch.cat([part.to(dtype) for part in rows])
    return compile_patch(model, embeddings, label, {"method": "compose", "components": components})


def require_composable(patch: Patch, model: LoadedModel) -> None:
    """Check that a patch belongs to the model.

    Raises:
        BaseModelMismatch: It does not; each difference names the patch.
    """
    try:
        require_fits(model.base_model, patch.manifest.base_model)
    except BaseModelMismatch as error:
        raise BaseModelMismatch([f"{patch.manifest.name}: {text}" for text in error.differences]) from None


def composed_name(names: Sequence[str]) -> str:
    """Return the usual name of a composition: the names of its parts, joined by dots, in order.

    Raises:
        ComposeError: The result is too long for a policy name.
    """
    try:
        return validate_name(".".join(names))
    except InvalidName as error:
        raise ComposeError(
            f"the parts' names give no name for the composition; choose one: {error}"
        ) from None


def _embeddings_of(patch: Patch) -> torch.Tensor:
    if patch.embeddings is None:
        raise ComposeError(
            f"{patch.manifest.name}@{patch.manifest.version}: has no embeddings, so its K/V can't be "
            "computed behind another patch; patches from text or PEFT prompt tuning have them"
        )
    return patch.embeddings
