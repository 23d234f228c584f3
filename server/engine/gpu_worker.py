"""The worker on GPUs; a module of its own, since vLLM's can't be imported elsewhere."""

from vllm.v1.worker.gpu_worker import Worker

from server.engine.worker import PatchedWorker


class PatchedGPUWorker(PatchedWorker, Worker):
    """vLLM's, with patches."""
