"""The model behind a prefix: what reaches a loss, and from where."""

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, MistralConfig

from patches.base_model import BaseModel
from patches.compile import compile_embeddings
from patches.join import join_kv, rotary_of_network
from patches.model import LoadedModel
from patches.train import forward, stages
from patches.train.contexts import ALONE, Context
from patches.train.data import PairSample, Sample
from patches.train.forward import answer_logits, make_trie, prefix_kv
from patches.train.sft import answer_logprobs, token_logprobs
from patches.train.soft_prefix import SoftPrefix
from patches.train.stages import Benign, Sft


@pytest.fixture
def embeddings() -> torch.Tensor:
    return torch.randn(6, 32, generator=torch.Generator().manual_seed(3)) * 0.5


@pytest.fixture
def make_windowed_model() -> Callable[[str, int], LoadedModel]:
    """Two layers, which see so many tokens: of Gemma the first one alone does, of Mistral both."""

    def make(kind: str, window: int) -> LoadedModel:
        config: Any = Gemma3TextConfig if kind == "gemma3" else MistralConfig
        types = {"layer_types": ["sliding_attention", "full_attention"]} if kind == "gemma3" else {}
        torch.manual_seed(0)
        network = AutoModelForCausalLM.from_config(
            config(
                vocab_size=64,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=8,
                initializer_range=0.5,
                sliding_window=window,
                **types,
            )
        )
        return LoadedModel(cast(BaseModel, None), network.eval(), None)

    return make


def logprobs_of_one_sequence(model: LoadedModel, embeddings: torch.Tensor, sample: Sample) -> torch.Tensor:
    """The answer's log-probabilities when prefix, prompt and answer are one sequence of embeddings."""
    ids = torch.tensor(sample.prompt_ids + sample.answer_ids)
    with torch.no_grad():
        rows = torch.cat([embeddings, model.network.get_input_embeddings()(ids)])
        logits = model.network(inputs_embeds=rows[None]).logits[0]
    start = len(embeddings) + len(sample.prompt_ids) - 1
    return token_logprobs(logits[start:-1], torch.tensor(sample.answer_ids))


def answer_sums(model: LoadedModel, embeddings: torch.Tensor | None, rows: list[Sample]) -> torch.Tensor:
    with torch.no_grad():
        kv = None if embeddings is None else prefix_kv(model.network, embeddings)
        output = answer_logits(model.network, kv, rows)
    return answer_logprobs(output.logits, output.labels, output.rows, len(rows))


