"""The specification and its page are held to the code."""

import hashlib
import inspect
import json
import re
import struct
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest

import patches.format
from patches.base_model import BaseModel
from patches.canonical import canonical_json
from patches.errors import FORMAT_REASONS
from patches.format import MAX_FILE_BYTES, Patch
from patches.kinds import KINDS
from patches.kinds.prefix import MAX_NUM_VIRTUAL_TOKENS, PrefixBody
from patches.kinds.steering import SteeringBody
from patches.manifest import MAX_MANIFEST_BYTES, Manifest, decode_manifest, encode_manifest

ROOT = Path(__file__).resolve().parents[2]
SPECIFICATION = inspect.getdoc(patches.format) or ""
PAGE = (ROOT / "docs" / "format.md").read_text(encoding="utf-8")


@pytest.fixture
def example() -> Manifest:
    """The manifest that the specification shows."""
    match = re.search(r"^    \{\n.*?^    \}\n", SPECIFICATION, re.MULTILINE | re.DOTALL)
    assert match is not None
    return decode_manifest(canonical_json(json.loads(match[0].replace("sha256:…", "sha256:" + "0" * 64))))


def test_the_example_of_the_specification_is_a_valid_manifest_with_every_key(example: Manifest) -> None:
    document = json.loads(encode_manifest(example))
    common = {field.name for field in fields(Manifest)} - {"body"} | {"format_version", "kind"}
    assert set(document) == common | set(example.body.document())
    assert set(document["base_model"]) == {field.name for field in fields(BaseModel)}


def test_every_key_of_the_manifest_is_explained() -> None:
    for key in {field.name for field in fields(Manifest)} - {"body"} | {"format_version", "kind"}:
        assert f"``{key}``" in SPECIFICATION
    assert "N, the number of virtual tokens" in " ".join(SPECIFICATION.split())


def test_the_limits_are_stated_as_they_are() -> None:
    for text in (SPECIFICATION, PAGE):
        assert "1 GiB" in text
        assert "256 KiB" in text
        assert "4096" in text
        assert "16 MiB" in text
    assert (MAX_FILE_BYTES, MAX_MANIFEST_BYTES, MAX_NUM_VIRTUAL_TOKENS) == (1024**3, 256 * 1024, 4096)
    assert (PrefixBody.max_file_bytes, SteeringBody.max_file_bytes) == (1024**3, 16 * 1024**2)


def test_the_example_of_a_steering_patch_is_one_with_every_key(example: Manifest) -> None:
    shown = re.search(r'^    "steering": \{.*?^    \}\n(?=\n)', SPECIFICATION, re.MULTILINE | re.DOTALL)
    assert shown is not None
    of_kind = json.loads("{" + shown[0] + "}")
    document = json.loads(encode_manifest(example)) | of_kind
    del document["num_virtual_tokens"]
    document |= {"format_version": 2, "kind": "steering", "origin": {"method": "icv"}}
    body = decode_manifest(canonical_json(document)).body
    assert json.loads(canonical_json(body.document())) == of_kind


def test_the_example_of_a_delta_is_one_with_every_key(example: Manifest) -> None:
    shown = re.search(r'^    "delta": \{.*?^    \}\n', SPECIFICATION, re.MULTILINE | re.DOTALL)
    assert shown is not None
    of_kind = json.loads("{" + shown[0] + "}")
    document = json.loads(encode_manifest(example)) | of_kind
    del document["num_virtual_tokens"]
    document |= {"format_version": 2, "kind": "delta", "origin": {"method": "hdr"}}
    body = decode_manifest(canonical_json(document)).body
    assert json.loads(canonical_json(body.document())) == of_kind


def test_the_page_explains_every_reason_and_every_method() -> None:
    for word in (*FORMAT_REASONS, *(method for body in KINDS.values() for method in body.methods)):
        assert f"| `{word}` |" in PAGE


def test_the_digest_is_the_one_that_is_specified(make: Callable[..., Patch]) -> None:
    """Computed once more from the words of ``patches.digest``."""
    patch = make()
    assert patch.embeddings is not None
    assert patch.kv is not None
    parts = [
        encode_manifest(patch.manifest).encode(),
        b'{"dtype":"F32","name":"embeddings","shape":[3,8]}',
        patch.embeddings.numpy().tobytes(),
        b'{"dtype":"BF16","name":"kv","shape":[2,2,3,2,4]}',
        b"".join(struct.pack("<f", value)[2:] for value in patch.kv.float().flatten().tolist()),
    ]
    stream = b"policypatch/1\n\0\0" + b"".join(struct.pack("<Q", len(part)) + part for part in parts)
    assert patch.digest == "sha256:" + hashlib.sha256(stream).hexdigest()
