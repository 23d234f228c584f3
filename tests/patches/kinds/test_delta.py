"""The kind ``delta``: round trip, golden bytes, and everything that a file of it can get wrong."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patches.canonical import canonical_json
from patches.convert import convert_patch
from patches.errors import CompileError, PatchFormatError
from patches.format import Patch, decode_patch, encode_patch, make_patch, write_patch
from patches.kinds.delta import ChangedTensor, DeltaBody, packed_positions
from patches.label import Label
from patches.manifest import decode_manifest, encode_manifest
from server.cli import main
from tests.tiny_model import BASE_MODEL

GOLDEN = Path(__file__).parents[1] / "golden" / "format-2-delta.safetensors"
#: Which it has for ever.
GOLDEN_DIGEST = "sha256:67ea1ad63e0be089afe9e3b75cc60ebbc5530d463448c81c5935a585d86b0580"

#: One tensor in each form: 3 of 128 weights as indices, 12 of 132 as bits, 17 bytes with 4 bits left over.
FEW = ChangedTensor("model.layers.0.mlp.up_proj.weight", (16, 8), 3)
MANY = ChangedTensor("model.layers.1.self_attn.v_proj.weight", (12, 11), 12)
BODY = DeltaBody((FEW, MANY))
POSITIONS = {FEW: torch.tensor([0, 64, 127]), MANY: torch.arange(12) * 11}


def tensors_of() -> dict[str, torch.Tensor]:
    return {
        "values": ((torch.arange(15) - 7) / 8).to(torch.bfloat16),
        "indices": packed_positions(FEW, POSITIONS[FEW]),
        "mask": packed_positions(MANY, POSITIONS[MANY]),
    }


def delta_patch(**tensors: torch.Tensor | None) -> Patch:
    manifest = Label("no-harm", "1.0.0").manifest(BASE_MODEL, BODY, {"method": "hdr"})
    return make_patch(manifest, tensors_of() | tensors)


def test_decoding_gives_back_what_was_encoded() -> None:
    patch = delta_patch()
    again = decode_patch(encode_patch(patch.manifest, patch.tensors))
    assert (again.manifest, again.digest) == (patch.manifest, patch.digest)
    changes = list(BODY.changes(again.tensors))
    assert [change.tensor for change in changes] == [FEW, MANY]
    for change, values in zip(changes, torch.split(tensors_of()["values"], [3, 12]), strict=True):
        assert change.positions.tolist() == POSITIONS[change.tensor].tolist()
        assert torch.equal(change.values, values)


def test_the_golden_file_loads_for_ever(pytestconfig: pytest.Config) -> None:
    patch = delta_patch()
    if pytestconfig.getoption("--update-goldens"):
        GOLDEN.write_bytes(encode_patch(patch.manifest, patch.tensors))
    data = GOLDEN.read_bytes()
    assert decode_patch(data).digest == GOLDEN_DIGEST
    assert encode_patch(patch.manifest, patch.tensors) == data


@given(
    rows=st.integers(1, 40), columns=st.integers(4, 40), share=st.floats(0, 0.25), seed=st.integers(0, 2**16)
)
def test_any_choice_of_weights_survives_the_round_trip(
    rows: int, columns: int, share: float, seed: int
) -> None:
    num_changed = max(1, int(rows * columns * share))
    tensor = ChangedTensor("a.weight", (rows, columns), num_changed)
    order = torch.randperm(rows * columns, generator=torch.Generator().manual_seed(seed))
    positions = order[:num_changed].sort().values
    packed = {"mask" if tensor.is_masked else "indices": packed_positions(tensor, positions)}
    values = torch.arange(num_changed).to(torch.bfloat16)
    manifest = Label("a", "1.0.0").manifest(BASE_MODEL, DeltaBody((tensor,)), {"method": "import"})
    assert decode_manifest(encode_manifest(manifest)) == manifest
    patch = make_patch(manifest, {"values": values} | packed)
    (change,) = DeltaBody((tensor,)).changes(patch.tensors)
    assert torch.equal(change.positions, positions)


def first(manifest: dict[str, Any]) -> Any:
    return manifest["delta"]["tensors"][0]


CHANGES: list[tuple[str, Callable[[dict[str, Any]], object], str]] = [
    ("no delta", lambda m: m.pop("delta"), "the key 'delta' is missing"),
    ("virtual tokens", lambda m: m.update(num_virtual_tokens=4), "unknown key 'num_virtual_tokens'"),
    ("version 1", lambda m: m.update(format_version=1), "kind: expected 'prefix', got 'delta'"),
    ("method of a prefix", lambda m: m["origin"].update(method="text"), "origin.method: expected 'hdr'"),
    ("inner key", lambda m: m["delta"].update(target="base"), "delta: unknown key 'target'"),
    ("no tensors", lambda m: m["delta"].update(tensors=[]), "a list of 1 to 2048 objects"),
    ("too many", lambda m: m["delta"].update(tensors=[first(m)] * 2049), "a list of 1 to 2048 objects"),
    ("twice", lambda m: m["delta"]["tensors"].append(first(m)), "each tensor once, in order of its name"),
    ("falling", lambda m: m["delta"]["tensors"].reverse(), "each tensor once, in order of its name"),
    ("a bias", lambda m: first(m).update(name="a.bias"), "the weight of a linear layer"),
    ("a norm", lambda m: first(m).update(shape=[8]), "two sizes with a product of at most 2147483647"),
    ("too large", lambda m: first(m).update(shape=[2**20, 2**20]), "two sizes with a product of at most"),
    ("no weights", lambda m: first(m).update(shape=[0, 8]), "a list of integers from 1"),
    ("nothing changes", lambda m: first(m).update(num_changed=0), "an integer from 1"),
    ("over a quarter", lambda m: first(m).update(num_changed=33), "at most 32, a quarter of the tensor's"),
    ("escape code", lambda m: first(m).update(name="\x1b.weight"), "printable characters"),
]


@pytest.mark.parametrize(("change", "message"), [c[1:] for c in CHANGES], ids=[c[0] for c in CHANGES])
def test_a_bad_manifest_is_refused(change: Callable[[dict[str, Any]], object], message: str) -> None:
    document = json.loads(encode_manifest(delta_patch().manifest))
    change(document)
    with pytest.raises(PatchFormatError) as refused:
        decode_manifest(canonical_json(document))
    assert message in str(refused.value)


def indices(*positions: int) -> torch.Tensor:
    return torch.tensor(positions, dtype=torch.int32)


def bits(positions: Sequence[int]) -> torch.Tensor:
    mask = torch.zeros(17, dtype=torch.uint8)
    for position in positions:
        mask[position // 8] += 1 << position % 8
    return mask


BAD_TENSORS: list[tuple[str, dict[str, torch.Tensor | None], str]] = [
    ("no values", {"values": None}, "tensors: expected values, got indices, mask"),
    ("no indices", {"indices": None}, "tensors: expected indices, got mask, values"),
    ("no mask", {"mask": None}, "tensors: expected mask, got indices, values"),
    ("another", {"kv": torch.zeros(1)}, "tensor 'kv': unknown name"),
    ("dtype", {"values": torch.zeros(15)}, "tensor values: expected dtype BF16, got F32"),
    ("dtype of indices", {"indices": torch.zeros(3)}, "tensor indices: expected dtype I32, got F32"),
    (
        "one value less",
        {"values": torch.zeros(14).bfloat16()},
        "values: expected shape [15], got [14]",
    ),
    ("nan", {"values": torch.full((15,), torch.nan).bfloat16()}, "tensor values: expected finite values"),
    (
        "infinite",
        {"values": torch.full((15,), torch.inf).bfloat16()},
        "tensor values: expected finite values",
    ),
    ("beyond", {"indices": indices(0, 64, 128)}, "tensor indices: expected 0 to 127 for model.layers.0.mlp"),
    ("negative", {"indices": indices(-1, 64, 127)}, "tensor indices: expected 0 to 127"),
    ("falling", {"indices": indices(0, 127, 64)}, "tensor indices: expected rising ones"),
    ("twice", {"indices": indices(0, 64, 64)}, "tensor indices: expected rising ones"),
    ("a bit less", {"mask": bits(range(11))}, "tensor mask: expected 12 bits for the 132 weights"),
    ("a bit more", {"mask": bits(range(13))}, "tensor mask: expected 12 bits for the 132 weights"),
    ("a bit behind", {"mask": bits([*range(11), 132])}, "and zeros behind them, got 12 bits"),
]


@pytest.mark.parametrize(
    ("tensors", "message"), [c[1:] for c in BAD_TENSORS], ids=[c[0] for c in BAD_TENSORS]
)
def test_bad_tensors_are_refused(tensors: dict[str, torch.Tensor | None], message: str) -> None:
    with pytest.raises(PatchFormatError) as refused:
        delta_patch(**tensors)
    assert message in str(refused.value)
    assert refused.value.reason == "bad_tensor"


def test_inspect_says_how_much_changes(tmp_path: Path, capsys: Any) -> None:
    assert main(["inspect", str(write_patch(delta_patch(), tmp_path))]) == 0
    card = capsys.readouterr().out
    for line in (
        "changes      15 of 260 weights (5.77%) in 2 tensors",
        "  most in    model.layers.1.self_attn.v_proj.weight, 9.09%",
        "values       bfloat16 [15]",
        "indices      int32 [3]",
        "mask         uint8 [17]",
        "made by      hdr",
    ):
        assert line in card


def test_verify_tells_another_models_delta(folder: Path, tmp_path: Path, capsys: Any) -> None:
    path = str(write_patch(delta_patch(), tmp_path))
    assert main(["verify", path]) == 0
    assert "good: no-harm@1.0.0" in capsys.readouterr().out
    assert main(["verify", path, "--model", str(folder)]) == 1
    assert "base_model_mismatch: weights_digest: expected" in capsys.readouterr().err


def test_converting_rounds_what_weights_become() -> None:
    patch = convert_patch(delta_patch(), "float16")
    assert patch.tensors["values"].dtype == torch.float16
    assert patch.manifest.base_model == replace(BASE_MODEL, dtype="float16")
    assert patch.manifest.origin["converted_from"]["values"] == "rounded"
    assert torch.equal(patch.tensors["mask"], tensors_of()["mask"])
    huge = delta_patch(values=torch.full((15,), 1e30).bfloat16())
    with pytest.raises(CompileError, match=r"values: expected values of at most 65504"):
        convert_patch(huge, "float16")