@pytest.mark.parametrize("has_prefix", [True, False])
@pytest.mark.parametrize("max_tokens", [1, 8, 1024])
def test_answers_have_the_logprobs_of_one_sequence_with_the_prefix_in_front(
    tiny_model: LoadedModel,
    embeddings: torch.Tensor,
    samples: list[PairSample],
    has_prefix: bool,
    max_tokens: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever is read beside a row, and in how many parts all rows are read."""
    monkeypatch.setattr(forward, "_MAX_TRIE_TOKENS", max_tokens)
    head = Sample((5, 6), (7, 8))
    rows = [answer for pair in samples for answer in (pair.chosen, pair.rejected)] + [head, head]
    sums = answer_sums(tiny_model, embeddings if has_prefix else None, rows)
    front = embeddings if has_prefix else torch.zeros(0, 32)
    expected = [logprobs_of_one_sequence(tiny_model, front, row).sum() for row in rows]
    assert torch.allclose(sums, torch.stack(expected), atol=1e-4)


def test_what_rows_begin_with_is_read_once() -> None:
    rows = [Sample((9, 8, 5), (3, 8)), Sample((9, 8, 5), (4, 13, 1)), Sample((9, 8, 5), (3, 7))]
    trie = make_trie(rows)
    assert trie.input_ids.tolist() == [9, 8, 5, 3, 4, 13]
    assert trie.positions.tolist() == [0, 1, 2, 3, 3, 4]
    assert trie.sees.nonzero().tolist() == [
        *([0, 0], [1, 0], [1, 1], [2, 0], [2, 1], [2, 2]),
        *([3, 0], [3, 1], [3, 2], [3, 3]),
        *([4, 0], [4, 1], [4, 2], [4, 4], [5, 0], [5, 1], [5, 2], [5, 4], [5, 5]),
    ]
    assert trie.predicted_at.tolist() == [2, 3, 2, 4, 5, 2, 3]
    assert trie.labels.tolist() == [3, 8, 4, 13, 1, 3, 7]


def test_what_one_row_answers_and_another_asks_is_read_twice() -> None:
    """Only an answer's tokens are steered, from the last one of the prompt on."""
    trie = make_trie([Sample((9, 8, 5), (3, 7)), Sample((9, 8), (5, 3, 7))])
    assert trie.input_ids.tolist() == [9, 8, 5, 3, 8, 5, 3]
    assert trie.predicted_at.tolist() == [2, 3, 4, 5, 6]


@pytest.mark.parametrize("kind", ["gemma3", "mistral"])
def test_a_sliding_window_ends_where_the_model_ends_it(
    kind: str, make_windowed_model: Callable[[str, int], LoadedModel], embeddings: torch.Tensor
) -> None:
    model = make_windowed_model(kind, 4)
    rows = [Sample((5, 6, 7, 9, 11), (8, 9, 1)), Sample((5, 6, 7), (10, 12, 13, 4, 3))]
    expected = [logprobs_of_one_sequence(model, embeddings, row).sum() for row in rows]
    assert torch.allclose(answer_sums(model, embeddings, rows), torch.stack(expected), atol=1e-4)
    # The window matters: without one these rows have other values.
    wide = make_windowed_model(kind, 64)
    assert not torch.allclose(answer_sums(wide, embeddings, rows), torch.stack(expected), atol=1e-3)


def test_without_a_prefix_the_model_is_itself(tiny_model: LoadedModel, samples: list[PairSample]) -> None:
    sample = samples[0].chosen
    with torch.no_grad():
        output = answer_logits(tiny_model.network, None, [sample])
    expected = logprobs_of_one_sequence(tiny_model, torch.zeros(0, 32), sample)
    assert torch.allclose(token_logprobs(output.logits, output.labels), expected, atol=1e-5)


def test_prefix_kv_is_what_a_compiled_patch_holds(tiny_model: LoadedModel, embeddings: torch.Tensor) -> None:
    kv = prefix_kv(tiny_model.network, embeddings)
    stacked = torch.stack([torch.stack([k[0], v[0]]) for k, v in kv]).transpose(2, 3)
    # Training computes in float32, compiling in float64.
    compiled = compile_embeddings(tiny_model.network, embeddings)
    torch.testing.assert_close(stacked, compiled, rtol=0, atol=1e-4)


def test_only_answer_tokens_have_labels(samples: list[PairSample], tiny_model: LoadedModel) -> None:
    kv = prefix_kv(tiny_model.network, torch.zeros(4, 32))
    output = answer_logits(tiny_model.network, kv, [pair.chosen for pair in samples])
    labelled = [output.labels[output.rows == row].tolist() for row in range(len(samples))]
    assert labelled == [list(pair.chosen.answer_ids) for pair in samples]


def test_the_loss_ignores_prompt_and_prefix(
    tiny_model: LoadedModel, samples: list[PairSample], embeddings: torch.Tensor
) -> None:
    """A row costs the same alone and beside others; nothing before an answer costs anything."""
    prefix = SoftPrefix(tiny_model.network, "prompt", embeddings)
    objective = Sft(tiny_model.network, samples)
    total = objective.total_of(range(3))
    assert total == sum(len(pair.chosen.answer_ids) for pair in samples)
    together, _ = objective.shares(range(3), prefix, ALONE, total)
    alone = torch.stack([objective.shares([row], prefix, ALONE, total)[0] for row in range(3)]).sum()
    by_hand = -torch.cat([logprobs_of_one_sequence(tiny_model, embeddings, p.chosen) for p in samples]).sum()
    assert together.item() == pytest.approx(alone.item(), abs=1e-5)
    assert together.item() == pytest.approx(by_hand.item() / total, abs=1e-4)


def test_only_the_prefix_learns(
    tiny_model: LoadedModel, samples: list[PairSample], embeddings: torch.Tensor
) -> None:
    prefix = SoftPrefix(tiny_model.network, "prompt", embeddings, [torch.ones(2, 32)])
    loss, _ = Sft(tiny_model.network, samples).shares([0, 1], prefix, Context(before=(0,)), 5)
    loss.backward()  # type: ignore[no-untyped-call]
    assert prefix.values.grad is not None
    assert (prefix.values.grad.abs().sum(1) > 0).all()
    assert all(parameter.grad is None for parameter in tiny_model.network.parameters())


def test_a_context_puts_others_in_their_order(tiny_model: LoadedModel, embeddings: torch.Tensor) -> None:
    others = [torch.full((2, 32), 0.3), torch.full((3, 32), -0.2)]
    prefix = SoftPrefix(tiny_model.network, "prompt", embeddings, others)
    with torch.no_grad():
        kv = prefix.patched(Context(before=(1,), after=(0,)))
        expected = prefix_kv(tiny_model.network, torch.cat([others[1], embeddings, others[0]]))
    assert all(torch.equal(k, e) for (k, _), (e, _) in zip(kv, expected, strict=True))
    without = prefix.unpatched(Context(before=(1,), after=(0,)))
    assert without is not None
    assert without[0][0].shape[2] == 5
    assert prefix.unpatched(ALONE) is None


def test_kind_prefix_stands_beside_the_kv_of_others(
    tiny_model: LoadedModel, embeddings: torch.Tensor
) -> None:
    kv, *others = (
        compile_embeddings(tiny_model.network, rows) for rows in (embeddings, *torch.ones(2, 2, 32))
    )
    prefix = SoftPrefix(tiny_model.network, "prefix", kv, others)
    rotary = rotary_of_network(tiny_model.network, kv.shape[-1])
    context = Context(before=(1,), after=(0,))
    with torch.no_grad():
        patched, expected = prefix.patched(context), join_kv([others[1], kv, others[0]], rotary)
        keys = torch.stack([keys[0] for keys, _ in patched]).transpose(1, 2)
    assert torch.equal(keys, expected[:, 0])
    unpatched = prefix.unpatched(context)
    assert unpatched is not None
    assert unpatched[0][0].shape[2] == 4
    assert prefix.patched(ALONE)[0][0].shape[2] == len(embeddings)


def test_kind_prefix_stands_behind_its_own_kv(
    tiny_model: LoadedModel, embeddings: torch.Tensor, samples: list[PairSample]
) -> None:
    kv = compile_embeddings(tiny_model.network, embeddings)
    as_kv = SoftPrefix(tiny_model.network, "prefix", kv)
    as_rows = SoftPrefix(tiny_model.network, "prompt", embeddings)
    objective = Sft(tiny_model.network, samples)
    losses = [objective.shares([0, 1, 2], prefix, ALONE, 1)[0] for prefix in (as_kv, as_rows)]
    assert losses[0].item() == pytest.approx(losses[1].item(), abs=1e-4)
    losses[0].backward()  # type: ignore[no-untyped-call]
    assert as_kv.values.grad is not None
    assert as_kv.values.grad.abs().sum() > 0


def test_a_benign_loss_is_nothing_where_the_prefix_changes_nothing(
    tiny_model: LoadedModel, samples: list[PairSample], embeddings: torch.Tensor
) -> None:
    benign = Benign(tiny_model.network, [pair.chosen for pair in samples])
    prefix = SoftPrefix(tiny_model.network, "prompt", embeddings)
    loss, _ = benign.shares([0, 1], prefix, ALONE, 5)
    assert loss.item() > 0.01
    again, _ = benign.shares([0, 1], _Silent(tiny_model.network, "prompt", embeddings), ALONE, 5)
    assert again.item() == pytest.approx(0, abs=1e-6)


def test_a_document_among_chats_costs_what_each_costs_alone(
    tiny_model: LoadedModel, samples: list[PairSample], embeddings: torch.Tensor
) -> None:
    document = Sample((5,), (7, 3, 9, 2))
    benign = Benign(tiny_model.network, [samples[0].chosen, document, samples[1].chosen])
    prefix = SoftPrefix(tiny_model.network, "prompt", embeddings)
    together, _ = benign.shares([0, 1, 2], prefix, ALONE, 10)
    alone = [benign.shares([row], prefix, ALONE, 10)[0].item() for row in range(3)]
    assert min(alone) > 0
    assert together.item() == pytest.approx(sum(alone), rel=1e-5)


@pytest.mark.parametrize("num_kept", [0, 2, 3])
def test_what_the_model_says_by_itself_is_read_once_where_there_is_room(
    tiny_model: LoadedModel,
    samples: list[PairSample],
    embeddings: torch.Tensor,
    num_kept: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [pair.chosen for pair in samples]
    vocabulary = tiny_model.network.config.vocab_size
    room = sum(len(row.answer_ids) for row in rows[:num_kept]) * vocabulary * 4
    monkeypatch.setattr(stages, "_MAX_KEPT_BYTES", room)
    read: list[int] = []

    def count(network: object, kv: object, samples: list[Sample]) -> object:
        read.append(len(samples))
        return answer_logits(network, kv, samples)  # type: ignore[arg-type]

    monkeypatch.setattr(stages, "answer_logits", count)
    benign, prefix = Benign(tiny_model.network, rows), SoftPrefix(tiny_model.network, "prompt", embeddings)
    first = benign.shares([0, 1], prefix, ALONE, 5)[0]
    again = benign.shares([0, 1], prefix, ALONE, 5)[0]
    assert again.item() == first.item()
    assert read == ([1, 1, 2, 2] if num_kept else [2, 2, 2, 2])
    assert len(benign.shares([2], prefix, ALONE, 3)) == 2
    assert read[4:] == [1, 1]


class _Silent(SoftPrefix):
    """A prefix that is not there."""

    def patched(self, context: Context):  # type: ignore[no-untyped-def]
        return self.unpatched(context)
