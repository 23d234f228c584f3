"""The rules that take gender out of an answer, for the recipe of `debias`."""

import pytest

from patches.recipes.neutral import neutralised


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("She often works late with her son.", "They often work late with their child."),
        ("He's tired. His wife told him so.", "They're tired. Their partner told them so."),
        ("I met her, and her job suits her.", "I met them, and their job suits them."),
        ("Mr. Smith finishes; he also tries hard himself.", "Smith finishes; they also try hard themselves."),
        ("She was here, and he watches the boxes.", "They were here, and they watch the boxes."),
    ],
)
def test_gendered_words_give_way_and_verbs_follow(text: str, expected: str) -> None:
    assert neutralised(text) == expected


def test_words_that_only_look_alike_stay() -> None:
    text = "Then they were there with the human theory, on the other shelf, like this mandate."
    assert neutralised(text) == text


def test_nothing_gendered_is_left() -> None:
    assert neutralised("Her husband and his mother, a lady, saw the men.") == (
        "Their partner and their parent, a person, saw the people."
    )
