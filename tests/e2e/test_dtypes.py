"""Patches of another dtype than the server's: widened where that is exact, converted by a command else."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from patches.format import Patch, make_patch, read_patch, write_patch
from patches.model import LoadedModel, load_model
from server.cli import main
from tests.e2e.conftest import PatchMaker

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.server("demo"),
    pytest.mark.server("own", why="runs in float16, as on a GPU without bfloat16"),
]

PROMPTS = ["The capital of France is", "Tell me about the sea, in one sentence.", "Hello"]
POLICY = "You are Captain Flint. Answer like a sailor of the old days, loudly and plainly."
NUM_TOKENS = 16


@pytest.fixture(scope="module")
def narrow(demo_model: Path) -> PatchMaker:
    return PatchMaker(load_model(demo_model, dtype="bfloat16"))


def ids_of(model: LoadedModel, texts: Sequence[str]) -> list[list[int]]:
    assert model.tokenizer is not None
    return [list(model.tokenizer(text)["input_ids"]) for text in texts]


def in_float32(patch: Patch, name: str) -> Patch:
    """The same values, in a patch that was made for float32."""
    assert patch.kv is not None
    base_model = replace(patch.manifest.base_model, dtype="float32")
    manifest = replace(patch.manifest, name=name, base_model=base_model)
    return make_patch(manifest, {"kv": patch.kv.float()})


def test_a_bfloat16_patch_answers_under_float32_as_its_values_do(
    shared_server: Any, narrow: PatchMaker
) -> None:
    (policy,), prompts = ids_of(narrow.model, [POLICY]), ids_of(narrow.model, PROMPTS)
    patch = narrow.of_token_ids("narrow", policy)
    wide = in_float32(patch, "widened")
    shared_server.install(patch)
    shared_server.install(wide)
    wanted = [{"prompt": prompt, "max_tokens": NUM_TOKENS} for prompt in prompts]
    answers = {
        name: shared_server.ask_together([{**one, "patch": name} for one in wanted])
        for name in ("narrow", "widened")
    }
    as_text = shared_server.ask_together([{"prompt": policy + p, "max_tokens": NUM_TOKENS} for p in prompts])
    for ours, reference, text in zip(answers["narrow"], answers["widened"], as_text, strict=True):
        assert ours.digest == patch.digest
        assert reference.digest == wide.digest
        assert ours.token_ids == reference.token_ids
        assert ours.logprob_gap(reference) < 1e-4
        # Rounded to eight bits, K/V still says what its text says.
        first, other = ours.logprobs[0], text.logprobs[0]
        assert max(abs(first[i] - other[i]) for i in first.keys() & other.keys()) < 0.25


def test_a_server_in_float16_refuses_bfloat16_and_serves_what_the_command_makes_of_it(
    start_module_server: Any, tiny_model: Path, tmp_path: Path
) -> None:
    server = start_module_server(tiny_model, "--dtype", "float16", "--max-model-len", "512")
    made = PatchMaker(load_model(tiny_model, dtype="bfloat16"))
    (policy,), (prompt, *_) = ids_of(made.model, [POLICY]), ids_of(made.model, PROMPTS)
    source = write_patch(made.of_token_ids("half", policy), tmp_path)
    server.wait_ready()
    refused = server.patches / "bfloat16.safetensors"
    refused.write_bytes(source.read_bytes())
    failure = wait_for_refusal(server)
    assert failure["code"] == failure["reason"] == "base_model_mismatch"
    assert (
        "dtype: expected float16, got bfloat16; `policypatch convert FILE --dtype float16"
        in failure["message"]
    )
    refused.unlink()
    for extra in ([], ["--model", str(tiny_model)]):
        out = tmp_path / f"out-{len(extra)}"
        assert main(["convert", str(source), "--dtype", "float16", *extra, "-o", str(out)]) == 0
        patch = read_patch(out / source.name)
        server.install(patch)
        answer = server.ask(prompt, patch="half", max_tokens=NUM_TOKENS)
        text = server.ask(policy + prompt, max_tokens=NUM_TOKENS)
        assert answer.digest == patch.digest
        first, other = answer.logprobs[0], text.logprobs[0]
        assert max(abs(first[i] - other[i]) for i in first.keys() & other.keys()) < 0.25
        assert answer.token_ids != server.ask(prompt, max_tokens=NUM_TOKENS).token_ids


def wait_for_refusal(server: Any) -> dict[str, str]:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if failures := server.client.get("/v1/patches").json()["failures"]:
            (failure,) = failures
            return dict(failure)
        time.sleep(0.05)
    raise AssertionError("the file is not refused")
