"""What the questions about many patches share, and what each of them checks."""

import argparse
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from bench import overflow, scale, swap
from bench.errors import CheckFailed
from bench.load.client import Reply, send_one, send_open_loop
from bench.load.exposition import label_of, metric
from bench.load.timing import RequestTrace
from bench.load.workloads import patch_names
from bench.run.patch_sweep import Lengths, Stage, check_answers, target_of
from bench.run.sweep import Cell
from bench.servers.fake import FakeServer
from bench.servers.patch_set import PatchFile
from patches.headers import DIGEST_HEADER

LENGTHS = Lengths(num_virtual_tokens=12, num_input_tokens=20, num_output_tokens=4)
NAMES = [f"p-{i}" for i in range(8)]


def test_popularities_are_what_they_say() -> None:
    draw: Callable[[str], Counter[str]] = lambda kind: Counter(  # noqa: E731
        patch_names(NAMES, count=4000, popularity=kind, seed=0, label="x")
    )
    assert set(draw("turns").values()) == {500}
    assert max(draw("uniform").values()) < 1.2 * min(draw("uniform").values())
    zipf = draw("zipf")
    assert 6 < zipf["p-0"] / zipf["p-7"] < 11
    assert draw("zipf") == zipf


def test_an_unknown_popularity_is_refused() -> None:
    with pytest.raises(ValueError, match="uniform, zipf or turns"):
        patch_names(NAMES, count=1, popularity="viral", seed=0, label="x")


async def test_requests_differ_and_only_uncached_ones_have_a_salt(serve: Any, session: Any) -> None:
    target = await target_of(session, await serve(FakeServer()), LENGTHS, 0)
    cached = target.requests(["p-0", None], "a", is_cached=True)
    salted = target.requests(["p-0", "p-0"], "b", is_cached=False)
    assert [len(r.body["prompt"]) for r in cached] == [20, 20]
    assert cached[0].body["prompt"] != cached[1].body["prompt"]
    assert [dict(r.headers) for r in cached] == [{"X-Policy-Patch": "p-0"}, {}]
    assert all("cache_salt" not in r.body for r in cached)
    assert len({r.body["cache_salt"] for r in salted}) == 2


async def test_answers_under_another_patch_or_of_another_length_are_found(serve: Any, session: Any) -> None:
    server = FakeServer(policy="be kind", patch_name="p-0")
    target = await target_of(session, await serve(server), LENGTHS, 0)
    (request,) = target.requests(["p-0"], "a", is_cached=True)
    reply = await send_one(session, request)
    check_answers([reply], [server.digest], LENGTHS)
    for digest, lengths in (
        ("sha256:other", LENGTHS),
        (None, LENGTHS),
        (server.digest, replace(LENGTHS, num_output_tokens=5)),
        (server.digest, replace(LENGTHS, num_input_tokens=21)),
    ):
        with pytest.raises(CheckFailed):
            check_answers([reply], [digest], lengths)


async def test_open_loop_does_not_wait_for_answers(serve: Any, session: aiohttp.ClientSession) -> None:
    target = await target_of(session, await serve(FakeServer(token_delay_s=0.1)), LENGTHS, 0)
    requests = target.requests([None] * 6, "a", is_cached=True)
    replies = await send_open_loop(session, requests, rate_per_s=200, seed="0")
    # All were sent before the first had ended, which takes four tokens of 0.1 s.
    assert max(r.trace.sent_s for r in replies) < min(r.trace.done_s for r in replies)


async def test_a_cell_of_scale_measures_and_checks(serve: Any, session: Any) -> None:
    server = FakeServer(policy="be kind", patch_name="p-0")
    target = await target_of(session, await serve(server), LENGTHS, 0)
    args = argparse.Namespace(min_requests=6, waves=2, concurrency=2, seed=0, is_uncached=False)
    patch = PatchFile("p-0", server.digest, Path("p-0"), 1)
    stage = Stage(session, {"ours": target}, [patch], Path(), args)
    result = await scale.measure(stage, Cell(1, 0, "uniform"), 1)
    assert (result["num_requests"], result["num_output_tokens"], result["num_distinct"]) == (6, 24, 1)
    wrong = replace(stage, patches=[replace(patch, digest="sha256:other")])
    with pytest.raises(CheckFailed):
        await scale.measure(wrong, Cell(1, 0, "uniform"), 2)


def answer(sent_s: float, first_s: float, digest: str) -> Reply:
    trace = RequestTrace(sent_s, (first_s, first_s + 1), first_s + 1, 2)
    return Reply(trace, {DIGEST_HEADER: digest}, ("a", "b"), "length", 20, 0)


def test_a_takeover_is_timed_from_the_files_landing() -> None:
    replies = [answer(0, 1, "old"), answer(1, 4, "old"), answer(3, 3.5, "new"), answer(4, 5, "new")]
    assert swap.after_swap(replies, "new", 2.5) == {"takeover_s": 1.0, "num_by_new": 2}
    assert swap.after_swap(replies[:2], "new", None) == {}


def test_an_old_answer_after_a_new_one_is_no_figure() -> None:
    replies = [answer(0, 1, "old"), answer(3, 3.5, "new"), answer(4, 5, "old")]
    with pytest.raises(CheckFailed, match="1 requests got the old content"):
        swap.after_swap(replies, "new", 2.5)


def test_a_swap_that_nobody_saw_is_no_figure() -> None:
    with pytest.raises(CheckFailed, match="ask for more requests"):
        swap.after_swap([answer(0, 1, "old")], "new", 2.5)


def test_a_file_is_replaced_in_one_step(tmp_path: Path) -> None:
    source, target = tmp_path / "new", tmp_path / "served.safetensors"
    source.write_text("new")
    target.write_text("old")
    before = time.perf_counter()
    assert swap.replace_file(source, target) >= before
    assert target.read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "served.safetensors"]


def test_overflowing_servers_get_the_memory_of_their_slots() -> None:
    flags = overflow.variants(4, 1000)
    assert flags["resident"] == ["--preload"]
    assert flags["slots"] == ["--preload", "--patch-device-memory", "4000"]
    assert flags["disk"] == ["--patch-device-memory", "4000", "--patch-host-memory", "4000"]


def test_samples_are_added_up_by_their_labels() -> None:
    text = 'a_total{tier="x",n="1"} 2.0\na_total{tier="y"} 3\na_total_created 9\ninfo{k="v",m="7"} 1\n'
    assert metric(text, "a_total") == 5
    assert metric(text, "a_total", tier="x") == 2
    assert metric(text, "missing") == 0
    assert label_of(text, "info", "m") == "7"
    assert label_of(text, "info", "z") is None
