"""The patch file, format versions 1 and 2.

This docstring is the specification. MUST, MUST NOT and MAY mean what RFC 2119 says. A reader refuses a file
that breaks a MUST, with an error that names what is wrong; it repairs nothing.

**Container.** One file holds one version of one patch. It MUST be a valid safetensors file: an unsigned
64-bit little-endian header length, the header as JSON (which a writer MAY pad with spaces), the tensors'
bytes. The tensors MUST cover the rest of the file with no overlap, no gap and nothing behind. In the header
no key may occur twice, and an entry MUST NOT have keys besides ``dtype``, ``shape`` and ``data_offsets``.
Tensors MAY come in any order. Nothing in a file is ever executed.

**File name.** A writer names the file ``NAME-VERSION.safetensors``. A reader MUST ignore the name: what a
patch is called stands in its manifest.

**Limits.** The file MUST NOT exceed 1 GiB, and 16 MiB where its kind is ``steering``; its header MUST NOT
exceed 1 MiB, the manifest 256 KiB, and N, the number of virtual tokens, 4096.

**Metadata.** ``__metadata__`` MUST have exactly two keys:

- ``policypatch``: the manifest, as canonical JSON text (``patches.canonical``). A text that is not
  canonical MUST be refused.
- ``policypatch.digest``: the digest of the patch, ``sha256:`` and 64 hexadecimal digits. It MUST equal the
  digest computed over manifest and tensors as ``patches.digest`` says.

**Manifest.** A JSON object; an unknown key MUST be refused, an optional key is left out rather than null::

    {
      "format_version": 1,
      "kind": "prefix",
      "name": "pirate",
      "version": "1.0.0",
      "base_model": {
        "architecture": "LlamaForCausalLM",
        "num_layers": 30, "num_kv_heads": 3, "head_size": 64, "hidden_size": 576,
        "rope": {"rope_theta": 100000, "rope_type": "default"},
        "dtype": "bfloat16",
        "tokenizer_digest": "sha256:…", "weights_digest": "sha256:…"
      },
      "num_virtual_tokens": 48,
      "origin": {"method": "text", "rendering": "chat-template", "text_digest": "sha256:…", "…": "…"},
      "evaluation": {"…": "…"},
      "license": "Apache-2.0",
      "changelog": "Speaks more plainly.",
      "supersedes": "0.9.0"
    }

- ``format_version`` MUST be 1 where ``kind`` is ``prefix``, and 2 where it is ``steering`` or ``delta``; a
  reader MUST refuse a version that it does not know before it looks at the rest. There is no other kind.
- ``num_virtual_tokens`` is there for the kind ``prefix`` only, ``steering`` and ``condition`` for the kind
  ``steering`` only, ``delta`` for the kind ``delta`` only; see below.
- ``name`` and ``version`` follow ``patches.names``: at most 64 of ``a-z0-9._-``, and a semantic version.
- ``base_model`` is the fingerprint that ``patches.fingerprint`` defines. A patch MUST NOT be used with a
  model whose fingerprint differs in any part.
- ``origin`` says how the patch was made. Its ``method`` MUST be ``text``, ``peft``, ``compose`` or
  ``trained`` for a prefix, ``icv``, ``trained`` or ``import`` for a steering patch, and ``hdr``, ``set``,
  ``trained`` or ``import`` for a delta; further keys are free, except that ``compose`` MUST have
  ``components``, the list in order of at least two objects of exactly ``name``, ``version`` and ``digest``.
  It holds no time and no path: equal input gives an equal digest.
- ``evaluation`` (optional) is a free object. ``license`` and ``changelog`` (optional) are single lines of
  at most 1000 printable characters. ``supersedes`` (optional) is a version or a digest.

**Tensors of a prefix.** At least one of the two MUST be there, and no other. All values MUST be finite.

- ``embeddings``: ``[N, hidden_size]``, in the base model's dtype or in float32: the rows that take the
  place of the first N token embeddings.
- ``kv``: ``[num_layers, 2, N, num_kv_heads, head_size]``, in the base model's dtype. Along the second axis
  keys come first, then values. Keys are stored after rotation (RoPE) at positions 0 … N-1. Where
  ``embeddings`` are there too, ``kv`` is what the model computes from them, cast to its dtype, at those
  positions. A server needs ``kv``; a patch without it MAY be completed by recomputing.

**Steering.** In place of ``num_virtual_tokens`` the manifest of a steering patch has::

    "steering": {
      "site": "residual", "scale": "relative", "strength": 0.1,
      "opposed_gain": 0, "renormalise": true, "tokens": "answer"
    },
    "condition": {
      "probes": [{"layers": [9, 12, 15, 18], "pool": "mean", "bias": -4.5, "threshold": 0.25}],
      "combine": "any", "shadow": false
    }

- Layers count from 0. ``site`` MUST be ``residual``, the output of a decoder layer, or ``mlp``, the output of
  its MLP. ``patches.kinds.steering`` has the arithmetic: ``strength`` is its ``a`` where ``scale`` is
  ``absolute`` and its ``r`` where it is ``relative``, ``opposed_gain`` its g.
- ``strength`` MUST be more than 0, and at most 1 where the scale is relative; ``opposed_gain`` MUST be from 0
  to 100. ``renormalise`` is true or false.
- ``tokens`` MUST be ``all``, all tokens of prompt and answer, or ``answer``, the last token of the prompt and
  all that follow. Tokens of a prefix in front are never steered.
- ``condition`` (optional) needs ``answer``. It MUST have 1 to 4 ``probes``. ``layers`` is a rising list of 1
  to 64 layers. A token's score is the sum over ``layers`` of the dot product of the probe's row and the
  layer's output; a request's is ``bias`` and the mean over the tokens of the prompt (``pool``: ``mean``), or
  over the last ``num_tokens`` of them (``last``), all where there are fewer. ``num_tokens`` is 2 to 4096, and
  MUST be left out for ``mean``, and for the last token alone. A probe is met where that exceeds
  ``threshold``; ``combine`` is ``any`` or ``all``. Where the condition is not met, or ``shadow`` is true,
  nothing is steered.

**Tensors of a steering patch.** ``vector`` MUST be there, ``probes`` where there is a condition, and no
other. All values MUST be finite.

- ``vector``: float32 ``[num_layers, hidden_size]``; a layer with a row of zeros is left as it is. One row at
  least MUST NOT be zero. Where the scale is relative no row MUST be longer than 1, but for rounding; where
  it is absolute, ``strength`` times the longest row times 1 + ``opposed_gain`` MUST NOT exceed 10000, and
  where it is relative and not renormalised, 0.5. With a condition the rows up to the last layer that it
  reads MUST be zero.
- ``probes``: float32 ``[rows, hidden_size]``, a row for each layer of each probe, in their order, none longer
  than a million.

**Delta.** In place of ``num_virtual_tokens`` the manifest of a delta, new values for weights, has::

    "delta": {
      "tensors": [{"name": "model.layers.0.mlp.up_proj.weight", "shape": [1536, 576], "num_changed": 8847}]
    }

- ``tensors`` MUST list 1 to 2048 tensors of the base model's checkpoint, each once, by name in rising order.
  A name MUST end with ``.weight``. ``shape`` MUST be the tensor's in the checkpoint, two sizes with a product
  S below 2^31. ``num_changed`` MUST be at least 1 and at most a quarter of S.
- A tensor is *masked* where 32 times its ``num_changed`` is more than S. Its positions, places in the
  flattened tensor (row-major), then lie in ``mask``, else in ``indices``.

**Tensors of a delta.** ``values`` MUST be there, ``mask`` where a tensor is masked, ``indices`` where one is
not, and no other. Each holds the parts of the tensors one after the other, in the order of the manifest.

- ``values``: 1-D, in the base model's dtype, finite: what the weights *become*, ``num_changed`` of each.
- ``indices``: 1-D int32: positions from 0 to S - 1, which MUST rise strictly within a tensor.
- ``mask``: 1-D uint8, S / 8 bytes for each tensor, rounded up: the lowest bit of a byte belongs to the first
  of its 8 weights. Exactly ``num_changed`` bits MUST be set, none of them behind the last weight.

Law: ``decode_patch(encode_patch(m, t))`` gives back ``m`` and ``t``, and encoding is deterministic.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from patches.container import Container, read_container, write_header
from patches.content import DTYPE_WORDS, PatchContent, StoredTensor
from patches.digest import patch_digest
from patches.durable import write_bytes_atomically
from patches.errors import PatchExists, PatchFormatError
from patches.manifest import Manifest, encode_manifest, read_manifest_text
from patches.names import is_digest
from patches.reading import FileTooLarge, read_regular_file
from patches.tensor_checks import layout_problems, value_problems

if TYPE_CHECKING:
    import torch

MANIFEST_KEY = "policypatch"
DIGEST_KEY = "policypatch.digest"
SUFFIX = ".safetensors"
MAX_FILE_BYTES = 1024**3

_SAFETENSORS_DTYPES = {word: dtype for dtype, word in DTYPE_WORDS.items()}


@dataclass(frozen=True, eq=False)
class Patch:
    """One version of one patch. Equal content has an equal ``digest``."""

    manifest: Manifest
    #: ``sha256:`` and 64 hexadecimal digits.
    digest: str
    #: By name, as the specification lists them; CPU, contiguous.
    tensors: Mapping[str, "torch.Tensor"]

    @property
    def embeddings(self) -> "torch.Tensor | None":
        """``[N, hidden_size]``, base-model dtype or float32."""
        return self.tensors.get("embeddings")

    @property
    def kv(self) -> "torch.Tensor | None":
        """``[L, 2, N, H_kv, D]``, base-model dtype; keys after RoPE at positions 0 … N-1."""
        return self.tensors.get("kv")

    @property
    def filename(self) -> str:
        """The name that a writer gives the file."""
        return f"{self.manifest.name}-{self.manifest.version}{SUFFIX}"

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


#: The tensors of a patch by name; None for one that it does not have.
Tensors: TypeAlias = Mapping[str, "torch.Tensor | None"]


def make_patch(manifest: Manifest, tensors: Tensors) -> Patch:
    """Put a patch together from its parts and compute its digest.

    Raises:
        PatchFormatError: The parts do not make a valid patch.
    """
    text, stored = _checked_parts(manifest, tensors)
    return Patch(manifest, _digest_of(text, _of_file(stored)), stored)


def encode_patch(manifest: Manifest, tensors: Tensors) -> bytes:
    """Write a patch as the bytes of its file; equal parts give equal bytes.

    Raises:
        PatchFormatError: The parts do not make a valid patch.
    """
    text, stored = _checked_parts(manifest, tensors)
    header = write_header(
        {MANIFEST_KEY: text, DIGEST_KEY: _digest_of(text, _of_file(stored))},
        [(name, tensor.dtype, tensor.shape) for name, tensor in _of_file(stored).items()],
    )
    size = len(header) + sum(tensor.nbytes for tensor in stored.values())
    if problem := _size_problem(size, manifest.body.max_file_bytes):
        raise problem
    return b"".join([header, *(_bytes_of(tensor) for tensor in stored.values())])


def decode_patch(data: bytes) -> Patch:
    """Read a patch from the bytes of its file.

    Raises:
        PatchFormatError: The bytes break the specification; ``find_problems`` lists every way in which they
        do.
    """
    patch, problems = find_problems(data)
    if patch is None:
        raise problems[0]
    return patch


def find_problems(data: bytes) -> tuple[Patch | None, list[PatchFormatError]]:
    """Read a patch and collect everything that is wrong with the file.

    Returns:
        The patch and no problems, or ``None`` and at least one problem.
    """
    content, problems = find_content(data)
    if content is None:
        return None, problems
    tensors = {name: _tensor_of(stored) for name, stored in content.tensors.items()}
    return Patch(content.manifest, content.digest, tensors), []


def find_content(data: bytes) -> tuple[PatchContent | None, list[PatchFormatError]]:
    """Check a file as ``find_problems`` does, without making tensors of it.

    Returns:
        What it holds and no problems, or ``None`` and at least one problem.
    """
    try:
        if problem := _size_problem(len(data), MAX_FILE_BYTES):
            raise problem
        container = read_container(data)
        text = _manifest_text(container)
    except PatchFormatError as error:
        return None, [error]
    view = memoryview(data)
    stored = {entry.name: StoredTensor.of(entry, view) for entry in container.entries}
    manifest, problems = read_manifest_text(text)
    if manifest is not None and (problem := _size_problem(len(data), manifest.body.max_file_bytes)):
        problems.append(problem)
    if manifest is not None:
        problems += layout_problems(manifest, stored)
    named, actual = container.metadata[DIGEST_KEY], _digest_of(text, stored)
    if named != actual:
        message = f"digest: expected {named}, which the file names, got {actual}; the file was altered"
        problems.append(PatchFormatError("digest_mismatch", message))
    if manifest is None or problems:
        return None, problems
    if problems := value_problems(manifest, stored):
        return None, problems
    return PatchContent(manifest, actual, stored), []


def read_patch(path: str | os.PathLike[str]) -> Patch:
    """Read a patch file.

    Raises:
        PatchFormatError: The file can't be read, is not a regular file, is too large, or breaks the
        specification.
    """
    return decode_patch(read_patch_bytes(path))


def read_patch_bytes(path: str | os.PathLike[str]) -> bytes:
    """Read the bytes of a patch file, never more than the format allows.

    Raises:
        PatchFormatError: With reason ``unreadable`` or ``too_large``.
    """
    try:
        return read_regular_file(path, MAX_FILE_BYTES)
    except FileTooLarge as error:
        raise PatchFormatError("too_large", f"file: {error}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise PatchFormatError("unreadable", f"{os.fspath(path)}: {reason}") from None


def write_patch(patch: Patch, directory: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Write a patch into a folder as ``NAME-VERSION.safetensors``.

    The file appears whole or not at all, under a hidden name until it is on disk. Writing what is already
    there changes nothing.

    Args:
        patch: What to write.
        directory: The folder; it is made where it does not exist.
        overwrite: Replace a file of the same name with different content.

    Raises:
        PatchExists: The name is taken by different content and ``overwrite`` is false.
        PatchFormatError: The parts do not make a valid patch.
        OSError: The folder can't be written.
    """
    path = Path(directory) / patch.filename
    write_patch_file(encode_patch(patch.manifest, patch.tensors), path, overwrite=overwrite)
    return path


