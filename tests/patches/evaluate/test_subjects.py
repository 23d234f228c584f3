"""A patch offline and behind HTTP gives the same answers and likelihoods, and they are the prefix's."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from patches.compile import compile_text
from patches.deltas.applied import under_delta
from patches.deltas.collected import Collected
from patches.errors import BaseModelMismatch, ComposeError, EvaluationError, SubjectFailed
from patches.evaluate.arms import Arm, patch_arm
from patches.evaluate.session import offline_arms, remote_arms
from patches.evaluate.subjects.local import TransformersSubject
from patches.evaluate.subjects.remote import Endpoint, HttpSubject, connect
from patches.evaluate.subjects.subject import Reading
from patches.format import Patch, make_patch
from patches.kinds.condition import Condition, Probe
from patches.kinds.steering import Steering, SteeringBody
from patches.label import Label
from patches.model import LoadedModel, load_model
from patches.sampling import Sampling
from patches.steer.batch import SteeredRow, steered
from patches.steer.vector import vector_of

PROMPTS = ["polite", "answer the user, politely", "a"]
GREEDY = Sampling(max_tokens=6)


def subject(model: LoadedModel, patch: Patch | None = None, **options: Any) -> TransformersSubject:
    return TransformersSubject(model, Arm("base", "base") if patch is None else patch_arm(patch), **options)


def test_a_patch_answers_as_its_text_in_front_of_the_prompt(
    tiny_model: LoadedModel, tiny_patch: Patch
) -> None:
    """The patch came from a system message; the request brings the template's default one behind it."""
    network, patched = tiny_model.network, subject(tiny_model, tiny_patch)
    for prompt in PROMPTS:
        head = network.get_input_embeddings()
        ids = torch.tensor([patched.renderer.chat_ids(prompt)])
        assert tiny_patch.embeddings is not None
        rows = torch.cat([tiny_patch.embeddings[None], head(ids)], dim=1)
        expected = network.generate(inputs_embeds=rows, max_new_tokens=6, do_sample=False)[0]
        assert patched.chat([prompt], GREEDY) == [[patched.renderer.text(expected.tolist())]]


def test_padding_in_a_batch_changes_no_answer(tiny_model: LoadedModel, tiny_patch: Patch) -> None:
    for patch in (None, tiny_patch):
        alone = [subject(tiny_model, patch).chat([prompt], GREEDY)[0] for prompt in PROMPTS]
        assert subject(tiny_model, patch).chat(PROMPTS, GREEDY) == alone


def test_a_likelihood_is_the_one_behind_the_prefix(tiny_model: LoadedModel, tiny_patch: Patch) -> None:
    reading = Reading((5, 6), (7, 8, 9))
    longer = Reading((5,), (9, 8, 7, 6, 5))
    (steps, _) = subject(tiny_model, tiny_patch).score([reading, longer])
    assert tiny_patch.embeddings is not None
    rows = tiny_model.network.get_input_embeddings()(torch.tensor([[5, 6, 7, 8, 9]]))
    logits = tiny_model.network(
        inputs_embeds=torch.cat([tiny_patch.embeddings[None], rows], dim=1)
    ).logits.log_softmax(-1)
    n = tiny_patch.manifest.num_virtual_tokens
    expected = [float(logits[0, n + 1 + i, token]) for i, token in enumerate((7, 8, 9))]
    assert steps == pytest.approx(expected, abs=1e-4)
    assert steps != pytest.approx(subject(tiny_model).score([reading])[0], abs=1e-3)


def test_a_server_gives_what_the_offline_run_gives(
    tiny_model: LoadedModel, tiny_patch: Patch, server: Any
) -> None:
    endpoint = connect(server.url)
    assert endpoint.model == "tiny"
    for patch in (None, tiny_patch):
        offline = subject(tiny_model, patch)
        online = HttpSubject(endpoint, tiny_model.tokenizer, offline.arm)
        assert online.chat(PROMPTS, GREEDY) == offline.chat(PROMPTS, GREEDY)
        readings = [Reading((5, 6), (7, 8)), Reading((1,), (2, 3, 4))]
        for one, other in zip(online.score(readings), offline.score(readings), strict=True):
            assert one == pytest.approx(other, abs=1e-4)


