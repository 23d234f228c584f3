"""Prompts that share nothing, and orders that favour nobody."""

from collections import Counter
from itertools import pairwise

import pytest

from bench.load.workloads import UserTurn, arm_orders, split_user_turn, user_prompts

TURN = UserTurn(head=(1, 2), tail=(3,), pool=tuple(range(100, 200)))


def draw(**changes: object) -> list[list[int]]:
    arguments = {"count": 20, "num_tokens": 40, "unique_within": 16, "seed": 0, "label": "a"}
    return user_prompts(TURN, **{**arguments, **changes})  # type: ignore[arg-type]


def test_user_turn_is_what_two_renderings_have_in_common() -> None:
    turn = split_user_turn([1, 2, 50, 3, 4], [1, 2, 60, 61, 3, 4], [7])
    assert turn == UserTurn(head=(1, 2), tail=(3, 4), pool=(7,))


def test_user_turn_head_and_tail_never_overlap() -> None:
    assert split_user_turn([1, 1], [1, 1, 1], []) == UserTurn((1, 1), (), ())


def test_user_turn_of_equal_renderings_is_refused() -> None:
    with pytest.raises(ValueError, match="another message"):
        split_user_turn([1, 2], [1, 2], [])


def test_prompts_have_exact_length_between_head_and_tail() -> None:
    for prompt in draw():
        assert len(prompt) == 40
        assert prompt[:2] == [1, 2]
        assert prompt[-1] == 3


def test_prompts_differ_within_the_first_block() -> None:
    beginnings = {tuple(prompt[:16]) for prompt in draw(count=500)}
    assert len(beginnings) == 500


def test_prompts_depend_on_seed_and_label_alone() -> None:
    assert draw() == draw()
    assert draw() != draw(seed=1)
    assert draw() != draw(label="b")


@pytest.mark.parametrize("changes", [{"num_tokens": 3}, {"unique_within": 5}], ids=str)
def test_prompts_without_room_to_differ_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        draw(**changes)


@pytest.mark.parametrize("num_arms", range(1, 8))
def test_every_arm_takes_every_position_equally_often(num_arms: int) -> None:
    names = [f"arm{i}" for i in range(num_arms)]
    num_rounds = num_arms * (1 + num_arms % 2)
    orders = arm_orders(names, num_rounds=num_rounds, seed=0, label="x")
    assert all(sorted(order) == names for order in orders)
    counts = Counter((position, name) for order in orders for position, name in enumerate(order))
    assert set(counts.values()) == {num_rounds // num_arms}


@pytest.mark.parametrize("num_arms", range(2, 8))
def test_every_arm_follows_every_other_equally_often(num_arms: int) -> None:
    names = [f"arm{i}" for i in range(num_arms)]
    num_rounds = num_arms * (1 + num_arms % 2)
    orders = arm_orders(names, num_rounds=num_rounds, seed=3, label="x")
    pairs = Counter(pair for order in orders for pair in pairwise(order))
    assert len(pairs) == num_arms * (num_arms - 1)
    assert len(set(pairs.values())) == 1


def test_orders_are_seeded() -> None:
    names = ["a", "b", "c", "d"]
    assert arm_orders(names, num_rounds=9, seed=1, label="x") == arm_orders(
        names, num_rounds=9, seed=1, label="x"
    )
    assert arm_orders(names, num_rounds=9, seed=1, label="x") != arm_orders(
        names, num_rounds=9, seed=2, label="x"
    )