def write_patch_file(data: bytes, path: Path, *, overwrite: bool = False) -> None:
    """Write the bytes of a patch file, or of its signature, as ``write_patch`` does.

    Raises:
        PatchExists: The name is taken by different content and ``overwrite`` is false.
        OSError: The folder can't be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not overwrite:
        if path.stat().st_size == len(data) and path.read_bytes() == data:
            return
        raise PatchExists(
            f"{path} exists with different content; raise the version, or overwrite it on purpose"
        )
    # Readable by all: a server may run as another user.
    write_bytes_atomically(path, data)


def is_patch_filename(name: str) -> bool:
    """Return whether a file of this name may be a patch: ``*.safetensors`` and not hidden."""
    return name.endswith(SUFFIX) and not name.startswith(".") and "/" not in name


def _manifest_text(container: Container) -> str:
    if set(container.metadata) != {MANIFEST_KEY, DIGEST_KEY}:
        keys = ", ".join(sorted(ascii(key)[:40] for key in container.metadata)[:8]) or "none"
        message = f"header.__metadata__: expected the keys {MANIFEST_KEY} and {DIGEST_KEY}, got {keys}"
        raise PatchFormatError("bad_header", f"{message}; this is not a patch file")
    if not is_digest(container.metadata[DIGEST_KEY]):
        message = f"header.__metadata__[{DIGEST_KEY!r}]: expected sha256: and 64 hexadecimal digits"
        raise PatchFormatError("bad_header", message)
    return container.metadata[MANIFEST_KEY]


def _size_problem(size: int, limit: int) -> PatchFormatError | None:
    if size <= limit:
        return None
    return PatchFormatError("too_large", f"file: expected at most {limit} bytes, got {size}")


def _checked_parts(manifest: Manifest, tensors: Tensors) -> "tuple[str, dict[str, torch.Tensor]]":
    text = encode_manifest(manifest)
    stored = {n: t.detach().to("cpu").contiguous() for n, t in tensors.items() if t is not None}
    parts = _of_file(stored)
    if problems := layout_problems(manifest, parts) or value_problems(manifest, parts):
        raise problems[0]
    return text, stored


def _of_file(tensors: "Mapping[str, torch.Tensor]") -> dict[str, StoredTensor]:
    parts = {}
    for name, tensor in tensors.items():
        word = str(tensor.dtype).removeprefix("torch.")
        # One that no file has is named as it is: its layout is refused before anything looks at its values.
        dtype = _SAFETENSORS_DTYPES.get(word, word)
        parts[name] = StoredTensor(dtype, tuple(tensor.shape), _bytes_of(tensor))
    return parts


def _digest_of(text: str, tensors: Mapping[str, StoredTensor]) -> str:
    return patch_digest(text, [(name, t.dtype, t.shape, t.data) for name, t in tensors.items()])


def _bytes_of(tensor: "torch.Tensor") -> memoryview:
    import torch

    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _tensor_of(stored: StoredTensor) -> "torch.Tensor":
    import torch

    # A copy that owns its memory: the bytes of a file are read-only, a tensor must not be.
    tensor = torch.empty(math.prod(stored.shape), dtype=getattr(torch, DTYPE_WORDS[stored.dtype]))
    _bytes_of(tensor)[:] = stored.data
    return tensor.reshape(stored.shape)
