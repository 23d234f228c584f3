"""Rows, contexts and learning rates: functions of seed and step."""

from collections import Counter

import pytest

from patches.errors import TrainingError
from patches.train.config import TrainConfig
from patches.train.contexts import ALONE, sample_context
from patches.train.schedule import learning_rate, num_steps, rows_of_step, sample_rows


def test_an_epoch_takes_each_row_once_and_the_next_in_another_order() -> None:
    epochs = [[row for step in range(4) for row in rows_of_step(10, 3, step + 4 * e, "x")] for e in range(2)]
    assert num_steps(10, 3, 2) == 8
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 2
    assert epochs[0] != epochs[1]
    assert rows_of_step(10, 3, 5, "x") == rows_of_step(10, 3, 5, "x")
    assert rows_of_step(10, 3, 0, "y") != epochs[0][:3]


def test_a_sample_of_rows_keeps_their_order_and_differs_by_key() -> None:
    assert sample_rows(5, None, "x") == sample_rows(5, 9, "x") == list(range(5))
    chosen = sample_rows(100, 10, "x")
    assert len(set(chosen)) == 10
    assert chosen == sorted(chosen)
    assert chosen != sample_rows(100, 10, "y")


def test_learning_rates_by_hand() -> None:
    rates = [learning_rate(step, 10, 1.0, "linear", 0.0) for step in range(10)]
    assert rates == pytest.approx([1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    assert learning_rate(5, 10, 1.0, "cosine", 0.0) == pytest.approx(0.5)
    assert [learning_rate(step, 10, 0.3, "constant", 0.2) for step in range(4)] == pytest.approx(
        [0.1, 0.2, 0.3, 0.3]
    )


def test_contexts_of_every_size_are_as_frequent_and_every_order_comes() -> None:
    contexts = [sample_context(2, str(step)) for step in range(3000)]
    sizes = Counter(len(context.others) for context in contexts)
    assert all(900 < sizes[size] < 1100 for size in range(3))
    # Alone, one other on either side, and six orders of three.
    assert len(set(contexts)) == 1 + 4 + 6
    assert sample_context(2, "7") == contexts[7]
    assert sample_context(0, "7") == ALONE


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta": 0.0}, "beta: expected more than 0, got 0.0"),
        ({"stages": ()}, "stages: expected sft, dpo or sft,dpo"),
        ({"stages": ("dpo", "sft")}, "stages: expected sft, dpo or sft,dpo, got 'dpo,sft'"),
        ({"stages": ("dpo",)}, "dpo_reference: expected base, teacher or none"),
        ({"kind": "lora"}, "kind: expected prompt, prefix, steering, delta, got 'lora'"),
        ({"num_virtual_tokens": 5000}, "num_virtual_tokens: expected 1 to 4096"),
        ({"warmup": 1.0}, "warmup: expected at least 0 and less than 1"),
        ({"batch_size": 0}, "batch_size: expected at least 1"),
        ({"sft_learning_rate": float("nan")}, "sft_learning_rate: expected more than 0"),
    ],
)
def test_a_configuration_names_what_is_out_of_range(changes: dict[str, object], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        TrainConfig(**changes)  # type: ignore[arg-type]
