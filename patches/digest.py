r"""The content digest of a patch: SHA-256 over the canonical manifest and the tensors.

The digest is the identity of a patch: names, versions and file names point to it, requests are salted with
it. It does not depend on the order of tensors in a file, on padding, nor on who wrote the file.

The hashed stream, where every length is an unsigned 64-bit little-endian number of bytes:

1. the 16 bytes ``policypatch/1\n\0\0``;
2. length and UTF-8 bytes of the canonical manifest;
3. for each tensor in order of its name: length and UTF-8 bytes of the canonical JSON
   ``{"dtype":D,"name":NAME,"shape":[…]}`` with safetensors' dtype names, then length and the tensor's bytes
   (row-major, little-endian).
"""

import hashlib
import struct
from collections.abc import Iterable, Sequence

from patches.canonical import canonical_json

_MAGIC = b"policypatch/1\n\0\0"
_LENGTH = struct.Struct("<Q")


def patch_digest(
    manifest_text: str, tensors: Iterable[tuple[str, str, Sequence[int], bytes | memoryview]]
) -> str:
    """Compute the digest of a patch.

    Args:
        manifest_text: The manifest as canonical JSON.
        tensors: Name, safetensors dtype, shape and bytes of each tensor, in any order.

    Returns:
        ``sha256:`` and 64 hexadecimal digits.
    """
    state = hashlib.sha256(_MAGIC)

    def add(part: bytes | memoryview) -> None:
        state.update(_LENGTH.pack(memoryview(part).nbytes))
        state.update(part)

    add(manifest_text.encode("utf-8"))
    for name, dtype, shape, content in sorted(tensors, key=lambda tensor: tensor[0]):
        add(canonical_json({"name": name, "dtype": dtype, "shape": list(shape)}).encode("utf-8"))
        add(content)
    return "sha256:" + state.hexdigest()
