"""Scores of weights in a folder: one safetensors file for each decoder layer, and ``scores.json``.

A tensor has its name in the checkpoint and a float32 for each weight, its score: ``sigma |dS/dtheta|``, with
sigma the standard deviation of that tensor. ``scores.json`` says of which model they are, of which S and
prompts, and the SHA-256 of each file; its own SHA-256 is the scores' digest. It is written last, so that a
folder without it is no scores.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from patches.base_model import BaseModel, read_base_model
from patches.canonical import JsonValue, parse_json
from patches.checkpoint import StoredTensor, read_checkpoint
from patches.critical.gradient import Tell
from patches.deltas.linear import layer_of
from patches.durable import write_json_atomically
from patches.errors import BaseModelMismatch, ModelUnusable, PatchExists, ScoresError
from patches.fields import FieldReader
from patches.fingerprint import require_same_base_model

MANIFEST = "scores.json"
FORMAT, VERSION = "policypatch-scores", 1


@dataclass(frozen=True)
class Scores:
    """The scores of one model's weights, on disk."""

    folder: Path
    base_model: BaseModel
    #: SHA-256 of the manifest, and thereby of all files.
    digest: str
    #: What S was, of which prompts.
    origin: Mapping[str, JsonValue]
    #: By name, rising.
    tensors: Mapping[str, StoredTensor]

    @property
    def num_weights(self) -> int:
        """How many weights have a score."""
        return sum(tensor.size for tensor in self.tensors.values())


@torch.no_grad()
def write_scores(
    folder: Path,
    base_model: BaseModel,
    gradient: dict[str, torch.Tensor],
    weights: Mapping[str, torch.Tensor],
    origin: Mapping[str, JsonValue],
    *,
    overwrite: bool = False,
    tell: Tell = lambda done, total: None,
) -> Scores:
    """Write the scores that a gradient gives.

    Args:
        folder: Where they go; it is made if it does not exist.
        base_model: The model's fingerprint.
        gradient: By name; it is used up, so that no more than one layer of scores is held beside it.
        weights: The model's, by the same names.
        origin: What S was.
        overwrite: Replace other scores that are there.
        tell: Told how many layers are done.

    Raises:
        PatchExists: The folder holds scores.
        ScoresError: All scores are zero.
        OSError: The folder can't be written.
    """
    from safetensors.torch import save_file

    if (folder / MANIFEST).exists() and not overwrite:
        raise PatchExists(f"{folder}: holds scores already")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    for old in folder.glob("layer-*.safetensors"):
        old.unlink()
    layers = sorted({layer_of(name) for name in gradient})
    files: dict[str, JsonValue] = {}
    is_any = False
    for done, layer in enumerate(layers, start=1):
        names = [name for name in sorted(gradient) if layer_of(name) == layer]
        scored = {name: _score(gradient.pop(name), weights[name]) for name in names}
        is_any = is_any or any(bool(tensor.any()) for tensor in scored.values())
        path = folder / f"layer-{layer:03}.safetensors"
        save_file(scored, path)
        files[path.name] = _digest_of(path)
        tell(done, len(layers))
    if not is_any:
        raise ScoresError("scorer: expected a score that depends on the weights, got a gradient of zeros")
    model: dict[str, Any] = {**asdict(base_model), "rope": dict(base_model.rope)}
    document = {"format": FORMAT, "version": VERSION, "base_model": model, "origin": dict(origin)}
    write_json_atomically(folder / MANIFEST, {**document, "files": files})
    return read_scores(folder)


def read_scores(folder: Path) -> Scores:
    """Read and check the scores in a folder; tensors are read when they are needed.

    Raises:
        ScoresError: It holds none, or a file is damaged.
    """
    path = folder / MANIFEST
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ScoresError(
            f"{folder}: expected scores, with {MANIFEST}: {error.strerror or error}; make them with "
            "`policypatch esi`"
        ) from None
    base_model, files, origin = _decoded(path, data)
    for name, digest in files.items():
        try:
            found = _digest_of(folder / name)
        except OSError as error:
            raise ScoresError(f"{folder / name}: can't be read: {error.strerror or error}") from None
        if found != digest:
            raise ScoresError(f"{folder / name}: expected {digest}, got {found}; make the scores anew")
    try:
        tensors = {
            name: tensor
            for name, tensor in sorted(read_checkpoint(folder).items())
            if tensor.path.name in files
        }
    except ModelUnusable as error:
        raise ScoresError(f"{folder}: {error}") from None
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    return Scores(folder, base_model, digest, origin, tensors)


def require_scores_of(scores: Scores, base_model: BaseModel) -> None:
    """Check that scores are those of a model, whatever dtype either is in.

    Raises:
        ScoresError: They are another model's.
    """
    try:
        require_same_base_model(replace(base_model, dtype=scores.base_model.dtype), scores.base_model)
    except BaseModelMismatch as error:
        raise ScoresError(
            f"{scores.folder}: expected scores of this model, got another's: {'; '.join(error.differences)}; "
            "make them with `policypatch esi`"
        ) from None


def _score(gradient: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    score: torch.Tensor = gradient.float().abs_().mul_(weight.float().std(unbiased=False))
    return score.cpu()


def _decoded(path: Path, data: bytes) -> tuple[BaseModel, dict[str, str], Mapping[str, JsonValue]]:
    try:
        document = parse_json(data)
    except ValueError as error:
        raise ScoresError(f"{path}: expected JSON: {error}; make the scores anew") from None
    reader = FieldReader("scores", document)
    if not isinstance(document, Mapping) or document.get("format") != FORMAT:
        raise ScoresError(f"{path}: expected the format {FORMAT}; make the scores with `policypatch esi`")
    if document.get("version") != VERSION:
        raise ScoresError(f"{path}: expected version {VERSION}, got {json.dumps(document.get('version'))}")
    base_model, origin = read_base_model(reader.object("base_model")), reader.object("origin").free()
    files = {str(name): str(digest) for name, digest in reader.object("files").free().items()}
    if wrong := [name for name in files if Path(name).name != name]:
        reader.problem("files", "names of files beside it", sorted(wrong)[0])
    if reader.problems:
        raise ScoresError(f"{path}: {'; '.join(reader.problems)}")
    return base_model, files, origin


def _digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
