"""The worker on machines without a GPU; a module of its own, since vLLM's can't be imported elsewhere."""

from vllm.v1.worker.cpu_worker import CPUWorker

from server.engine.worker import PatchedWorker


class PatchedCPUWorker(PatchedWorker, CPUWorker):
    """vLLM's, with patches."""
