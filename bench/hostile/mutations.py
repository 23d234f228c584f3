"""Patch files made to harm: one seed, one file; equal seeds give equal files.

Every family damages a good file in its own way. Where only the content is to be at fault, the file is sealed:
its digest is computed anew, as an attacker would do it. A finite tensor with a new digest is no member: it is
a good patch of other content, and telling whose it is, is what signatures are for.
"""

import io
import json
import os
import pickle
import random
import socket
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from patches.canonical import canonical_json
from patches.digest import patch_digest
from patches.format import DIGEST_KEY, MANIFEST_KEY, encode_patch
from patches.label import Label
from patches.manifest import BaseModel

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
#: Size of the sparse files: more than the format takes, and hardly a block on disk.
SPARSE_BYTES = (1 << 30) + 1
MIB = 1 << 20

Header = dict[str, Any]
#: From a seeded generator and the good file to the bytes of a bad one.
Mutate = Callable[[random.Random, bytes], bytes]
#: Puts something at a path that is no file of bytes; given the good file, which lies outside of the folder.
Place = Callable[[random.Random, Path, Path], None]


def good_file() -> bytes:
    """Make the file that is damaged: valid, small, with every kind of field."""
    n, model = NUM_TOKENS, BASE_MODEL
    manifest = Label("pirate", "1.0.0", license="Apache-2.0", changelog="Speaks more plainly.").manifest(
        model, n, {"method": "text"}
    )
    kv = torch.arange(model.num_layers * 2 * n * model.num_kv_heads * model.head_size)
    shape = (model.num_layers, 2, n, model.num_kv_heads, model.head_size)
    embeddings = torch.arange(n * model.hidden_size).reshape(n, model.hidden_size).float() / 64
    return encode_patch(manifest, embeddings, (kv % 61 - 30).reshape(shape).to(torch.bfloat16))


def mutant(seed: int, good: bytes) -> tuple[str, bytes | Place]:
    """Give the family of a seed, and what it makes: bytes, or a thing to put in the file's place."""
    rng = random.Random(seed)
    name = FAMILIES[seed % len(FAMILIES)]
    if name in PLACES:
        return name, PLACES[name]
    while (data := MUTATIONS[name](rng, good)) == good:
        # A change that happened to change nothing.
        continue
    return name, data


