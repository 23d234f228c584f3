"""Slots of a span of positions, at every place where a block boundary can fall."""

import pytest

from prefix_kernels import slot_mapping_of_span

BLOCK = 4
BLOCK_IDS = [7, 2, 9, 5]


def _expected(first: int, stop: int) -> list[int]:
    return [BLOCK_IDS[p // BLOCK] * BLOCK + p % BLOCK for p in range(first, stop)]


@pytest.mark.parametrize(
    "stop", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK - 1, 2 * BLOCK, 2 * BLOCK + 1, 16]
)
@pytest.mark.parametrize("first", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK])
def test_slots_follow_the_blocks(first: int, stop: int) -> None:
    slots = slot_mapping_of_span(BLOCK_IDS[first // BLOCK :], first, stop, BLOCK)
    assert slots.tolist() == _expected(first, stop)


def test_blocks_past_the_end_are_not_used() -> None:
    assert slot_mapping_of_span([3, 999], 0, BLOCK, BLOCK).tolist() == [12, 13, 14, 15]


def test_too_few_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected 2 blocks for \[3, 5\), got 1"):
        slot_mapping_of_span([3], 3, 5, BLOCK)
