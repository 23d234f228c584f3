"""The file that is damaged, and how it comes apart into header and tensors."""

import json
import struct
from typing import Any

import torch

from patches.base_model import BaseModel
from patches.digest import patch_digest
from patches.format import DIGEST_KEY, MANIFEST_KEY, encode_patch
from patches.kinds.prefix import PrefixBody
from patches.label import Label

BASE_MODEL = BaseModel(
    architecture="LlamaForCausalLM",
    num_layers=2,
    num_kv_heads=2,
    head_size=4,
    hidden_size=8,
    rope={"rope_theta": 10000, "rope_type": "default"},
    dtype="bfloat16",
    tokenizer_digest="sha256:" + "0" * 64,
    weights_digest="sha256:" + "1" * 64,
)
NUM_TOKENS = 8

Header = dict[str, Any]


def good_file() -> bytes:
    """Make the file that is damaged: valid, small, with every kind of field."""
    n, model = NUM_TOKENS, BASE_MODEL
    manifest = Label("pirate", "1.0.0", license="Apache-2.0", changelog="Speaks more plainly.").manifest(
        model, PrefixBody(n), {"method": "text"}
    )
    kv = torch.arange(model.num_layers * 2 * n * model.num_kv_heads * model.head_size)
    shape = (model.num_layers, 2, n, model.num_kv_heads, model.head_size)
    embeddings = torch.arange(n * model.hidden_size).reshape(n, model.hidden_size).float() / 64
    return encode_patch(
        manifest, {"embeddings": embeddings, "kv": (kv % 61 - 30).reshape(shape).to(torch.bfloat16)}
    )


def parts_of(data: bytes) -> tuple[Header, bytes]:
    """Return the header of a file, decoded, and the bytes behind it."""
    (length,) = struct.unpack_from("<Q", data)
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header: Header | bytes, body: bytes) -> bytes:
    """Return a file of a header and the bytes behind it, whatever its digest says."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def sealed(header: Header, body: bytes) -> bytes:
    """Return a file whose digest is right."""
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    header["__metadata__"][DIGEST_KEY] = patch_digest(
        header["__metadata__"][MANIFEST_KEY],
        [(n, e["dtype"], e["shape"], body[slice(*e["data_offsets"])]) for n, e in entries.items()],
    )
    return joined(header, body)
