"""What a server says of steering patches that can't act: as the file appears, or else to the request."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.hostile.good_file import parts_of, sealed
from patches.canonical import canonical_json
from patches.fingerprint import fingerprint_model
from patches.format import MANIFEST_KEY, encode_patch, make_patch
from patches.kinds.condition import Condition, Probe
from patches.kinds.steering import Steering, SteeringBody
from patches.label import Label
from tests.tiny_model import save_tiny_model

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.server("tiny"),
    pytest.mark.server("own", why="models that no vector acts on"),
]


def file_of(name: str, model: Any, *, is_conditional: bool = False) -> bytes:
    """Make a good file."""
    tokens = "answer" if is_conditional else "all"
    condition = Condition((Probe((0,), "mean", 0.0, 0.0),)) if is_conditional else None
    vector = torch.zeros(model.num_layers, model.hidden_size)
    vector[-1, 0] = 1
    probes = {"probes": torch.ones(1, model.hidden_size)} if is_conditional else {}
    body = SteeringBody(Steering("residual", "relative", 0.1, tokens=tokens), condition)
    patch = make_patch(
        Label(name, "1.0.0").manifest(model, body, {"method": "icv"}), {"vector": vector, **probes}
    )
    return encode_patch(patch.manifest, patch.tensors)


def with_manifest(data: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    header, body = parts_of(data)
    manifest = json.loads(header["__metadata__"][MANIFEST_KEY])
    change(manifest)
    header["__metadata__"][MANIFEST_KEY] = canonical_json(manifest)
    return sealed(header, body)


def with_values(data: bytes, values: bytes) -> bytes:
    """Repeat four bytes all over the vector."""
    header, body = parts_of(data)
    begin, end = header["vector"]["data_offsets"]
    return sealed(header, body[:begin] + values * ((end - begin) // 4) + body[end:])


def with_shape(data: bytes) -> bytes:
    header, body = parts_of(data)
    header["vector"]["shape"] = header["vector"]["shape"][::-1]
    return sealed(header, body)


#: Name -> whether it has a condition, what is wrong with it, code, and a part of the message.
FAULTS: dict[str, tuple[bool, Callable[[bytes], bytes], str, str]] = {
    "turned": (False, with_shape, "invalid_patch_file", "tensor vector: expected shape"),
    "nan": (False, lambda data: with_values(data, b"\0\0\xc0\x7f"), "invalid_patch_file", "finite"),
    "zero": (False, lambda data: with_values(data, bytes(4)), "invalid_patch_file", "not zero"),
    "stranger": (
        False,
        lambda data: with_manifest(
            data, lambda m: m["base_model"].update(weights_digest=f"sha256:{'5' * 64}")
        ),
        "base_model_mismatch",
        "weights_digest",
    ),
    "too-strong": (
        False,
        lambda data: with_manifest(data, lambda m: m["steering"].update(strength=1.5)),
        "invalid_patch_file",
        "steering.strength",
    ),
    "too-high": (
        True,
        lambda data: with_manifest(data, lambda m: m["condition"]["probes"][0].update(layers=[7])),
        "invalid_patch_file",
        "condition.probes",
    ),
}


def failure_of(server: Any, name: str, data: bytes) -> dict[str, Any]:
    """Put a file into the folder, and wait until the server has refused it."""
    file = f"{name}-1.0.0.safetensors"
    (server.patches / f".{file}").write_bytes(data)
    (server.patches / f".{file}").rename(server.patches / file)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for failure in server.client.get("/v1/patches").json()["failures"]:
            if failure["file"] == file:
                (server.patches / file).unlink()
                found: dict[str, Any] = failure
                return found
        time.sleep(0.05)
    raise AssertionError(f"{file} was not refused")


@pytest.mark.parametrize("name", FAULTS)
def test_a_file_that_is_wrong_is_refused_as_it_appears(
    tiny_server: Any, tiny_patches: Any, name: str
) -> None:
    is_conditional, change, code, message = FAULTS[name]
    good = file_of(f"bad-{name}", tiny_patches.model.base_model, is_conditional=is_conditional)
    failure = failure_of(tiny_server, f"bad-{name}", change(good))
    assert failure["code"] == code, failure
    assert message in failure["message"]
    assert "expected" in failure["message"]
    response = tiny_server.complete([1, 2, 3], patch=f"bad-{name}")
    assert response.status_code in (404, 409, 422), response.text


def test_two_vectors_in_a_request_are_refused_by_name(tiny_server: Any, tiny_patches: Any) -> None:
    for name in ("first-vector", "second-vector"):
        (tiny_server.patches / f"{name}-1.0.0.safetensors").write_bytes(
            file_of(name, tiny_patches.model.base_model)
        )
    deadline = time.monotonic() + 120
    while tiny_server.client.get("/v1/patches/second-vector").status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    response = tiny_server.complete([1, 2, 3], patch="first-vector, second-vector")
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "unsupported_with_patch")
    assert "first-vector" in error["message"]


def save_granite(folder: Path, tokenizer: Any) -> None:
    """Write a model whose layers hand on one tensor."""
    from transformers import GraniteConfig, GraniteForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "vocab_size": 49152}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
    GraniteForCausalLM(GraniteConfig(**sizes, **heads)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def save_quantised(folder: Path, tokenizer: Any) -> None:
    """Write a Llama whose linear layers are rounded to eight bits, channel by channel."""
    sizes = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}
    save_tiny_model(folder, tokenizer=tokenizer, tie_word_embeddings=True, **sizes)
    weights = load_file(folder / "model.safetensors")
    for name in [name for name in weights if "proj" in name]:
        scale = weights[name].abs().amax(1, keepdim=True) / 127
        weights[name] = (weights[name] / scale).round().to(torch.int8)
        weights[name.replace("weight", "weight_scale")] = scale
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    eight_bits = {"num_bits": 8, "type": "int", "symmetric": True}
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {**eight_bits, "strategy": "channel", "dynamic": False},
                "input_activations": {**eight_bits, "strategy": "token", "dynamic": True},
            }
        },
    }
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("save", "reason"),
    [(save_granite, "architecture: expected one of"), (save_quantised, "is quantised (compressed-tensors)")],
)
def test_a_server_whose_model_no_vector_acts_on_refuses_the_file_and_serves_others(
    start_module_server: Any,
    tiny_model: Path,
    tmp_path: Path,
    save: Callable[[Path, Any], None],
    reason: str,
) -> None:
    from transformers import AutoTokenizer

    save(tmp_path, AutoTokenizer.from_pretrained(tiny_model))
    server = start_module_server(tmp_path, "--dtype", "float32", "--max-model-len", "256")
    server.wait_ready()
    listed = server.client.get("/v1/patches").json()
    assert listed["failures"] == []
    failure = failure_of(server, "vector", file_of("vector", fingerprint_model(str(tmp_path), "float32")))
    assert failure["code"] == "kind_unsupported"
    assert reason in failure["message"]
    assert server.complete([1, 2, 3], patch="vector").status_code == 404
    assert server.complete([1, 2, 3]).status_code == 200
    assert server.terminate() == 0
