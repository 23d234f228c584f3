"""The worker on machines without a GPU; a module of its own, since vLLM's can't be imported elsewhere."""

from typing import Any

from vllm.v1.worker.cpu_worker import CPUWorker

from server.engine.logs import without_native_lines
from server.engine.worker import PatchedWorker


class PatchedCPUWorker(PatchedWorker, CPUWorker):
    """vLLM's, with patches."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # That memory is taken from the node that was chosen is no warning.
        with without_native_lines("NUMA binding: Using MEMBIND policy"):
            super().__init__(*args, **kwargs)
