"""Answers from a model, a server and a column; and runs that are interrupted."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from patches.errors import PairsError
from patches.model import LoadedModel
from patches.pairs.column import ColumnSampler
from patches.pairs.local import LocalSampler
from patches.pairs.prompts import Messages, Prompt, prompt_id
from patches.pairs.remote import RemoteSampler
from patches.pairs.run import answer_prompts, require_other_reference
from patches.pairs.sampler import PAIRS_SAMPLING, Answer
from patches.sampling import Sampling

HELLO = [{"role": "user", "content": "hello"}]
LONGER = [{"role": "user", "content": "hello, and then some more of it"}]
SAMPLING = replace(PAIRS_SAMPLING, num_samples=2, max_tokens=6)


def prompt(text: str, **row: Any) -> Prompt:
    messages = ({"role": "user", "content": text},)
    return Prompt(prompt_id(messages), messages, row)


def test_a_model_answers_each_conversation_k_times_and_the_same_under_the_same_key(
    tiny_model: LoadedModel,
) -> None:
    sampler = LocalSampler(tiny_model, SAMPLING)
    first = sampler.sample([HELLO, LONGER], "0")
    assert [len(answers) for answers in first] == [2, 2]
    assert sampler.sample([HELLO, LONGER], "0") == first
    assert sampler.sample([HELLO, LONGER], "1") != first


def test_greedy_answers_do_not_depend_on_the_rest_of_the_batch(tiny_model: LoadedModel) -> None:
    sampler = LocalSampler(tiny_model, Sampling(temperature=0, max_tokens=8))
    together = sampler.sample([HELLO, LONGER], "0")
    assert together == [sampler.sample([one], "0")[0] for one in (HELLO, LONGER)]
    assert [len(answers) for answers in together] == [1, 1]


def test_a_policy_text_changes_what_the_model_says(tiny_model: LoadedModel) -> None:
    sampling = Sampling(temperature=0, max_tokens=8)
    alone, under = (
        LocalSampler(tiny_model, sampling, text) for text in (None, "answer politely, never rudely")
    )
    assert alone.sample([HELLO], "0") != under.sample([HELLO], "0")


def test_an_answer_that_ran_into_the_limit_is_not_finished(tiny_model: LoadedModel) -> None:
    (answer,) = LocalSampler(tiny_model, Sampling(temperature=0, max_tokens=1)).sample([HELLO], "0")[0]
    assert not answer.is_finished


def test_a_column_holds_the_answers() -> None:
    prompts = [prompt("a", safe=" no "), prompt("b", safe=[{"role": "assistant", "content": "never"}])]
    sampler = ColumnSampler(prompts, "safe")
    assert sampler.sample([p.messages for p in prompts], "0") == [[Answer("no")], [Answer("never")]]
    with pytest.raises(PairsError, match="expected 'other' in every row, got safe"):
        ColumnSampler(prompts, "other")
    with pytest.raises(PairsError, match="expected text in 'safe'"):
        ColumnSampler([prompt("a", safe=3)], "safe")


@pytest.fixture
def server() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """An OpenAI-compatible server that repeats the last message, and what it was asked."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(200, {"data": [{"id": "tiny"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append({**body, "authorization": self.headers.get("Authorization")})
            text = body["messages"][-1]["content"]
            if text == "break":
                self.answer(500, {"error": {"message": "broken"}})
                return
            choice = {"message": {"content": f" {text} "}, "finish_reason": "length"}
            self.answer(200, {"choices": [choice] * body["n"]})

        def answer(self, status: int, document: dict[str, Any]) -> None:
            content = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_address[1]}", asked
        http.shutdown()


def test_a_server_is_asked_under_the_policy_with_key_and_seed(
    server: tuple[str, list[dict[str, Any]]],
) -> None:
    url, asked = server
    sampler = RemoteSampler(url + "/v1/", SAMPLING, api_key="secret", policy_text="Be kind.")
    assert sampler.sample([HELLO, LONGER], "0") == [
        [Answer(m[0]["content"], False)] * 2 for m in (HELLO, LONGER)
    ]
    by_text = {body["messages"][-1]["content"]: body for body in asked}
    body = by_text["hello"]
    assert body["messages"][0] == {"role": "system", "content": "Be kind."}
    assert (body["model"], body["n"], body["max_tokens"]) == ("tiny", 2, 6)
    assert body["authorization"] == "Bearer secret"
    assert body["seed"] == SAMPLING.seed_of("0:0")
    sampler.close()


def test_a_servers_refusal_and_silence_are_told(server: tuple[str, list[dict[str, Any]]]) -> None:
    sampler = RemoteSampler(server[0], SAMPLING)
    with pytest.raises(PairsError, match="answered 500"):
        sampler.sample([[{"role": "user", "content": "break"}]], "0")
    sampler.close()
    with pytest.raises(PairsError, match="can't be reached"):
        RemoteSampler("http://127.0.0.1:1", SAMPLING)


class Counting:
    """A side that says what it was asked, and may fail."""

    def __init__(self, word: str, fail_at: int | None = None) -> None:
        self.word, self.fail_at, self.num_asked = word, fail_at, 0

    def sample(self, conversations: Sequence[Messages], key: str) -> list[list[Answer]]:
        if self.num_asked == self.fail_at:
            raise KeyboardInterrupt
        self.num_asked += 1
        return [[Answer(f"{self.word} {messages[0]['content']} {key}")] for messages in conversations]


def run(store: Path, *sides: Counting, identity: str = "x") -> Any:
    both = dict(zip(("base", "reference"), sides, strict=True))
    prompts = [prompt(str(number)) for number in range(10)]
    return answer_prompts(prompts, both, store, identity=identity, batch_size=3)


def test_an_interrupted_run_goes_on_to_what_an_uninterrupted_one_gives(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole.jsonl", Counting("a"), Counting("b"))
    store = tmp_path / "parts.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run(store, Counting("a", fail_at=2), Counting("b"))
    # The machine died while a line was written.
    with store.open("a") as file:
        file.write('{"id": "half')
    base, reference = Counting("a"), Counting("b")
    assert run(store, base, reference) == whole
    assert (base.num_asked, reference.num_asked) == (2, 2)
    assert run(store, base, reference) == whole
    assert base.num_asked == 2


def test_answers_drawn_with_other_settings_are_not_mixed(tmp_path: Path) -> None:
    run(tmp_path / "a.jsonl", Counting("a"), Counting("b"))
    with pytest.raises(PairsError, match="drawn with other settings"):
        run(tmp_path / "a.jsonl", Counting("a"), Counting("b"), identity="y")


def test_a_reference_that_answers_as_the_base_is_refused(tmp_path: Path) -> None:
    same = run(tmp_path / "a.jsonl", Counting("a"), Counting("a"))
    with pytest.raises(PairsError, match="gives the base's own answers to 10 of 10 prompts"):
        require_other_reference(same)
    require_other_reference(run(tmp_path / "b.jsonl", Counting("a"), Counting("b")))


def test_two_sides_of_one_model_draw_the_same(tiny_model: LoadedModel) -> None:
    """One seed for both sides, so that a reference that is the base gives itself away even when sampling."""
    sides = [LocalSampler(tiny_model, SAMPLING).sample([HELLO], "0") for _ in range(2)]
    assert sides[0] == sides[1]