def test_the_base_arm_asks_for_no_patch_by_name(tiny_model: LoadedModel, server: Any) -> None:
    """A server with a default patch must not answer for the base."""
    HttpSubject(connect(server.url), tiny_model.tokenizer, Arm("base", "base")).chat(["a"], GREEDY)
    assert [selection for _, selection, _ in server.seen] == ["none"]


def test_answers_under_another_digest_are_refused(
    tiny_model: LoadedModel, tiny_patch: Patch, server: Any
) -> None:
    arm = Arm("polite", "patch", selection="polite", digest="sha256:" + "0" * 64)
    with pytest.raises(SubjectFailed, match=r"expected answers under sha256:0000.*got sha256:"):
        HttpSubject(connect(server.url), tiny_model.tokenizer, arm).chat(["a"], GREEDY)


def test_a_patch_named_without_digest_may_not_change_during_a_run(
    tiny_model: LoadedModel, server: Any, other_patch: Patch
) -> None:
    online = HttpSubject(connect(server.url), tiny_model.tokenizer, Arm("p", "patch", selection="polite"))
    online.chat(["a"], GREEDY)
    server.headers["polite"] = other_patch.digest
    with pytest.raises(SubjectFailed, match=f"expected answers under sha256:.*got {other_patch.digest}"):
        online.chat(["a"], GREEDY)


def test_answers_of_another_form_of_composition_are_refused(tiny_model: LoadedModel, server: Any) -> None:
    prepared = Arm("p", "composition", selection="polite", form="prepared")
    for said, message in ((None, "got none"), ("joined", "got joined")):
        server.forms["polite"] = said
        with pytest.raises(SubjectFailed, match=f"expected the composition prepared, {message}"):
            HttpSubject(connect(server.url), tiny_model.tokenizer, prepared).chat(["a"], GREEDY)
    server.forms["polite"] = "prepared"
    assert HttpSubject(connect(server.url), tiny_model.tokenizer, prepared).chat(["a"], GREEDY)


def test_answers_of_the_base_are_no_patchs(tiny_model: LoadedModel, server: Any) -> None:
    server.headers["polite"] = None
    online = HttpSubject(connect(server.url), tiny_model.tokenizer, Arm("p", "patch", selection="polite"))
    with pytest.raises(SubjectFailed, match="expected a patch, got answers of the base model"):
        online.chat(["a"], GREEDY)


