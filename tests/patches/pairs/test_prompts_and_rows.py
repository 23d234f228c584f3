"""Files of prompts and of pairs: what is read, what is left out, what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from patches.errors import PairsError
from patches.pairs.prompts import prompt_id, read_prompts, under_policy
from patches.pairs.rows import PairRow, decode_row, encode_row, read_pairs


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def test_prompts_of_every_form_are_one_conversation(tmp_path: Path) -> None:
    user = {"role": "user", "content": "hello"}
    rows = [
        {"prompt": "hello"},
        {"text": " hello "},
        {"prompt": [user]},
        {"messages": [user, {"role": "assistant", "content": "hi"}]},
    ]
    ids = {read_prompts(write(tmp_path / "a.jsonl", [row])).prompts[0].id for row in rows}
    ids.add(read_prompts(write(tmp_path / "a.txt", ["hello"])).prompts[0].id)
    (tmp_path / "a.json").write_text('["hello"]')
    ids.add(read_prompts(tmp_path / "a.json").prompts[0].id)
    assert ids == {prompt_id([user])}


def test_empty_and_repeated_prompts_are_counted(tmp_path: Path) -> None:
    read = read_prompts(write(tmp_path / "a.txt", ["one", "", "two", "one", "  "]))
    assert [prompt.messages[0]["content"] for prompt in read.prompts] == ["one", "two"]
    assert (read.num_rows, read.num_empty, read.num_duplicates) == (5, 2, 1)


def test_line_separators_inside_json_strings_do_not_cut_a_row(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "one\u2028two"}\n', "utf-8")
    assert read_prompts(tmp_path / "a.jsonl").prompts[0].messages[0]["content"] == "one\u2028two"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["", " "], "expected at least one prompt, got 2 rows"),
        ([{"question": "x"}], "row 1: expected one of the keys prompt, messages, text, got question"),
        ([{"prompt": 3}], "row 1: expected text or a list of messages, got int"),
        ([{"prompt": [{"role": "tool", "content": "x"}]}], "row 1: expected messages of a role"),
        (["{"], "expected JSON"),
    ],
)
def test_what_is_no_prompt_is_named_with_its_row(rows: list[Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / ("a.txt" if rows[0] == "" else "a.jsonl")
    with pytest.raises(PairsError, match=message):
        read_prompts(write(path, rows))


def test_a_policy_goes_in_front_of_a_system_message_that_is_there() -> None:
    user = {"role": "user", "content": "hello"}
    assert under_policy([user], "Be kind.\n") == ({"role": "system", "content": "Be kind."}, user)
    both = under_policy([{"role": "system", "content": "Be brief."}, user], "Be kind.")
    assert both == ({"role": "system", "content": "Be kind.\n\nBe brief."}, user)


def test_a_row_comes_back_as_it_was() -> None:
    scores = {"scorer": "refusal", "chosen": 0.0, "rejected": 1.0}
    row = PairRow("x-0", ({"role": "user", "content": "hi"},), "no", "yes", "train", True, False, scores)
    assert decode_row(json.loads(encode_row(row)), "row") == row


def test_rows_made_elsewhere_need_only_trls_keys(tmp_path: Path) -> None:
    (row,) = read_pairs(write(tmp_path / "a.jsonl", [{"prompt": "hi", "chosen": "no", "rejected": "yes"}]))
    assert (row.chosen, row.rejected, row.split, row.is_chosen_finished) == ("no", "yes", None, True)


def test_a_prompt_that_both_answers_begin_with_is_read_as_trl_reads_it(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    answers = [{"role": "assistant", "content": answer} for answer in ("no", "yes")]
    document = {"chosen": [*turns, answers[0]], "rejected": [*turns, answers[1]]}
    (row,) = read_pairs(write(tmp_path / "a.jsonl", [document]))
    assert (list(row.prompt), row.chosen, row.rejected) == (turns, "no", "yes")


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"prompt": "x"}, "row 1: lacks chosen, rejected"),
        ({"chosen": "x no", "rejected": "x yes"}, "row 1: lacks prompt, and its answers are texts"),
        (
            {
                "chosen": [{"role": "assistant", "content": "no"}],
                "rejected": [{"role": "user", "content": "x"}],
            },
            "row 1: lacks prompt, and its answers don't begin with the same messages",
        ),
        (
            {"prompt": "x", "chosen": 1, "rejected": ""},
            "row 1: chosen: expected text or one assistant message",
        ),
        ({"prompt": "x", "chosen": "", "rejected": "", "split": "dev"}, "split: expected one of train"),
        ([1], "row 1: expected an object, got list"),
    ],
)
def test_what_is_no_pair_is_named_with_its_row(document: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(PairsError, match=message):
        read_pairs(write(tmp_path / "a.jsonl", [document]))
