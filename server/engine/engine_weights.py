"""The engine's weights as ``server.memory.weights`` sees them: pause, write on every worker, name, resume.

Invariant: when ``write`` returns or raises, every worker holds the same weights. A worker that could not take
its own weights back ends the engine.
"""

import asyncio
import logging
from typing import Any

from server.engine.client import OWN_WEIGHTS, PatchedAsyncLLM
from server.engine.rpc_workers import RPC_TIMEOUT_S
from server.memory.weights import WeightsNotChanged

logger = logging.getLogger(__name__)


class PausedEngineWeights:
    """See ``server.memory.weights.EngineWeights``."""

    def __init__(self, engine: PatchedAsyncLLM) -> None:
        self._engine = engine
        #: What every worker holds, and how many weights it changes.
        self._written: tuple[str | None, int] = (None, 0)

    async def write(self, digest: str | None, num_changed: int, *, timeout_s: float) -> None:
        """See ``EngineWeights.write``."""
        try:
            async with asyncio.timeout(timeout_s):
                # Also resets the prefix cache: K/V of the weights before is worth nothing.
                await self._engine.pause_generation(mode="wait", clear_cache=True)
        except TimeoutError:
            raise WeightsNotChanged(f"the engine was not idle within {timeout_s:g} s") from None
        except Exception as error:
            # So vLLM reports an engine that has ended.
            raise WeightsNotChanged(f"the engine did not stop ({error})") from error
        before = self._written
        try:
            await self._write(digest, num_changed)
        except Exception as error:
            # vLLM reports a worker's refusal as a bare Exception with its text.
            logger.error("weights were not changed, and are taken back on every worker: %s", error)
            await self._write(*before)
            raise WeightsNotChanged(str(error)) from error

    async def resume(self) -> None:
        """See ``EngineWeights.resume``."""
        try:
            await self._engine.resume_generation()
        except Exception as error:
            raise WeightsNotChanged(f"the engine does not go on ({error})") from error

    async def _write(self, digest: str | None, num_changed: int) -> None:
        answers: list[Any] = await self._engine.ask_workers(
            "policy_patch_write_weights", digest, timeout_s=RPC_TIMEOUT_S
        )
        num_engines = self._engine.vllm_config.parallel_config.data_parallel_size
        num_expected = num_changed * num_engines if digest is not None else 0
        if {held for held, _ in answers} != {digest} or sum(n for _, n in answers) != num_expected:
            raise WeightsNotChanged(
                f"expected every worker to hold {digest}, and {num_expected} weights on all, got {answers}"
            )
        await self._engine.update_weight_version(digest or OWN_WEIGHTS)
        self._written = (digest, num_changed)
