"""Device slots of one worker: copies of prefixes, within a bound, least recently used out first.

Slots are a cache of host memory and nothing depends on what they hold: a prefix without one is copied in, on
the stream of the forward pass that needs it, and nothing waits for the copy. Memory that a slot gives up is
reused on the same stream, behind whatever still reads it. Invariant: slots never take more than their bound.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch


@dataclass(slots=True)
class SlotCounts:
    """What happened to the slots."""

    num_loads: int = 0
    num_evictions: int = 0
    #: What slots hold more than before; negative where they hold less.
    num_bytes: int = 0


class DeviceSlots:
    """Prefixes on one device."""

    def __init__(self, device: torch.device, max_bytes: int) -> None:
        self._device = device
        self._max_bytes = max_bytes
        #: Least recently used first.
        self._slots: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._pinned: set[str] = set()
        self._num_bytes = 0
        self._counts = SlotCounts()

    @property
    def max_bytes(self) -> int:
        """The bound."""
        return self._max_bytes

    def pin(self, digest: str) -> None:
        """Make ``digest`` keep its slot as long as one without a pin can go instead."""
        self._pinned.add(digest)

    def drop(self, digest: str) -> None:
        """Empty the slot of ``digest``, if it has one, and take its pin."""
        self._pinned.discard(digest)
        if digest in self._slots:
            self._remove(digest)

    def held(self) -> list[str]:
        """Return the digests that have a slot, least recently used first."""
        return list(self._slots)

    def together(self, hosted: Mapping[str, torch.Tensor]) -> Iterator[dict[str, torch.Tensor]]:
        """Bring prefixes onto the device, as many at a time as there is room for.

        Args:
            hosted: digest -> tensor in host memory, each no larger than the bound.

        Yields:
            digest -> tensor on the device. What is done with them must be launched on the current stream
            before the next ones are asked for, which empties the mapping.
        """
        chosen: dict[str, torch.Tensor] = {}
        num_bytes = 0
        for digest, tensor in hosted.items():
            if chosen and num_bytes + tensor.nbytes > self._max_bytes:
                yield chosen
                # The caller's hold on them would keep their memory from those that follow.
                chosen.clear()
                num_bytes = 0
            num_bytes += tensor.nbytes
            chosen[digest] = self._bring(digest, tensor, chosen)
        if chosen:
            yield chosen

    def _bring(self, digest: str, hosted: torch.Tensor, kept: Mapping[str, torch.Tensor]) -> torch.Tensor:
        if digest in self._slots:
            self._slots.move_to_end(digest)
            return self._slots[digest]
        self._make_room(hosted.nbytes, kept)
        slot = self._slots[digest] = hosted.to(self._device, non_blocking=True)
        self._num_bytes += slot.nbytes
        self._counts.num_bytes += slot.nbytes
        self._counts.num_loads += 1
        return slot

    def _make_room(self, num_bytes: int, kept: Mapping[str, torch.Tensor]) -> None:
        if self._num_bytes + num_bytes <= self._max_bytes:
            return
        # Sorting is stable: first those without a pin, both in order of last use.
        going = sorted(
            (digest for digest in self._slots if digest not in kept), key=self._pinned.__contains__
        )
        for digest in going:
            self._remove(digest)
            self._counts.num_evictions += 1
            if self._num_bytes + num_bytes <= self._max_bytes:
                return

    def _remove(self, digest: str) -> None:
        freed = self._slots.pop(digest).nbytes
        self._num_bytes -= freed
        self._counts.num_bytes -= freed

    def take_counts(self) -> SlotCounts:
        """Return what happened since the last call."""
        taken, self._counts = self._counts, SlotCounts()
        return taken