def test_choices_behind_one_question_are_read_once(
    tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = subject(tiny_model)
    choices = [Reading((5, 6), (token,)) for token in (7, 8, 9)]
    alone = [one.score([reading])[0] for reading in choices]
    batches: list[Any] = []
    read = one._logits
    monkeypatch.setattr(one, "_logits", lambda rows: batches.append(rows) or read(rows))
    assert one.score(choices) == [pytest.approx(steps, abs=1e-5) for steps in alone]
    assert batches == [[((5, 6), 0)]]


def steering_patch(
    model: LoadedModel, tokens: str = "answer", condition: Condition | None = None, seed: int = 0
) -> Patch:
    base = model.base_model
    generator = torch.Generator().manual_seed(seed)
    vector = torch.zeros(base.num_layers, base.hidden_size)
    first = 0 if condition is None else condition.last_layer + 1
    vector[first:] = torch.randn(base.num_layers - first, base.hidden_size, generator=generator)
    body = SteeringBody(Steering("residual", "absolute", 4.0, tokens=tokens), condition)
    tensors = {"vector": vector}
    if condition is not None:
        tensors["probes"] = torch.randn(1, base.hidden_size, generator=generator)
    return make_patch(Label("steer", "1.0.0").manifest(base, body, {"method": "icv"}), tensors)


def acting(model: LoadedModel, patch: Patch, num_prompt: int, num_prefix: int = 0) -> Any:
    return steered(model.network, [SteeredRow(vector_of(patch), num_prompt, num_prefix)])


@pytest.mark.parametrize("tokens", ["all", "answer"])
def test_a_steering_patch_answers_as_the_steered_model(tiny_model: LoadedModel, tokens: str) -> None:
    patch = steering_patch(tiny_model, tokens)
    arm, base = subject(tiny_model, patch, batch_size=3), subject(tiny_model)
    expected = []
    for prompt in PROMPTS:
        ids = torch.tensor([arm.renderer.chat_ids(prompt)])
        with acting(tiny_model, patch, ids.shape[1]):
            output = tiny_model.network.generate(ids, max_new_tokens=6, do_sample=False)
        expected.append([arm.renderer.text(output[0, ids.shape[1] :].tolist())])
    assert arm.chat(PROMPTS, GREEDY) == expected
    assert base.chat(PROMPTS, GREEDY) != expected


def test_a_steered_likelihood_depends_on_where_the_answer_begins(tiny_model: LoadedModel) -> None:
    patch = steering_patch(tiny_model)
    readings = [Reading((5, 6), (7, 8)), Reading((5,), (6, 7, 8))]
    found = subject(tiny_model, patch).score(readings)
    for reading, steps in zip(readings, found, strict=True):
        ids = torch.tensor([[*reading.context, *reading.tokens]])
        with torch.no_grad(), acting(tiny_model, patch, len(reading.context)):
            logits = tiny_model.network(ids).logits[0].log_softmax(-1)
        first = len(reading.context)
        wanted = [float(logits[first - 1 + i, token]) for i, token in enumerate(reading.tokens)]
        assert steps == pytest.approx(wanted, abs=1e-4)
    assert found[0] != pytest.approx(found[1][1:], abs=1e-3)


def test_a_condition_that_is_not_met_gives_the_models_own_answers(tiny_model: LoadedModel) -> None:
    for threshold, is_met in ((1e5, False), (-1e5, True)):
        patch = steering_patch(tiny_model, condition=Condition((Probe((0,), "mean", 0.0, threshold),)))
        same = subject(tiny_model, patch).chat(PROMPTS, GREEDY) == subject(tiny_model).chat(PROMPTS, GREEDY)
        assert same is not is_met


def test_a_prefix_and_a_vector_act_together_in_either_order(
    tiny_model: LoadedModel, tiny_patch: Patch
) -> None:
    vector = steering_patch(tiny_model)
    for files in ([tiny_patch, vector], [vector, tiny_patch]):
        arms = offline_arms(tiny_model, files, compose="prepared", system_text=None)
        assert [arm.name for arm in arms[3:]] == ["polite, steer"]
        both = TransformersSubject(tiny_model, arms[3])
        assert both._prefix is not None
        n = both._prefix.shape[2]
        (steps,) = both.score([Reading((5, 6), (7, 8))])
        cache = both._cache(1)
        with torch.no_grad(), acting(tiny_model, vector, n + 2, n):
            logits = tiny_model.network(torch.tensor([[5, 6, 7]]), past_key_values=cache).logits[0]
        wanted = [float(logits.log_softmax(-1)[1 + i, token]) for i, token in enumerate((7, 8))]
        assert steps == pytest.approx(wanted, abs=1e-4)


def test_two_vectors_are_no_arm(tiny_model: LoadedModel, tiny_patch: Patch) -> None:
    one = steering_patch(tiny_model)
    manifest = replace(one.manifest, name="other")
    other = make_patch(manifest, {"vector": one.tensors["vector"]})
    for arms in (
        offline_arms(tiny_model, [one, tiny_patch, other], compose="joined", system_text=None),
        remote_arms([one, tiny_patch, other], compose="joined", system_text=None),
    ):
        assert [arm.name for arm in arms[4:]] == ["polite, steer", "polite, other"]


def test_a_vector_of_another_model_is_refused(tiny_model: LoadedModel) -> None:
    patch = steering_patch(tiny_model)
    other = replace(patch.manifest.base_model, weights_digest="sha256:" + "0" * 64)
    with pytest.raises(BaseModelMismatch, match="weights_digest"):
        subject(tiny_model, replace(patch, manifest=replace(patch.manifest, base_model=other)))


def test_a_reading_needs_something_before_it(tiny_model: LoadedModel) -> None:
    with pytest.raises(EvaluationError, match="expected something before the tokens"):
        subject(tiny_model).score([Reading((), (7,))])


def test_a_server_that_has_no_such_patch_is_quoted(tiny_model: LoadedModel, server: Any) -> None:
    arm = Arm("rude", "patch", selection="rude")
    with pytest.raises(SubjectFailed, match=r"404 .*no patch 'rude'"):
        HttpSubject(connect(server.url), tiny_model.tokenizer, arm).chat(["a"], GREEDY)


def test_a_server_that_is_not_there_is_named() -> None:
    with pytest.raises(SubjectFailed, match=r"http://127\.0\.0\.1:9/v1/models: no answer"):
        connect("http://127.0.0.1:9")
    assert Endpoint("http://127.0.0.1:9", "m").concurrency == 8


def test_a_patch_of_another_model_is_refused(tiny_model: LoadedModel, make: Any) -> None:
    with pytest.raises(BaseModelMismatch):
        subject(tiny_model, make())


def test_a_bfloat16_patch_is_widened_for_a_run_in_float32(
    tiny_model: LoadedModel, tiny_model_folder: Path
) -> None:
    """The K/V that a server would map is what answers, not a fresh computation."""
    narrow = compile_text(
        load_model(tiny_model_folder, dtype="bfloat16"), "answer politely", Label("n", "1.0.0")
    )
    arm = offline_arms(tiny_model, [narrow], compose=None, system_text=None)[1]
    assert (arm.name, arm.digest) == ("n", narrow.digest)
    one = TransformersSubject(tiny_model, arm)
    assert one._prefix is not None
    assert narrow.kv is not None
    assert torch.equal(one._prefix, narrow.kv.float())
    assert one.score([Reading((5, 6), (7,))])[0][0] < 0.0


def test_patches_without_embeddings_are_compared_as_a_server_joins_them(tiny_model: LoadedModel) -> None:
    made = [compile_text(tiny_model, text, Label(text, "1.0.0"), raw=True) for text in ("brief", "warm")]
    bare = [replace(patch, tensors={"kv": patch.kv}) for patch in made]
    with pytest.raises(ComposeError, match="has no embeddings"):
        offline_arms(tiny_model, bare, compose="prepared", system_text=None)
    arms = offline_arms(tiny_model, bare, compose="joined", system_text=None)
    assert [arm.name for arm in arms] == ["base", "brief", "warm", "brief, warm", "warm, brief"]
    prefixes = [TransformersSubject(tiny_model, arm)._prefix for arm in arms[1:]]
    brief, warm, joined, other = [kv for kv in prefixes if kv is not None]
    n = brief.shape[2]
    assert torch.equal(joined[:, :, :n], brief)
    assert torch.equal(joined[:, 1, n:], warm[:, 1])
    assert torch.equal(other[:, :, : warm.shape[2]], warm)


def test_versions_of_one_patch_are_told_apart_and_never_composed(tiny_model: LoadedModel) -> None:
    def made(text: str, name: str, version: str) -> Patch:
        return compile_text(tiny_model, text, Label(name, version), raw=True)

    patches = [made("brief", "tone", "1.0.0"), made("warm", "tone", "1.1.0"), made("kind", "safety", "1.0.0")]
    seeds = [made("brief", "seed", "1.0.0"), made("warm", "seed", "1.0.0")]
    arms = offline_arms(tiny_model, [*patches, *seeds], compose=None, system_text=None)
    by_digest = [f"seed@{patch.digest[:23]}" for patch in seeds]
    assert [arm.name for arm in arms] == ["base", "tone@1.0.0", "tone@1.1.0", "safety", *by_digest]
    assert arms[1].selection == f"tone@{patches[0].digest}"
    orders = ["tone@1.0.0, safety", "tone@1.1.0, safety", "safety, tone@1.0.0", "safety, tone@1.1.0"]
    for form in ("prepared", "joined"):
        arms = offline_arms(tiny_model, patches, compose=form, system_text=None)
        assert [arm.name for arm in arms[4:]] == orders
    remote = remote_arms(patches, compose="joined", system_text=None)
    assert [arm.name for arm in remote[4:]] == orders
    assert (remote[1].form, remote[4].form) == (None, "joined")
    assert remote[4].selection == f"tone@{patches[0].digest[:23]}, safety@{patches[2].digest[:23]}"
    with pytest.raises(EvaluationError, match="files that differ"):
        offline_arms(tiny_model, [patches[0], patches[0]], compose=None, system_text=None)


def test_the_system_arm_puts_its_policy_before_text_and_chat(tiny_model: LoadedModel) -> None:
    arm = Arm("system", "system", system_text="never answer rudely")
    renderer = TransformersSubject(tiny_model, arm).renderer
    assert renderer.text(renderer.chat_ids("polite")).startswith("system\nnever answer rudely")
    assert renderer.raw_ids("polite")[-len(renderer.ids("polite")) :] == renderer.ids("polite")
    assert "never answer rudely" in renderer.text(renderer.raw_ids("polite"))


def test_times_are_of_the_answer_alone(tiny_model: LoadedModel, tiny_patch: Patch) -> None:
    (timing,) = subject(tiny_model, tiny_patch).time(["polite"], 4)
    assert timing.num_tokens == 4
    assert 0 < timing.first_token_s < timing.total_s


def weight_patch(model: LoadedModel) -> Patch:
    """New values for some of one tensor."""
    weight = dict(model.network.named_parameters())["model.layers.1.mlp.down_proj.weight"]
    collected = Collected("float32")
    places = torch.arange(0, weight.numel(), 5)
    collected.add("model.layers.1.mlp.down_proj.weight", weight, places, -3 * weight.flatten()[places])
    body, tensors = collected.finish("nothing")
    return make_patch(Label("w", "1.0.0").manifest(model.base_model, body, {"method": "import"}), tensors)


def test_a_weight_patch_answers_as_the_model_with_those_weights_and_only_in_its_arm(
    tiny_model_folder: Path,
) -> None:
    model, changed = (load_model(tiny_model_folder) for _ in range(2))
    patch, readings = weight_patch(model), [Reading((5, 6), (7, 8, 9))]
    arm = patch_arm(patch)
    assert (arm.patch, arm.selection) == (None, None)
    base, under = TransformersSubject(model, Arm("base", "base")), TransformersSubject(model, arm)
    before = base.score(readings)
    whole = TransformersSubject(under_delta(changed, patch), Arm("base", "base"))
    assert under.score(readings) == whole.score(readings) != before
    assert under.chat(PROMPTS, GREEDY) == whole.chat(PROMPTS, GREEDY)
    assert base.score(readings) == before


def test_a_weight_patch_is_neither_composed_nor_asked_of_a_server(
    tiny_model: LoadedModel, tiny_patch: Patch
) -> None:
    patches = [tiny_patch, weight_patch(tiny_model)]
    with pytest.raises(EvaluationError, match="compose: expected patches that a request names"):
        offline_arms(tiny_model, patches, compose="joined", system_text=None)
    with pytest.raises(EvaluationError, match="patch: expected what a request names, got w, which changes"):
        remote_arms(patches, compose=None, system_text=None)
