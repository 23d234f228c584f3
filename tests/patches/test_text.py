"""Text of people is read in one way: what ends a line, what a suffix says, what half a character is."""

import json
from pathlib import Path
from typing import Any

import pytest

from patches.errors import EvaluationError, PairsError
from patches.evaluate.data.exclusion import read_training_prompts
from patches.evaluate.data.items import parse_items
from patches.evaluate.suite import load_suite
from patches.pairs.prompts import read_prompts
from patches.pairs.rows import read_pairs
from patches.signing.revocations import read_revocations
from patches.text import decode_text, lines_of, parse_row, read_rows

#: A prompt with every separator that ``str.splitlines`` would cut at.
ODD = "one\u2028two\u0085three\x0cfour"
BOM = b"\xef\xbb\xbf"


def write(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data.encode("utf-8") if isinstance(data, str) else data)
    return path


def texts(path: Path) -> list[str]:
    return [prompt.messages[-1]["content"] for prompt in read_prompts(path).prompts]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", []),
        ("a", ["a"]),
        ("a\n", ["a"]),
        ("a\r\nb\n\n", ["a", "b", ""]),
        (ODD + "\nb", [ODD, "b"]),
        ("a\rb", ["a\rb"]),
    ],
)
def test_lines_end_at_line_feeds_alone(text: str, lines: list[str]) -> None:
    assert lines_of(text) == lines


@pytest.mark.parametrize("suffix", [".jsonl", ".JSONL", ".ndjson", ".NDJSON"])
def test_json_lines_are_told_by_their_suffix_in_any_case(tmp_path: Path, suffix: str) -> None:
    rows = "".join(json.dumps({"prompt": prompt}, ensure_ascii=False) + "\r\n" for prompt in (ODD, "b"))
    path = write(tmp_path / f"prompts{suffix}", BOM + rows.encode())
    assert texts(path) == [ODD, "b"]
    assert len(read_training_prompts([path])) == 2


def test_a_line_of_text_is_one_prompt_whatever_it_holds(tmp_path: Path) -> None:
    path = write(tmp_path / "prompts.txt", BOM + f"{ODD}\r\nb\n".encode())
    assert texts(path) == [ODD, "b"]


def test_json_under_the_name_of_text_is_refused_with_the_suffix_that_it_wants(tmp_path: Path) -> None:
    path = write(tmp_path / "prompts.txt", '\n{"prompt": "a"}\n')
    with pytest.raises(PairsError, match=r"expected lines of text, got JSON; .* suffix \.jsonl"):
        read_prompts(path)
    assert texts(write(tmp_path / "braces.txt", "{what is this?\nb\n")) == ["{what is this?", "b"]


@pytest.mark.parametrize(
    "array", ['[{"prompt":"a"},{"prompt":"b"}]', '\n["a"]\n', '[\n  {"prompt": "a"},\n  {"prompt": "b"}\n]\n']
)
def test_an_array_of_rows_under_the_name_of_text_is_refused_too(tmp_path: Path, array: str) -> None:
    with pytest.raises(PairsError, match=r"\.txt: expected lines of text, got JSON; .* suffix \.json$"):
        read_prompts(write(tmp_path / "prompts.txt", array))
    with pytest.raises(PairsError, match=r"expected lines of text, got JSON; .* suffix \.jsonl$"):
        read_prompts(write(tmp_path / "prompts.txt", f"{json.dumps(['a'])}\n" * 2))
    assert texts(write(tmp_path / "prompts.txt", "[3, 1, 2]\n[sic]\n")) == ["[3, 1, 2]", "[sic]"]


def test_a_line_with_a_nul_is_refused_with_its_row(tmp_path: Path) -> None:
    for data, row in (("a\n\nb\0c\n", 3), ("b\n".encode("utf-16-le"), 1)):
        with pytest.raises(PairsError, match=f"prompts.txt: row {row}: expected UTF-8 text, got a NUL"):
            read_prompts(write(tmp_path / "prompts.txt", data))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"prompt": "\\ud83d"}', "row 2: expected text, got half of a surrogate pair"),
        ("[" * 100_000 + "]" * 100_000, "row 2: expected JSON, got one that is nested too deeply"),
        ('{"prompt": ', "row 2: expected JSON"),
        ('{"prompt": "a", "prompt": "b"}', "row 2: the key 'prompt' appears twice in one object"),
        (f'{{"prompt": "a", "n": {"1" * 5000}}}', "row 2: an integer of 5000 digits is too long"),
    ],
    ids=["half", "deep", "torn", "twice", "long"],
)
def test_a_row_that_is_no_text_is_one_error_that_names_it(tmp_path: Path, row: str, message: str) -> None:
    path = write(tmp_path / "rows.jsonl", f'{{"prompt": "a", "chosen": "b", "rejected": "c"}}\n{row}\n')
    for read, error in (
        (read_prompts, PairsError),
        (read_pairs, PairsError),
        (lambda path: read_training_prompts([path]), EvaluationError),
    ):
        with pytest.raises(error, match=message):
            read(path)
    with pytest.raises(EvaluationError, match=message.replace("row", "line")):
        parse_items(path.read_text().replace('"chosen": "b", "rejected": "c"', '"category": "x"'), "items")


def test_a_whole_pair_of_surrogates_is_a_character() -> None:
    assert parse_row('"\\ud83d\\ude00"') == "\U0001f600"


def test_suite_data_keep_their_separators_and_their_mark_is_dropped(tmp_path: Path) -> None:
    write(tmp_path / "items.jsonl", BOM + json.dumps({"prompt": ODD}, ensure_ascii=False).encode())
    suite = "tasks:\n  t: {measure: outputs, data: [{file: items.jsonl}]}\n"
    (task,) = load_suite(str(write(tmp_path / "suite.yaml", BOM + suite.encode()))).tasks
    files: Any = None
    assert [item.prompt for item in task.items(files)] == [ODD]


def test_a_list_of_revoked_digests_may_begin_with_a_mark(tmp_path: Path) -> None:
    digest = f"sha256:{'a' * 64}"
    assert read_revocations(write(tmp_path / "revoked", BOM + f"{digest}\r\n".encode())) == {digest}


def test_other_encodings_are_named_by_their_first_byte(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected UTF-8 text, got byte 0xff at 0"):
        decode_text("prompt".encode("utf-16"))
    with pytest.raises(ValueError, match="expected a JSON array of rows, got dict"):
        read_rows(write(tmp_path / "rows.json", "{}"))
