"""Figures on a terminal."""

import pytest

from server.commands.figures import ASCII_BLOCKS, columns, number, sparkline


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.123456, "0.123"), (2788, "2788"), (12345.0, "12345"), (0.0000283, "2.83e-05"), (1.0, "1")],
)
def test_numbers_have_three_digits_and_counts_all(value: float, text: str) -> None:
    assert number(value) == text


def test_a_curve_runs_from_its_lowest_to_its_highest_block() -> None:
    assert sparkline(range(8), 8) == "▁▂▃▄▅▆▇█"


def test_a_flat_curve_runs_through_the_middle_for_it_may_be_flat_at_its_best() -> None:
    assert sparkline([1.0, 1.0], 8) == "▅▅"


def test_a_long_curve_is_drawn_from_means() -> None:
    assert sparkline([0, 0, 7, 7, 0, 14], 3, ASCII_BLOCKS) == "_##"


def test_cells_of_a_column_stand_below_each_other_and_no_line_ends_in_spaces() -> None:
    assert columns([["a", "b", ""], ["long", "c", "d"]]) == ["a     b", "long  c  d"]
