"""Workers over vLLM's worker RPC: a prefix is sent once to every worker, and every worker confirms it."""

import asyncio
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save as save_safetensors

from server.memory.residency import ResidencyError

if TYPE_CHECKING:
    from server.engine.client import PatchedAsyncLLM

#: A worker that does not answer for so long has failed. Generous: the RPC waits for the running step.
RPC_TIMEOUT_S = 120.0

#: Seconds between two questions whether the workers are through with a prefix.
POLL_S = 0.002


class RpcWorkers:
    """The workers of one engine, of all its data-parallel ranks; ``server.memory.residency.Workers``."""

    def __init__(self, engine: "PatchedAsyncLLM") -> None:
        self._engine = engine

    async def check(self, digest: str, kv: torch.Tensor) -> int:
        """Have every worker judge shape and dtype; see ``Workers.check``.

        Raises:
            ResidencyError: a worker could not hold it, failed, or confirmed something else.
        """
        dtype = str(kv.dtype).removeprefix("torch.")
        answers = await self._ask(digest, "policy_patch_check", digest, list(kv.shape), dtype)
        return _confirmed(answers, digest, kv)

    async def load(self, digest: str, kv: torch.Tensor, *, is_pinned: bool = False) -> int:
        """Send a prefix to every worker and wait until each has its part; see ``Workers.load``.

        Raises:
            ResidencyError: a worker refused, failed, or confirmed something else. Nothing stays behind.
        """
        # In a thread: a large prefix takes a while to copy, and the event loop is serving.
        blob = await asyncio.to_thread(lambda: save_safetensors({"kv": kv.contiguous()}))
        try:
            await self._ask(digest, "policy_patch_load", digest, blob, is_pinned)
            while None in (answers := await self._ask(digest, "policy_patch_loaded", digest)):
                await asyncio.sleep(POLL_S)
            return _confirmed(answers, digest, kv)
        except ResidencyError:
            await self._withdraw(digest)
            raise

    async def unload(self, digest: str) -> None:
        """Drop a prefix on every worker."""
        await self._ask(digest, "policy_patch_unload", digest)

    async def _ask(self, digest: str, method: str, *args: Any) -> list[Any]:
        try:
            return await self._engine.ask_workers(method, *args, timeout_s=RPC_TIMEOUT_S)
        except Exception as error:
            # vLLM reports a worker's refusal as a bare Exception with its text.
            raise ResidencyError(f"prefix {digest}: a worker refused it: {error}") from error

    async def _withdraw(self, digest: str) -> None:
        if not self._engine.errored:
            await self.unload(digest)


def _confirmed(answers: list[Any], digest: str, kv: torch.Tensor) -> int:
    expected = {"digest": digest, "shape": list(kv.shape)}
    if not answers or any({key: answer[key] for key in expected} != expected for answer in answers):
        raise ResidencyError(f"prefix {digest}: expected every worker to confirm {expected}, got {answers}")
    return sum(int(answer["nbytes"]) for answer in answers)
