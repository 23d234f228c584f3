"""Metrics, asserted from the exposition text."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from patches.errors import FORMAT_REASONS
from server.catalog.refusals import CATALOG_REASONS
from server.errors import REQUEST_CODES
from server.metrics.patches import BASE_LABEL, OUTCOMES, UNKNOWN_LABEL
from server.metrics.steering import OUTCOMES as CONDITION_OUTCOMES
from server.metrics.tiers import TIERS
from server.versions.composition import COMPOSED_LABELS
from tests.server.stand import Stand

DOCS = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text("utf-8")


async def used(stand: Stand) -> None:
    """Make every series appear once."""
    await stand.load()
    await stand.chat("pirate")
    await stand.chat("Odd Case")
    (stand.folder / "bad.safetensors").write_bytes(b"no")
    await stand.catalog.load_file(stand.folder / "bad.safetensors")


async def test_every_metric_explains_itself_and_follows_the_naming_rules(stand: Stand) -> None:
    await used(stand)
    for family in stand.registry.collect():
        assert family.documentation.endswith(".")
        assert re.fullmatch(r"policy_patch_[a-z_]+", family.name)
        if family.type == "histogram":
            # Scores have no unit.
            assert family.name.endswith(("_seconds", "_margin"))


LABEL_VALUES = [
    *(*FORMAT_REASONS, *CATALOG_REASONS, *REQUEST_CODES, *OUTCOMES, *TIERS),
    *(BASE_LABEL, UNKNOWN_LABEL, *sorted(COMPOSED_LABELS), *CONDITION_OUTCOMES.values()),
]


@pytest.mark.parametrize("value", LABEL_VALUES)
def test_every_label_value_is_documented(value: str) -> None:
    assert f"`{value}`" in DOCS


@pytest.mark.parametrize(
    ("header", "body", "series"),
    [
        ("pirate", {}, '{outcome="ok",patch="pirate"}'),
        (None, {}, '{outcome="ok",patch="none"}'),
        ("none", {}, '{outcome="ok",patch="none"}'),
        ("pirate", {"stream": True}, '{outcome="ok",patch="pirate"}'),
        (None, {"model": "demo:pirate"}, '{outcome="ok",patch="pirate"}'),
        ("unknown", {}, '{outcome="rejected",patch="unknown"}'),
        ("pirate@2.0.0", {}, '{outcome="rejected",patch="unknown"}'),
        ("Odd Case", {}, '{outcome="rejected",patch="unknown"}'),
        ("pirate", {"model": "no-such"}, '{outcome="client_error",patch="none"}'),
        (None, {"model": "no-such"}, '{outcome="client_error",patch="none"}'),
        ("pirate", {"breaks": True}, '{outcome="server_error",patch="none"}'),
        ("pirate", {"ignores_patch": True}, '{outcome="rejected",patch="pirate"}'),
    ],
)
async def test_a_request_is_counted_once_by_patch_and_outcome(
    stand: Stand, header: str | None, body: dict[str, Any], series: str
) -> None:
    await stand.load()
    await stand.chat(header, **body)
    counted = re.findall(r"^policy_patch_requests_total(.*) 1\.0$", stand.exposition(), re.MULTILINE)
    assert counted == [series]


async def test_a_missing_default_counts_as_rejected(stand: Stand) -> None:
    stand.use(default_patch="gone")
    await stand.chat()
    assert stand.value('policy_patch_rejected_requests_total{code="patch_not_ready"}') == 1
    assert stand.value('policy_patch_requests_total{outcome="rejected",patch="unknown"}') == 1


async def test_clients_cannot_make_label_values(stand: Stand) -> None:
    await stand.load()

    async def ask(number: int) -> None:
        await stand.chat(f"invented-{number}")
        await stand.chat(f"Odd {number}")
        await stand.chat(model=f"demo:invented-{number}")
        await stand.post(f"/v1/invented/{number}")

    await ask(0)
    before = len(stand.exposition().splitlines())
    for number in range(1, 50):
        await ask(number)
    assert "invented" not in stand.exposition()
    assert len(stand.exposition().splitlines()) == before
    assert stand.value('policy_patch_rejected_requests_total{code="patch_not_found"}') == 100


async def test_routes_that_run_no_model_are_not_counted(stand: Stand) -> None:
    await stand.post("/tokenize")
    await stand.client.get("/v1/models")
    await stand.post("/v1/responses/r1/cancel")
    counted = re.findall(r"^policy_patch_requests_total\{.*", stand.exposition(), re.MULTILINE)
    assert counted
    assert [line for line in counted if not line.endswith(" 0.0")] == []


async def test_running_requests_are_counted_while_they_run(
    stand: Stand, open_stream: Callable[..., Any]
) -> None:
    await stand.load()
    stand.engine.may_go_on.clear()
    streams = [open_stream("pirate"), open_stream("pirate"), open_stream(), open_stream(model="demo:pirate")]
    for stream in streams:
        await stream.start()
    assert stand.value('policy_patch_requests_running{patch="pirate"}') == 3
    assert stand.value('policy_patch_requests_running{patch="none"}') == 1
    stand.engine.may_go_on.set()
    for stream in streams:
        await stream.rest()
    assert stand.value('policy_patch_requests_running{patch="pirate"}') == 0
    assert stand.value('policy_patch_requests_running{patch="none"}') == 0


async def test_latencies_are_observed_per_patch_and_for_the_base_model(stand: Stand) -> None:
    await stand.load()
    for _ in range(2):
        await stand.chat("pirate")
    await stand.chat()
    assert stand.value('policy_patch_time_to_first_token_seconds_count{patch="pirate"}') == 2
    assert stand.value('policy_patch_inter_token_latency_seconds_count{patch="pirate"}') == 4
    assert stand.value('policy_patch_time_to_first_token_seconds_bucket{le="+Inf",patch="pirate"}') == 2
    assert stand.value('policy_patch_inter_token_latency_seconds_count{patch="none"}') == 2
    assert stand.value('policy_patch_generation_tokens_total{patch="pirate"}') == 6
    assert stand.value('policy_patch_generation_tokens_total{patch="none"}') == 3


async def test_buckets_are_cumulative(stand: Stand) -> None:
    latency = stand.metrics.use("pirate").first_token
    for value in (0.001, 0.0011, 3.0, 1000.0):
        latency.observe(value)
    buckets = {bound: count for bound, count, _ in latency.buckets()}
    assert (buckets["0.001"], buckets["0.005"], buckets["5.0"], buckets["+Inf"]) == (1, 2, 3, 4)
    assert latency.sum_s == pytest.approx(1003.0021)


async def test_gauges_follow_the_catalog(stand: Stand) -> None:
    old = await stand.load("pirate", "1.0.0", fill=1.0)
    new = await stand.load("pirate", "1.1.0", fill=2.0, num_tokens=4)
    assert stand.value('policy_patch_resident_bytes{patch="pirate",version="1.0.0"}') == old.nbytes
    assert stand.value('policy_patch_resident_bytes{patch="pirate",version="1.1.0"}') == new.nbytes
    active = re.findall(r"^policy_patch_active_info{(.*)} 1\.0$", stand.exposition(), re.MULTILINE)
    assert active == [f'digest="{new.digest}",patch="pirate",version="1.1.0"']


async def test_replaced_content_that_drains_adds_to_its_versions_bytes(stand: Stand) -> None:
    old = await stand.load(fill=1.0)
    stand.catalog.residents.acquire(old)
    new = await stand.load(fill=2.0)
    series = 'policy_patch_resident_bytes{patch="pirate",version="1.0.0"}'
    assert stand.value(series) == old.nbytes + new.nbytes
    stand.catalog.residents.release(old)
    await stand.catalog.residents.drained()
    assert stand.value(series) == new.nbytes


async def test_prefix_tokens_are_counted_by_the_patch_that_the_digest_belongs_to(stand: Stand) -> None:
    patch = await stand.load()
    stand.metrics.observe_prefix_tokens(patch.digest, injected=48, shared=0)
    stand.metrics.observe_prefix_tokens(patch.digest, injected=0, shared=48)
    stand.metrics.observe_prefix_tokens("sha256:" + "0" * 64, injected=1, shared=2)
    stand.metrics.prefixes.observe_injection(0.00002)
    assert stand.value('policy_patch_injected_tokens_total{patch="pirate"}') == 48
    assert stand.value('policy_patch_shared_tokens_total{patch="pirate"}') == 48
    assert stand.value('policy_patch_injected_tokens_total{patch="unknown"}') == 1
    assert stand.value('policy_patch_injection_seconds_bucket{le="2.5e-05"}') == 1


async def test_the_series_of_a_removed_patch_go_with_its_last_version(stand: Stand) -> None:
    await stand.load("pirate", "1.0.0")
    await stand.load("pirate", "2.0.0")
    patch = stand.catalog.view.names["pirate"].active
    await stand.chat("pirate")
    stand.metrics.observe_prefix_tokens(patch.digest, injected=1, shared=1)
    await stand.catalog.forget_file(stand.folder / "pirate-2.0.0.safetensors")
    assert stand.value('policy_patch_requests_total{outcome="ok",patch="pirate"}') == 1
    await stand.catalog.forget_file(stand.folder / "pirate-1.0.0.safetensors")
    assert "pirate" not in stand.exposition()
    stand.metrics.observe_prefix_tokens(patch.digest, injected=1, shared=0)
    assert "pirate" not in stand.exposition()


async def test_the_last_request_of_a_removed_patch_leaves_no_series_behind(
    stand: Stand, open_stream: Callable[..., Any]
) -> None:
    await stand.load()
    stand.engine.may_go_on.clear()
    stream = open_stream("pirate")
    await stream.start()
    await stand.catalog.forget_file(stand.folder / "pirate-1.0.0.safetensors")
    stand.engine.may_go_on.set()
    await stream.rest()
    await stand.catalog.residents.drained()
    assert "pirate" not in stand.exposition()


async def test_a_patch_that_comes_back_is_counted_from_the_start(stand: Stand) -> None:
    """Series are found by a shortcut, which must not lead to those that went with the patch."""
    series = 'policy_patch_requests_total{outcome="ok",patch="pirate"}'
    for _ in range(2):
        await stand.load()
        await stand.chat("pirate")
        assert stand.value(series) == 1
        path = stand.folder / "pirate-1.0.0.safetensors"
        path.unlink()
        await stand.catalog.forget_file(path)
        assert stand.value(series) is None


async def test_what_is_counted_too_late_makes_no_series(stand: Stand) -> None:
    patch = await stand.load()
    await stand.catalog.forget_file(stand.folder / "pirate-1.0.0.safetensors")
    stand.metrics.request_finished(patch, "ok")
    stand.metrics.request_rejected("patch_not_ready", patch)
    stand.metrics.use("pirate").first_token.observe(1.0)
    assert "pirate" not in stand.exposition()
    assert stand.value('policy_patch_requests_total{outcome="ok",patch="unknown"}') == 1


async def test_loads_are_timed(stand: Stand) -> None:
    await stand.load()
    assert stand.value("policy_patch_load_seconds_count") == 1


async def test_what_the_vector_of_a_removed_patch_counted_goes_with_it(stand: Stand) -> None:
    patch = await stand.load()
    stand.metrics.steering.steered(patch.digest, 3)
    for margin in (-1.0, 2.0):
        stand.metrics.steering.decided(patch.digest, is_met=margin > 0, margin=margin)
    assert stand.value('policy_patch_condition_total{outcome="met",patch="pirate"}') == 1
    await stand.catalog.forget_file(stand.folder / "pirate-1.0.0.safetensors")
    assert "pirate" not in stand.exposition()


async def test_the_first_request_of_a_patch_is_an_increase_however_it_ends(stand: Stand) -> None:
    assert stand.value('policy_patch_requests_total{outcome="server_error",patch="none"}') == 0
    await stand.load()
    for outcome in OUTCOMES:
        assert stand.value(f'policy_patch_requests_total{{outcome="{outcome}",patch="pirate"}}') == 0
    await stand.chat("pirate")
    assert stand.value('policy_patch_requests_total{outcome="ok",patch="pirate"}') == 1
