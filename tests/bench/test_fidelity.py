"""`policypatch bench fidelity`, up to the server: its command line, what it reads and what it writes."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench.errors import RequestFailed
from bench.fidelity import PAIRS, PROMPTS, FidelityOptions, decode_answer, main, markdown_report
from bench.load.agreement import compare
from bench.report.record import Record

BODY: dict[str, Any] = {
    "choices": [
        {
            "token_ids": [5, 6],
            "logprobs": {
                "top_logprobs": [{"token_id:5": -0.25, "token_id:9": -3}, {"token_id:6": -0.5}],
            },
        }
    ]
}


def records() -> list[Record]:
    answers = [decode_answer(BODY)]
    setup = {
        "command": "python -m bench.fidelity",
        "model": "…/smollm2",
        "dtype": "bfloat16",
        "block_size": 32,
        "num_policy_tokens": 48,
        "num_output_tokens": 2,
        "concurrency": 16,
    }
    environment = {
        "packages": {"vllm": "0.32.0"},
        "cpu_model": "a processor",
        "num_usable_cores": 2,
        "gpus": [],
        "python": "3.11",
    }
    result = compare(answers, answers).to_result()
    return [
        Record(
            "fidelity", "run", {**setup, "arm": arm, "reference": ref, "meaning": text}, result, environment
        )
        for arm, ref, text in PAIRS
    ]


def test_an_answer_is_read_by_token_ids() -> None:
    answer = decode_answer(BODY)
    assert answer.token_ids == (5, 6)
    assert answer.logprobs == ({5: -0.25, 9: -3.0}, {6: -0.5})


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"choices": []},
        {"choices": [{"token_ids": [5], "logprobs": None}]},
        {"choices": [{"token_ids": [5], "logprobs": {"top_logprobs": [{" word": -1.0}]}}]},
        {"choices": [{"token_ids": [5], "logprobs": {"top_logprobs": [{"token_id:6": -1.0}]}}]},
    ],
)
def test_an_answer_without_log_probabilities_by_id_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(RequestFailed, match="answer"):
        decode_answer(body)


def test_the_report_has_a_row_for_each_pair_and_says_where() -> None:
    report = markdown_report(records())
    assert all(f"| {meaning} | 0 | 0 | 0 | 0 | 100.00% | 100.0% | 2 |" in report for _, _, meaning in PAIRS)
    assert "a processor, 2 cores" in report
    assert "vllm 0.32.0" in report


def test_prompts_are_all_different() -> None:
    assert len(set(PROMPTS)) == len(PROMPTS)


@pytest.mark.parametrize(
    "numbers", [{"num_prompts": 0}, {"num_prompts": 1000}, {"num_output_tokens": 0}, {"concurrency": 1}]
)
def test_numbers_out_of_range_are_refused(numbers: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        FidelityOptions(Path("policy.txt"), **numbers)


def test_a_missing_policy_is_a_mistake_of_the_caller(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--model", "m", "--policy-text", "missing.txt"])
    assert exit_.value.code == 2
    assert "--policy-text: expected a file" in capsys.readouterr().err


def test_a_model_that_cannot_be_compiled_for_ends_with_one_and_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = tmp_path / "policy.txt"
    policy.write_text("Be kind.")
    flags = [
        "--model",
        str(tmp_path / "nothing"),
        "--policy-text",
        str(policy),
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(flags) == 1
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (last["question"], last["ok"]) == ("fidelity", False)
    assert "compile" in last["error"]
