"""`policypatch bench fidelity`, up to the server: its command line, what it reads and what it writes."""

import asyncio
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import fidelity
from bench.errors import RequestFailed
from bench.fidelity import FidelityOptions, main
from bench.load.agreement import compare
from bench.load.workloads import PROMPTS
from bench.report.fidelity_report import fidelity_markdown
from bench.report.record import Record, read_records
from bench.run.side_by_side import PAIRS, decode_answer
from bench.servers.launch import PatchFacts
from bench.servers.processes import ServerSpec

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
    report = fidelity_markdown(records())
    assert all(f"| {meaning} | 0 | 0 | 0 | 0 | 100.00% | 100.0% | 2 |" in report for _, _, meaning in PAIRS)
    assert "a processor, 2 cores" in report
    assert "vllm 0.32.0" in report


def test_prompts_are_all_different() -> None:
    assert len(set(PROMPTS)) == len(PROMPTS)


@pytest.mark.parametrize(
    "numbers", [{"num_prompts": 0}, {"num_prompts": 1000}, {"num_output_tokens": 0}, {"concurrency": 1}]
)
def test_numbers_out_of_range_are_refused(tmp_path: Path, numbers: dict[str, int]) -> None:
    policy = tmp_path / "policy.txt"
    policy.touch()
    with pytest.raises(ValueError, match=r"--(prompts|output-tokens|concurrency): expected"):
        FidelityOptions(policy, **numbers)


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


def test_pairs_of_arms_that_were_done_at_the_time_limit_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = tmp_path / "policy.txt"
    policy.write_text("Be kind.")
    answers = [decode_answer(BODY)]

    async def ask_all(job: Any, note: Any) -> None:
        for arms in (["text"], ["text", "text-batched"], ["text", "text-batched", "patched"]):
            note(dict.fromkeys(arms, answers))
        await asyncio.sleep(3600)

    @contextlib.contextmanager
    def no_server(spec: ServerSpec, **_: Any) -> Iterator[None]:
        yield

    monkeypatch.setattr(fidelity, "ask_all", ask_all)
    monkeypatch.setattr(fidelity, "running_server", no_server)
    monkeypatch.setattr(fidelity, "prepare_patch", lambda *_, **__: PatchFacts("kind", "sha256:0", 3))
    flags = ["--model", "m", "--policy-text", str(policy), "--out", str(tmp_path), "--time-limit-s", "0"]
    assert main(flags) == 1
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["cut_short"] == "not done after 0 s; see --time-limit-s"
    assert list(last["agreement"]) == ["text-batched/text", "patched/text"]
    report = Path(last["records"]).with_name("report.md").read_text()
    assert "**Cut short**" in report
    assert "patch alone / text alone" in report
    # Three lines: two pairs, and the one that says why there are no more.
    assert len(read_records([Path(last["records"])])) == 3
