"""Timing what runs in this process, on a GPU or a CPU: one sample at a time, with cold caches."""

import time
from collections.abc import Callable

import torch

#: More than the caches of a GPU (50 MiB of L2) or of a processor of a few cores hold.
FLUSH_BYTES = 256 * 2**20

#: Cycles that the device is kept busy while the host prepares: about a millisecond.
BUSY_CYCLES = 2_000_000


def flush_buffer(device: torch.device) -> torch.Tensor:
    """Return what ``measure`` rewrites to flush the caches."""
    return torch.zeros(FLUSH_BYTES, dtype=torch.uint8, device=device)


def measure(run: Callable[[], None], device: torch.device, flush: torch.Tensor) -> dict[str, float]:
    """Time one run with cold caches; seconds, as ``device_s`` and ``host_s``."""
    flush.add_(1)
    if device.type != "cuda":
        started = time.perf_counter()
        run()
        elapsed = time.perf_counter() - started
        return {"device_s": elapsed, "host_s": elapsed}
    torch.cuda.synchronize()
    torch.cuda._sleep(BUSY_CYCLES)  # type: ignore[no-untyped-call]
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]  # type: ignore[no-untyped-call]
    events[0].record()
    started = time.perf_counter()
    run()
    host_s = time.perf_counter() - started
    events[1].record()
    torch.cuda.synchronize()
    return {"device_s": events[0].elapsed_time(events[1]) / 1000, "host_s": host_s}
