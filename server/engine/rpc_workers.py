"""Workers over vLLM's worker RPC: a patch is sent once to every worker, and every worker confirms it."""

import asyncio
import json
from typing import TYPE_CHECKING, Any

from safetensors.torch import save as save_safetensors

from server.memory.payload import Payload
from server.memory.residency import ResidencyError

if TYPE_CHECKING:
    from server.engine.client import PatchedAsyncLLM

#: A worker that does not answer for so long has failed. Generous: the RPC waits for the running step.
RPC_TIMEOUT_S = 120.0

#: Seconds between two questions whether the workers are through with a prefix.
POLL_S = 0.002

#: Forms of patches that are remembered as confirmed.
_MAX_FORMS = 256


class RpcWorkers:
    """The workers of one engine, of all its data-parallel ranks; ``server.memory.residency.Workers``."""

    def __init__(self, engine: "PatchedAsyncLLM") -> None:
        self._engine = engine
        #: What all workers confirmed: kind, layout and facts -> bytes. They judge by nothing else, and the
        #: patches of a folder have few forms.
        self._confirmed: dict[str, int] = {}

    async def check(self, payload: Payload) -> int:
        """Have every worker judge kind and layout; see ``Workers.check``.

        Raises:
            ResidencyError: a worker could not hold it, failed, or confirmed something else.
        """
        form = json.dumps((payload.kind, payload.layout, dict(payload.facts)), sort_keys=True)
        if form not in self._confirmed:
            answers = await self._ask("policy_patch_check", *_described(payload))
            if len(self._confirmed) >= _MAX_FORMS:
                self._confirmed.clear()
            self._confirmed[form] = _confirmed(answers, payload)
        return self._confirmed[form]

    async def load(self, payload: Payload, *, is_pinned: bool = False) -> int:
        """Send a patch to every worker and wait until each has its part; see ``Workers.load``.

        Raises:
            ResidencyError: a worker refused, failed, or confirmed something else. Nothing stays behind.
        """
        # In a thread: a large prefix takes a while to copy, and the event loop is serving.
        blob = await asyncio.to_thread(
            lambda: save_safetensors({name: t.contiguous() for name, t in payload.tensors.items()})
        )
        digest, kind, _, facts = _described(payload)
        try:
            await self._ask("policy_patch_load", digest, kind, blob, facts, is_pinned)
            while None in (answers := await self._ask("policy_patch_loaded", digest)):
                await asyncio.sleep(POLL_S)
            return _confirmed(answers, payload)
        except ResidencyError:
            await self._withdraw(digest)
            raise

    async def unload(self, digest: str) -> None:
        """Drop a patch on every worker."""
        await self._ask("policy_patch_unload", digest)

    async def _ask(self, method: str, digest: str, *args: Any) -> list[Any]:
        try:
            return await self._engine.ask_workers(method, digest, *args, timeout_s=RPC_TIMEOUT_S)
        except Exception as error:
            # vLLM reports a worker's refusal as a bare Exception with its text.
            raise ResidencyError(f"{digest}: a worker refused it: {error}") from error

    async def _withdraw(self, digest: str) -> None:
        if not self._engine.errored:
            await self.unload(digest)


def _described(payload: Payload) -> tuple[str, str, dict[str, tuple[list[int], str]], dict[str, Any]]:
    return payload.digest, payload.kind, payload.layout, dict(payload.facts)


def _confirmed(answers: list[Any], payload: Payload) -> int:
    layout = payload.layout
    for answer in answers:
        confirmed = {name: (list(shape), dtype) for name, (shape, dtype) in answer["layout"].items()}
        if answer["digest"] != payload.digest or confirmed != layout:
            raise ResidencyError(
                f"{payload.digest}: expected every worker to confirm {layout}, got {answers}"
            )
    if not answers:
        raise ResidencyError(f"{payload.digest}: expected every worker to confirm it, none answered")
    return sum(int(answer["nbytes"]) for answer in answers)
