r"""The digest of a model's weights: sampled, so that it is quick for any size.

Definition. Every tensor of the model's safetensors files, in order of its name, adds a line of canonical
JSON ``{"dtype":D,"name":NAME,"shape":[…]}`` and a sample of its stored bytes: all of them up to 16 KiB,
otherwise four runs of 4 KiB, spread evenly from the first byte to the last. Each part is preceded by its
length in bytes as an unsigned 64-bit little-endian number, after the 16 bytes ``policypatch-wts\0``. The
digest is SHA-256 of that stream. It does not depend on how tensors are spread over files, nor on their
order within a file.

The files are those that ``model.safetensors.index.json`` names, else ``model.safetensors``, else every
``*.safetensors`` file of the folder.

Limits. A change that touches none of the sampled bytes goes unseen: this tells models apart, it does not
protect weights against a forger. The stored bytes count, so the same weights saved in another dtype, or
quantized, are another model. A folder without safetensors weights (``*.bin``, ``*.pth``, ``*.pt``,
``*.gguf``) takes the name, size and 64 evenly spread 4 KiB runs of each such file instead, which then does
depend on the files. A folder without any weights is refused, unless the caller says that they are drawn at
random (``--load-format dummy``): then it has the digest of nothing.
"""

import hashlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from patches.canonical import canonical_json
from patches.checkpoint import read_checkpoint, safetensors_files
from patches.errors import ModelUnusable

_MAGIC = b"policypatch-wts\0"
_LENGTH = struct.Struct("<Q")
_RUN_BYTES = 4096
_RUNS_PER_TENSOR = 4
_RUNS_PER_FILE = 64
#: What a trainer leaves beside a model's weights.
_OF_TRAINING = frozenset(
    {"training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.pt", "scheduler.bin", "scaler.pt"}
)
_OTHER_SUFFIXES = (".bin", ".pth", ".pt", ".gguf")


def weights_digest(folder: Path, *, may_lack_weights: bool = False) -> str:
    """Compute the sampled digest of the weights in a model folder.

    Args:
        folder: The model's.
        may_lack_weights: The model runs with random weights, so that the folder needs none.

    Raises:
        ModelUnusable: There are no weights, or a file of them is missing, damaged, unreadable, or holds a
            tensor that another holds too.
    """
    if not may_lack_weights:
        require_weights(folder)
    state = hashlib.sha256(_MAGIC)
    try:
        for part in _parts(folder):
            state.update(_LENGTH.pack(len(part)))
            state.update(part)
    except OSError as error:
        reason = error.strerror or error
        raise ModelUnusable(f"model: {error.filename or folder} can't be read: {reason}") from None
    return "sha256:" + state.hexdigest()


def require_weights(folder: Path) -> None:
    """Check that a model folder holds weights.

    Raises:
        ModelUnusable: It holds none, as where only the small files of a model were copied.
    """
    try:
        if safetensors_files(folder):
            return
        others = [path for path in folder.iterdir() if path.suffix in _OTHER_SUFFIXES and path.is_file()]
    except OSError as error:
        raise ModelUnusable(f"model: {folder} can't be read: {error.strerror or error}") from None
    if {path.name for path in others} <= _OF_TRAINING:
        raise ModelUnusable(
            f"model: {folder} has no weights; expected *.safetensors files beside config.json, so copy or "
            "download the model whole"
        )


def _parts(folder: Path) -> Iterator[bytes]:
    files = safetensors_files(folder)
    if not files:
        yield from _parts_of_other_files(folder)
        return
    tensors = read_checkpoint(folder)
    descriptors: dict[Path, int] = {}
    try:
        for path in files:
            descriptors[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        for name, tensor in sorted(tensors.items()):
            line = {"name": name, "dtype": tensor.dtype, "shape": list(tensor.shape)}
            yield canonical_json(line).encode("utf-8")
            yield _sample(descriptors[tensor.path], tensor.begin, tensor.end, _RUNS_PER_TENSOR)
    finally:
        for descriptor in descriptors.values():
            os.close(descriptor)


def _parts_of_other_files(folder: Path) -> Iterator[bytes]:
    for path in sorted(folder.iterdir()):
        if path.suffix in _OTHER_SUFFIXES and path.is_file():
            size = path.stat().st_size
            yield canonical_json({"file": path.name, "num_bytes": size}).encode("utf-8")
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                yield _sample(descriptor, 0, size, _RUNS_PER_FILE)
            finally:
                os.close(descriptor)


def _sample(descriptor: int, begin: int, end: int, num_runs: int) -> bytes:
    if end - begin <= num_runs * _RUN_BYTES:
        return os.pread(descriptor, end - begin, begin)
    last = end - _RUN_BYTES
    starts = (begin + (last - begin) * i // (num_runs - 1) for i in range(num_runs))
    return b"".join(os.pread(descriptor, _RUN_BYTES, start) for start in starts)
