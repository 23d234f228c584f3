"""Residency over vLLM's worker RPC: a prefix is sent once to every worker, and every worker confirms it."""

import asyncio
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save as save_safetensors

from server.residency import ResidencyError

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

#: A worker that does not answer for so long has failed. Generous: the RPC waits for the running step.
RPC_TIMEOUT_S = 120.0


class WorkerResidency:
    """Keeps prefixes on the devices of all workers of one engine; a ``server.residency.Residency``."""

    def __init__(self, engine: "AsyncLLM") -> None:
        self._engine = engine

    async def load(self, digest: str, kv: torch.Tensor) -> int:
        """Send a prefix to every worker; see ``Residency.load``.

        Raises:
            ResidencyError: a worker refused, failed, or confirmed something else. Nothing stays behind.
        """
        # In a thread: a large prefix takes a while to copy, and the event loop is serving.
        blob = await asyncio.to_thread(lambda: save_safetensors({"kv": kv.contiguous()}))
        expected = {"digest": digest, "shape": list(kv.shape)}
        try:
            answers = await self._engine.collective_rpc(
                "policy_patch_load", timeout=RPC_TIMEOUT_S, args=(digest, blob)
            )
        except Exception as error:
            # vLLM reports a worker's refusal as a bare Exception with its text.
            await self._withdraw(digest)
            raise ResidencyError(f"prefix {digest}: a worker refused it: {error}") from error
        if not answers or any({key: answer[key] for key in expected} != expected for answer in answers):
            await self._withdraw(digest)
            raise ResidencyError(
                f"prefix {digest}: expected every worker to confirm {expected}, got {answers}"
            )
        return sum(int(answer["nbytes"]) for answer in answers)

    async def unload(self, digest: str) -> None:
        """Drop a prefix on every worker."""
        await self._engine.collective_rpc("policy_patch_unload", timeout=RPC_TIMEOUT_S, args=(digest,))

    async def _withdraw(self, digest: str) -> None:
        if not self._engine.errored:
            await self.unload(digest)
