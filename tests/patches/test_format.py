"""The file format: round trip, golden bytes, files and folders."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from patches.base_model import BaseModel
from patches.errors import FORMAT_REASONS, PatchExists, PatchFormatError
from patches.format import (
    MAX_FILE_BYTES,
    Patch,
    decode_patch,
    encode_patch,
    find_problems,
    is_patch_filename,
    make_patch,
    read_patch,
    write_patch,
)

GOLDEN = Path(__file__).parent / "golden"
Make = Callable[..., Patch]

#: How each golden file was made, and the digest that it has for ever.
GOLDENS: dict[str, tuple[dict[str, Any], str]] = {
    "format-1-full.safetensors": (
        {
            "name": "full",
            "version": "2.1.0-rc.1",
            "origin": {"method": "text", "rendering": "raw", "num_text_tokens": 3},
            "evaluation": {"toxicity": 0.25, "num_prompts": 100},
            "license": "Apache-2.0",
            "changelog": "Speaks more plainly, naïvely even.",
            "supersedes": "2.0.0",
        },
        "sha256:e010edc5dbe538c6065d79128b8a16d06927a5fef80e540c75ae86daa5399624",
    ),
    "format-1-kv-only.safetensors": (
        {"name": "kv-only", "num_tokens": 5, "embeddings": False, "origin": {"method": "peft"}},
        "sha256:c685920b89269a9b18ac315b3404ecd7aec9b193d2da5d137197c574d9261ad1",
    ),
}


def encode(patch: Patch) -> bytes:
    return encode_patch(patch.manifest, patch.tensors)


def assert_same(left: Patch, right: Patch) -> None:
    assert left.manifest == right.manifest
    assert left.digest == right.digest
    for a, b in ((left.embeddings, right.embeddings), (left.kv, right.kv)):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            assert a.dtype == b.dtype
            assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize(("embeddings", "kv"), [(True, True), (True, False), (False, True)])
def test_decoding_gives_back_what_was_encoded(
    make: Make, base_model: BaseModel, dtype: str, embeddings: bool, kv: bool
) -> None:
    patch = make(base_model=replace(base_model, dtype=dtype), embeddings=embeddings, kv=kv, license="MIT")
    assert_same(decode_patch(encode(patch)), patch)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    num_tokens=st.integers(1, 40),
    seed=st.integers(0, 9),
    changelog=st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), min_size=1, max_size=50),
)
def test_any_valid_patch_survives_the_round_trip(
    make: Make, num_tokens: int, seed: int, changelog: str
) -> None:
    patch = make(num_tokens=num_tokens, seed=seed, changelog=changelog)
    assert_same(decode_patch(encode(patch)), patch)


def test_encoding_is_deterministic_whatever_the_memory_layout(make: Make) -> None:
    patch = make()
    assert patch.kv is not None
    strided = patch.kv.transpose(0, 1).contiguous().transpose(0, 1)
    assert not strided.is_contiguous()
    assert encode_patch(patch.manifest, {"embeddings": patch.embeddings, "kv": strided}) == encode(patch)


def test_a_file_is_read_by_safetensors_as_it_is(make: Make) -> None:
    patch = make()
    tensors = safetensors.torch.load(encode(patch))
    assert set(tensors) == {"embeddings", "kv"}
    assert torch.equal(tensors["kv"], patch.kv)


def test_a_file_that_safetensors_wrote_has_the_same_digest(make: Make, tmp_path: Path) -> None:
    patch = make()
    assert patch.embeddings is not None
    assert patch.kv is not None
    ours = tmp_path / "ours.safetensors"
    ours.write_bytes(encode(patch))
    with safetensors.safe_open(ours, framework="pt") as file:
        metadata = file.metadata()
    theirs = safetensors.torch.save({"kv": patch.kv, "embeddings": patch.embeddings}, metadata=metadata)
    assert_same(decode_patch(theirs), patch)


def test_every_byte_counts(make: Make) -> None:
    """Flipping bits of any one byte gives an error with a known reason, or a file of the same content."""
    patch = make()
    data = encode(patch)
    for i in range(len(data)):
        for mask in (0x01, 0x20, 0x80):
            damaged = bytearray(data)
            damaged[i] ^= mask
            found, problems = find_problems(bytes(damaged))
            assert found is None or found.digest == patch.digest
            assert all(problem.reason in FORMAT_REASONS for problem in problems)
            assert (found is None) == bool(problems)


def test_a_flipped_tensor_byte_is_a_digest_mismatch(make: Make) -> None:
    data = bytearray(encode(make()))
    data[-2] ^= 1
    with pytest.raises(PatchFormatError, match=r"digest: expected sha256:.*altered") as caught:
        decode_patch(bytes(data))
    assert caught.value.reason == "digest_mismatch"


def test_equal_parts_give_equal_digests_and_any_change_another(make: Make) -> None:
    assert make().digest == make().digest
    others = [
        make(seed=1),
        make(version="1.0.1"),
        make(changelog="x"),
        make(kv=False),
        make(embeddings=False),
    ]
    assert len({patch.digest for patch in [make(), *others]}) == 6


@pytest.mark.parametrize("filename", sorted(GOLDENS))
def test_golden_files_load_for_ever(filename: str, make: Make, pytestconfig: pytest.Config) -> None:
    """Once released, a file under golden/ never changes, and never stops loading."""
    arguments, digest = GOLDENS[filename]
    patch = make(**arguments)
    path = GOLDEN / filename
    if pytestconfig.getoption("--update-goldens"):
        path.write_bytes(encode(patch))
    assert path.read_bytes() == encode(patch)
    assert_same(read_patch(path), patch)
    assert patch.digest == digest


def test_writing_names_the_file_by_name_and_version(make: Make, tmp_path: Path) -> None:
    path = write_patch(make("pirate", "1.2.3"), tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "pirate-1.2.3.safetensors"
    assert_same(read_patch(path), make("pirate", "1.2.3"))
    assert os.listdir(path.parent) == [path.name]


def test_writing_the_same_again_changes_nothing(make: Make, tmp_path: Path) -> None:
    before = write_patch(make(), tmp_path).stat().st_mtime_ns
    assert write_patch(make(), tmp_path).stat().st_mtime_ns == before


def test_writing_other_content_under_a_taken_name_is_refused(make: Make, tmp_path: Path) -> None:
    path = write_patch(make(), tmp_path)
    with pytest.raises(PatchExists, match="exists with different content"):
        write_patch(make(seed=1), tmp_path)
    assert read_patch(path).digest == make().digest
    write_patch(make(seed=1), tmp_path, overwrite=True)
    assert read_patch(path).digest == make(seed=1).digest


def test_a_failed_write_leaves_no_file(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk is gone")

    monkeypatch.setattr("patches.format.os.replace", fail)
    with pytest.raises(OSError, match="disk is gone"):
        write_patch(make(), tmp_path)
    assert os.listdir(tmp_path) == []


def test_the_file_name_does_not_matter(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "whatever.bin"
    path.write_bytes(encode(make()))
    assert read_patch(path).digest == make().digest


def test_what_is_no_regular_file_is_unreadable(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    for path in (tmp_path, tmp_path / "pipe.safetensors", tmp_path / "missing.safetensors"):
        with pytest.raises(PatchFormatError) as caught:
            read_patch(path)
        assert caught.value.reason == "unreadable"


def test_a_huge_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.safetensors"
    with path.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(PatchFormatError, match="at most 1073741824 bytes") as caught:
        read_patch(path)
    assert caught.value.reason == "too_large"


@pytest.mark.parametrize(
    ("name", "is_patch"),
    [
        ("a-1.0.0.safetensors", True),
        (".a-1.0.0.safetensors.x3f", False),
        (".hidden.safetensors", False),
        ("a.safetensors.sig", False),
        ("README.md", False),
        ("x/a.safetensors", False),
    ],
)
def test_only_visible_safetensors_files_may_be_patches(name: str, is_patch: bool) -> None:
    assert is_patch_filename(name) is is_patch


def test_parts_that_make_no_valid_patch_are_refused_when_encoding(make: Make) -> None:
    patch = make()
    assert patch.kv is not None
    for kv in (
        patch.kv[:1],
        patch.kv.float(),
        patch.kv.to(torch.int16),
        torch.full_like(patch.kv, float("nan")),
    ):
        with pytest.raises(PatchFormatError, match="tensor kv") as caught:
            make_patch(patch.manifest, {"kv": kv})
        assert caught.value.reason == "bad_tensor"
    with pytest.raises(PatchFormatError, match="expected embeddings or kv, got none"):
        make_patch(patch.manifest, {})