def _parts(data: bytes) -> tuple[Header, bytes]:
    (length,) = struct.unpack_from("<Q", data)
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def _join(header: Header | bytes, body: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def _sealed(header: Header, body: bytes) -> bytes:
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    header["__metadata__"][DIGEST_KEY] = patch_digest(
        header["__metadata__"][MANIFEST_KEY],
        [(n, e["dtype"], e["shape"], body[slice(*e["data_offsets"])]) for n, e in entries.items()],
    )
    return _join(header, body)


def _flip_bits(rng: random.Random, good: bytes) -> bytes:
    data = bytearray(good)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def _flip_header_bits(rng: random.Random, good: bytes) -> bytes:
    (length,) = struct.unpack_from("<Q", good)
    data = bytearray(good)
    data[rng.randrange(8 + length)] ^= 1 << rng.randrange(8)
    return bytes(data)


def _truncate(rng: random.Random, good: bytes) -> bytes:
    return good[: rng.randrange(len(good))]


def _splice(rng: random.Random, good: bytes) -> bytes:
    """Insert, delete, repeat or exchange a run of bytes."""
    at, size = rng.randrange(len(good)), rng.choice((1, 2, 8, 64, 512))
    piece = {
        0: rng.randbytes(size),
        1: b"",
        2: good[at : at + size] * 2,
        3: bytes(size),
        4: good[:size],
    }[rng.randrange(5)]
    return good[:at] + piece + good[at + rng.choice((0, size)) :]


def _append(rng: random.Random, good: bytes) -> bytes:
    return good + rng.choice((b"\0", b"\n", b" ", rng.randbytes(100), good, bytes(MIB)))


_LENGTHS = (0, 1, 7, 8, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1)


def _lie_about_length(rng: random.Random, good: bytes) -> bytes:
    (length,) = struct.unpack_from("<Q", good)
    lie = rng.choice((*_LENGTHS, length - 1, length + 1, length + 8, len(good), rng.getrandbits(64)))
    return struct.pack("<Q", lie) + good[8:]


def _number(rng: random.Random) -> Any:
    return rng.choice(
        (-1, 0, 1, 2**31, 2**48, 2**63, 2**64, 10**30, -(2**63), 1.5, 1e308, True, None, "4", [4], {})
    )


def _lie_about_tensors(rng: random.Random, good: bytes) -> bytes:
    """Huge, negative, overlapping, missing: offsets, shapes and dtypes that do not fit the bytes."""
    header, body = _parts(good)
    name = rng.choice(("kv", "embeddings"))
    entry = header[name]
    begin, end = entry["data_offsets"]
    shift = rng.choice((1, 4, 16, end - begin))
    field, value = rng.choice(
        [
            ("data_offsets", [begin + shift, end + shift]),
            ("data_offsets", [begin - shift, end - shift]),
            ("data_offsets", [end, begin]),
            ("data_offsets", [begin, end + shift]),
            ("data_offsets", [0, 0]),
            ("data_offsets", [begin, _number(rng)]),
            ("data_offsets", [_number(rng), end]),
            ("data_offsets", _number(rng)),
            ("shape", [2**20, 2**20, 2**20]),
            ("shape", [_number(rng), *entry["shape"][1:]]),
            ("shape", entry["shape"] * rng.choice((2, 100, 10_000))),
            ("shape", []),
            ("shape", _number(rng)),
            ("dtype", rng.choice(("F64", "I8", "U8", "BOOL", "F8_E4M3", "BF16 ", "bf16", "", None, 3))),
            ("extra", _number(rng)),
        ]
    )  # fmt: skip
    if json.dumps(entry.get(field)) == json.dumps(value):
        return good
    entry[field] = value
    return _join(header, body)


def _hostile_header(rng: random.Random, good: bytes) -> bytes:
    """JSON that readers choke on: deep, repeated, huge, or no object at all."""
    header, body = _parts(good)
    text = json.dumps(header).encode()
    depth = rng.choice((100, 10_000, 200_000))
    return _join(
        rng.choice(
            (
                b'{"a":' * depth,
                b"[" * depth + b"]" * depth,
                b'{"a":' + b"9" * rng.choice((400, 5000, 900_000)) + b"}",
                b'{"a":1e' + b"9" * 20 + b"}",
                text[:-1] + b',"kv":' + json.dumps(header["kv"]).encode() + b"}",
                text[:-1] + b',"__metadata__":{}}',
                text[:-1] + b',"\\u0000":' + json.dumps(header["kv"]).encode() + b"}",
                text + b"\0" * rng.choice((1, 8, 100)),
                text + b"\t",
                b"\xef\xbb\xbf" + text,
                text.decode().encode("utf-16"),
                b'"' + b"a" * (MIB - 10) + b'"',
                b"{" + b",".join(b'"%d":{}' % i for i in range(rng.choice((17, 60_000)))) + b"}",
                b"{}" + b" " * (2 * MIB),
                b"null",
                b"",
            )
        ),
        body,
    )


_NAMES = (
    "../pirate", "..", ".", "/etc/passwd", "a/b", "a\\b", "pirate\0", "pirate\n", "", " ", "none", "None",
    "PIRATE", "p" * 65, "p" * 100_000, "pir\u0430te", "pirate\u200b", "\uff50irate", ".hidden", "-rf", "a,b",
    "a@1", "%2e%2e", "\x1b[2J", "\u202epirate", "con:", "pirate ", "\ud800",
)  # fmt: skip


def _hostile_manifest(rng: random.Random, good: bytes) -> bytes:
    """Sealed: names that are paths, fields that are missing, too many, or of another kind."""
    header, body = _parts(good)
    manifest = json.loads(header["__metadata__"][MANIFEST_KEY])
    model = manifest["base_model"]
    huge = {"method": "compose", "components": [{"name": "a", "version": "1.0.0", "digest": "x"}] * 4000}
    change: dict[str, Any] = rng.choice(
        [
            {"name": rng.choice(_NAMES)},
            {"version": rng.choice(("1", "1.0", "v1.0.0", "1.0.0/..", "9" * 70 + ".0.0", "", 1, None))},
            {"base_model": {**model, rng.choice(sorted(model)): _number(rng)}},
            {"num_virtual_tokens": rng.choice((0, -1, 4097, 2**63, 7, 9, 8.5, "8", True, None))},
            {"format_version": rng.choice((0, 2, "1", 1.5, True, None))},
            {"kind": rng.choice(("delta", "steering", "", None, 1))},
            {"origin": rng.choice(({"method": "pickle"}, {}, [], {"method": "compose"}, huge))},
            {"changelog": rng.choice(("\x1b[31m", "a\nb", "x" * 1001, "\u202e", 3, "\u2028"))},
            {"supersedes": rng.choice(("old", "../1", 3, "sha256:" + "g" * 64))},
            {rng.choice(("script", "code", "__class__", "py/object")): "os.system"},
        ]
    )  # fmt: skip
    if rng.random() < 0.1:
        manifest.pop(rng.choice(("format_version", "kind", "name", "version", "base_model", "origin")))
    else:
        manifest.update(change)
    try:
        text = canonical_json(manifest)
    except ValueError:
        text = json.dumps(manifest)
    header["__metadata__"][MANIFEST_KEY] = text
    return _sealed_or_joined(header, body)


def _sealed_or_joined(header: Header, body: bytes) -> bytes:
    try:
        return _sealed(header, body)
    except (ValueError, TypeError):
        # A text that no digest can be taken of, such as half a surrogate pair.
        return _join(header, body)


_NOT_FINITE = {
    "kv": (b"\xc0\x7f", b"\x80\x7f", b"\x80\xff", b"\x81\xff"),
    "embeddings": (b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\0\0\x80\xff", b"\1\0\x80\x7f"),
}


def _not_finite(rng: random.Random, good: bytes) -> bytes:
    """Sealed: NaN or an infinity somewhere."""
    header, body = _parts(good)
    data = bytearray(body)
    name = rng.choice(sorted(_NOT_FINITE))
    begin, end = header[name]["data_offsets"]
    value = rng.choice(_NOT_FINITE[name])
    at = begin + rng.randrange((end - begin) // len(value)) * len(value)
    data[at : at + len(value)] = value
    return _sealed(header, bytes(data))


def _other_layout(rng: random.Random, good: bytes) -> bytes:
    """Sealed: another dtype of equal size, axes in another order, an unknown or a missing tensor."""
    header, body = _parts(good)
    entry = header["kv"]
    choice = rng.randrange(4)
    if choice == 0:
        entry["dtype"] = "F16"
    elif choice == 1:
        shape = entry["shape"][:]
        while shape == entry["shape"]:
            rng.shuffle(shape)
        entry["shape"] = shape
    elif choice == 2:
        header[rng.choice(("kv2", "weights", "KV", "model.embed_tokens.weight", "../kv"))] = header.pop("kv")
    else:
        begin, end = entry["data_offsets"]
        entry["shape"] = [(end - begin) // 2]
    return _sealed(header, body)


def _other_model(rng: random.Random, good: bytes) -> bytes:
    """Sealed: a good patch, under a name of its own, for a model that differs in one property."""
    header, body = _parts(good)
    manifest = json.loads(header["__metadata__"][MANIFEST_KEY])
    manifest["name"] = f"pirate-{rng.randrange(1000)}"
    digest = "sha256:" + rng.randbytes(32).hex()
    change: dict[str, Any] = rng.choice(
        (
            {"tokenizer_digest": digest},
            {"weights_digest": digest},
            {"rope": {"rope_theta": rng.randrange(10_000), "rope_type": "default"}},
            {"architecture": f"Llama{rng.randrange(1000)}"},
        )
    )
    manifest["base_model"] |= change
    header["__metadata__"][MANIFEST_KEY] = canonical_json(manifest)
    return _sealed(header, body)


def _other_format(rng: random.Random, good: bytes) -> bytes:
    """Files of other kinds under a patch's name; the zip unpacks to a thousand times its size."""
    choice = rng.randrange(7)
    if choice == 0:
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("data.pkl", bytes(MIB))
        return packed.getvalue()
    if choice == 1:
        return pickle.dumps({"kv": list(range(rng.randrange(100)))})
    if choice == 2:
        return zlib.compress(bytes(MIB))
    if choice == 3:
        return b"GGUF" + rng.randbytes(500)
    if choice == 4:
        return rng.randbytes(rng.randrange(1, 4096))
    return bytes(rng.randrange(1, 4096)) if choice == 5 else b""


def _dangling_link(rng: random.Random, path: Path, good: Path) -> None:
    path.symlink_to(f"/nowhere/{rng.randrange(1000)}")


def _link_to_itself(rng: random.Random, path: Path, good: Path) -> None:
    path.symlink_to(path.name)


def _link_to_a_device(rng: random.Random, path: Path, good: Path) -> None:
    path.symlink_to(
        rng.choice(("/dev/zero", "/dev/urandom", "/dev/tty", "/proc/self/mem", "/proc/self/environ"))
    )


def _link_to_a_folder(rng: random.Random, path: Path, good: Path) -> None:
    path.symlink_to(rng.choice((path.parent, good.parent, Path("/"), Path("/proc"))))


def _folder(rng: random.Random, path: Path, good: Path) -> None:
    path.mkdir()


def _pipe(rng: random.Random, path: Path, good: Path) -> None:
    os.mkfifo(path)


def _socket(rng: random.Random, path: Path, good: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def _sparse(rng: random.Random, path: Path, good: Path) -> None:
    """The good file, followed by a hole: larger than the format takes, or than the header says."""
    path.write_bytes(good.read_bytes())
    os.truncate(path, rng.choice((SPARSE_BYTES, 1 << 40, 8 * MIB)))


MUTATIONS: dict[str, Mutate] = {
    "flipped bits": _flip_bits,
    "flipped bits of the header": _flip_header_bits,
    "truncated": _truncate,
    "spliced": _splice,
    "bytes behind the end": _append,
    "false header length": _lie_about_length,
    "false offsets, shapes, dtypes": _lie_about_tensors,
    "hostile JSON": _hostile_header,
    "hostile manifest, sealed": _hostile_manifest,
    "NaN and infinity, sealed": _not_finite,
    "another layout, sealed": _other_layout,
    "another model, sealed": _other_model,
    "another kind of file": _other_format,
}
PLACES: dict[str, Place] = {
    "link to nothing": _dangling_link,
    "link to itself": _link_to_itself,
    "link to a device": _link_to_a_device,
    "link to a folder": _link_to_a_folder,
    "folder": _folder,
    "named pipe": _pipe,
    "socket": _socket,
    "sparse file": _sparse,
}
#: A seed's family is its remainder here; damage comes four times as often as places, which differ little.
FAMILIES = (*(list(MUTATIONS) * 4), *PLACES)
