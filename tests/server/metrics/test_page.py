"""``/metrics`` itself: what form it has, that it is never old, and that no number of scrapers costs much."""

import asyncio
import gzip
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client import Gauge
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from server.metrics import page
from server.metrics.page import MetricsPage
from tests.server.stand import Stand

OPENMETRICS = {"Accept": "application/openmetrics-text; version=1.0.0"}


async def no_app(scope: Any, receive: Any, send: Any) -> None:
    await FastAPI()(scope, receive, send)


@pytest.fixture
async def scraper(stand: Stand) -> AsyncIterator[httpx.AsyncClient]:
    app = MetricsPage(no_app, stand.metrics, stand.registry)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        client.headers["Accept-Encoding"] = "identity"
        yield client


@pytest.mark.parametrize("path", ["/metrics", "/metrics/"])
async def test_it_is_what_the_registry_holds(stand: Stand, scraper: httpx.AsyncClient, path: str) -> None:
    await stand.load()
    answer = await scraper.get(path)
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = [line for line in answer.text.splitlines() if line[0] != "#" and "_created" not in line]
    assert "\n".join(lines) == stand.exposition()


async def test_other_paths_and_methods_are_the_apps(scraper: httpx.AsyncClient) -> None:
    assert (await scraper.get("/metricsx")).status_code == 404
    assert (await scraper.post("/metrics")).status_code == 404


async def test_it_is_gzipped_where_that_is_asked_for(stand: Stand, scraper: httpx.AsyncClient) -> None:
    await stand.load()
    async with scraper.stream("GET", "/metrics", headers={"Accept-Encoding": "gzip"}) as answer:
        raw = b"".join([chunk async for chunk in answer.aiter_raw()])
    assert answer.headers["content-encoding"] == "gzip"
    assert b"policy_patch_active_info{" in gzip.decompress(raw)


async def test_names_keep_their_colons_in_openmetrics(stand: Stand, scraper: httpx.AsyncClient) -> None:
    Gauge("vllm:kv_cache_usage_perc", "As vLLM names its own.", registry=stand.registry)
    # What Prometheus 2.42 sends; Prometheus 3 says itself that names stay as they are.
    accept = (
        "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
        "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
    )
    answer = await scraper.get("/metrics", headers={"Accept": accept})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert "\nvllm:kv_cache_usage_perc 0.0\n" in answer.text


async def test_openmetrics_is_spoken_where_that_is_asked_for(
    stand: Stand, scraper: httpx.AsyncClient
) -> None:
    await stand.load()
    await stand.chat("pirate")
    answer = await scraper.get("/metrics", headers=OPENMETRICS)
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    assert families["policy_patch_requests"].type == "counter"
    assert families["policy_patch_time_to_first_token_seconds"].type == "histogram"


async def test_scrapes_that_come_together_share_a_page_that_is_younger_than_all_of_them(
    stand: Stand, scraper: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await stand.load()
    pages: list[bytes] = []
    encode = page.Pages._encode

    def counted(self: page.Pages, accept: str, *, is_gzipped: bool) -> tuple[bytes, float]:
        pages.append(encode(self, accept, is_gzipped=is_gzipped)[0])
        # Dear enough that the next one has to wait.
        return pages[-1], page.MAX_CREDIT_S + 0.2 * page.CPU_SHARE

    monkeypatch.setattr(page.Pages, "_encode", counted)
    await scraper.get("/metrics")
    started_s = time.monotonic()
    scrapes = [asyncio.create_task(scraper.get("/metrics")) for _ in range(25)]
    await asyncio.sleep(0.05)
    scrapes += [asyncio.create_task(scraper.get("/metrics")) for _ in range(25)]
    await asyncio.sleep(0.01)
    await stand.chat("pirate")
    texts = {(await scrape).text for scrape in scrapes}
    assert len(pages) == 2
    assert time.monotonic() - started_s >= 0.15
    # What happened while they waited is on it.
    assert all('requests_total{outcome="ok",patch="pirate"} 1.0' in text for text in texts)


async def test_a_scraper_that_goes_away_takes_nothing_from_the_others(
    stand: Stand, scraper: httpx.AsyncClient
) -> None:
    await stand.load()
    leaving, staying = (asyncio.create_task(scraper.get("/metrics")) for _ in range(2))
    await asyncio.sleep(0)
    leaving.cancel()
    assert (await staying).status_code == 200
    assert (await scraper.get("/metrics")).status_code == 200


async def test_a_page_that_fails_is_no_end_to_pages(
    stand: Stand, scraper: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(stand.metrics.catalog_collector, "freeze", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            await scraper.get("/metrics")
    assert (await scraper.get("/metrics")).status_code == 200


@pytest.mark.parametrize("accept", ["", OPENMETRICS["Accept"]])
async def test_what_is_filled_into_templates_is_what_the_library_writes(
    stand: Stand, scraper: httpx.AsyncClient, accept: str
) -> None:
    await stand.load()
    for name in ("pirate", "none"):
        use = stand.metrics.use(name)
        use.num_prompt_tokens, use.num_generated_tokens = 12_345_678, 3
        for seconds in (0.001, 0.02, 0.0213, 7.0, 1000.0):
            use.first_token.observe(seconds, trace_id="4bf92f3577b34da6a3ce929d0e0e4736")
            use.inter_token.observe(seconds, 2)
    ours = (await scraper.get("/metrics", headers={"Accept": accept})).text
    theirs = page.choose_encoder(accept)[0](stand.registry).decode()
    assert sorted(ours.splitlines()) == sorted(theirs.splitlines())
    assert ours.endswith("# EOF\n") == bool(accept)
