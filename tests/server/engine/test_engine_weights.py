"""The engine's weights: stopped, written on every worker or on none, named, and never left half way."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from server.engine.client import OWN_WEIGHTS, PatchedAsyncLLM
from server.engine.engine_weights import PausedEngineWeights
from server.memory.weights import WeightsNotChanged


class Engine:
    """Two workers; the second one fails, or confirms something else, where a test says so."""

    def __init__(self) -> None:
        self.vllm_config = SimpleNamespace(parallel_config=SimpleNamespace(data_parallel_size=2))
        self.workers: list[str | None] = [None, None]
        self.version = OWN_WEIGHTS
        self.is_paused = False
        self.may_pause = asyncio.Event()
        self.may_pause.set()
        self.refuses: str | None = None
        self.writes_less = False

    async def pause_generation(self, *, mode: str, clear_cache: bool) -> None:
        assert (mode, clear_cache) == ("wait", True)
        await self.may_pause.wait()
        self.is_paused = True

    async def resume_generation(self) -> None:
        self.is_paused = False

    async def update_weight_version(self, version: str) -> None:
        self.version = version

    async def ask_workers(self, method: str, digest: str | None, *, timeout_s: float) -> list[Any]:
        assert self.is_paused
        self.workers[0] = digest
        if digest is not None and digest == self.refuses:
            raise Exception("worker 1 says no")
        self.workers[1] = digest
        num_changed = 0 if digest is None else 7
        return [(digest, num_changed), (digest, num_changed - (self.writes_less and digest is not None))]


def weights_of(engine: Engine) -> PausedEngineWeights:
    return PausedEngineWeights(cast(PatchedAsyncLLM, engine))


async def test_an_engine_that_has_ended_is_told_in_the_words_of_the_seam() -> None:
    class Ended(Engine):
        async def pause_generation(self, *, mode: str, clear_cache: bool) -> None:
            raise Exception("Call to pause_scheduler method failed")

        async def resume_generation(self) -> None:
            raise Exception("Call to resume_scheduler method failed")

    weights = weights_of(Ended())
    with pytest.raises(WeightsNotChanged, match="the engine did not stop"):
        await weights.write("a", 7, timeout_s=30)
    with pytest.raises(WeightsNotChanged, match="the engine does not go on"):
        await weights.resume()


async def test_every_worker_writes_while_the_engine_is_stopped() -> None:
    weights = weights_of(engine := Engine())
    await weights.write("a", 7, timeout_s=30)
    assert (engine.workers, engine.version, engine.is_paused) == (["a", "a"], "a", True)
    await weights.resume()
    await weights.write(None, 0, timeout_s=30)
    assert (engine.workers, engine.version) == ([None, None], OWN_WEIGHTS)


@pytest.mark.parametrize("fault", ["refuses", "writes less"])
def test_where_one_worker_does_not_write_all_go_back(fault: str) -> None:
    """One set of weights on every worker: the guard without which half of a batch is answered by another."""

    async def run() -> None:
        weights = weights_of(engine := Engine())
        await weights.write("a", 7, timeout_s=30)
        engine.refuses = "b" if fault == "refuses" else None
        with pytest.raises(WeightsNotChanged):
            await weights.write("b", 8 if fault == "writes less" else 7, timeout_s=30)
        assert (engine.workers, engine.version) == (["a", "a"], "a")

    asyncio.run(run())


async def test_an_engine_that_is_never_idle_is_not_written_to() -> None:
    weights = weights_of(engine := Engine())
    engine.may_pause.clear()
    with pytest.raises(WeightsNotChanged, match=r"not idle within 0\.01 s"):
        await weights.write("a", 7, timeout_s=0.01)
    assert engine.workers == [None, None]
