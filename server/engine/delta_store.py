"""The weight patches of one worker: prepared beside the model, of which at most one is written into it.

Everything but preparing runs on the thread of the steps. Invariants: either all weights of a patch are
written or none; what stood there before is kept, so that the model's own weights come back to the last bit.
"""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_safetensors

from patches.checkpoint import StoredTensor, read_checkpoint
from patches.kinds.delta import ChangedTensor, DeltaBody
from server.engine.stores import Layout
from server.engine.weight_places import Place, Places

#: Weights of each tensor that are compared with the checkpoint before anything is written.
_NUM_COMPARED = 64


@dataclass(frozen=True, slots=True)
class _Write:
    """New values for one tensor of the checkpoint."""

    tensor: ChangedTensor
    place: Place
    #: int64, on the CPU: those of the file that are here, in the checkpoint's tensor.
    stored: torch.Tensor
    #: int64: the same in the model's memory.
    positions: torch.Tensor
    values: torch.Tensor

    @property
    def num_counted(self) -> int:
        """How many weights of the file this rank answers for."""
        return 0 if self.place.is_copy else len(self.positions)


class DeltaStore:
    """Holds weight patches for one worker, and writes one of them where it is told to."""

    def __init__(self, places: Places, folder: Path, dtype: torch.dtype, device: torch.device) -> None:
        self._places = places
        self._folder = folder
        self._dtype = dtype
        self._device = device
        self._stored: Mapping[str, StoredTensor] = {}
        self._threads = ThreadPoolExecutor(1, "weight-patches")
        self._prepared: dict[str, Future[list[_Write]]] = {}
        self._layouts: dict[str, Layout] = {}
        #: What is written now, and for each of its writes what stood there before.
        self._written: str | None = None
        self._before: list[tuple[_Write, torch.Tensor]] = []

    def check(self, digest: str, layout: Layout, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Confirm that every tensor of a patch is one of this model's; see ``PatchStore.check``."""
        body = body_of(facts)
        for tensor in body.tensors:
            self._places.find(tensor.name, tensor.shape)
        # New and old values; positions of 8 bytes in the file and in the model. At most: all on this rank.
        nbytes = body.num_changed * 2 * (8 + self._dtype.itemsize)
        return {"digest": digest, "layout": dict(layout), "nbytes": nbytes}

    def load(self, digest: str, blob: bytes, is_pinned: bool, facts: Mapping[str, Any]) -> None:
        """Begin to prepare a patch, beside the steps; see ``PatchStore.load``."""
        if digest not in self._prepared:
            tensors = load_safetensors(blob)
            self._layouts[digest] = {
                name: (list(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in tensors.items()
            }
            self._prepared[digest] = self._threads.submit(self._prepare, tensors, body_of(facts))

    def loaded(self, digest: str) -> dict[str, Any] | None:
        """Return what ``check`` says of a patch that is prepared; see ``PatchStore.loaded``."""
        future = self._prepared[digest]
        if not future.done():
            return None
        future.result()
        return {"digest": digest, "layout": dict(self._layouts[digest]), "nbytes": self._nbytes(future)}

    def unload(self, digest: str) -> int:
        """Drop a patch; see ``PatchStore.unload``.

        Raises:
            ValueError: It is written.
        """
        if digest == self._written:
            raise ValueError(f"{digest}: it is written into the model; take it back first")
        future = self._prepared.pop(digest, None)
        self._layouts.pop(digest, None)
        return 0 if future is None or future.cancel() or not future.done() else self._nbytes(future)

    def resident(self) -> dict[str, int]:
        """See ``PatchStore.resident``."""
        return {digest: self._nbytes(future) for digest, future in self._prepared.items() if future.done()}

    def write(self, digest: str | None) -> tuple[str | None, int]:
        """Make the model the one of a patch, or its own; nothing may be computed meanwhile.

        Args:
            digest: A patch that is prepared; ``None`` for the model's own weights.

        Returns:
            What is written now, and for how many of its weights this rank answers: of all ranks of an engine
            together for each.

        Raises:
            ValueError: The patch is not prepared, or a place does not hold what the checkpoint says; the
                model is its own then.
        """
        if digest != self._written:
            self._take_back()
            if digest is not None:
                self._put(digest)
        return self._written, sum(write.num_counted for write, _ in self._before)

    def _take_back(self) -> None:
        for write, before in self._before:
            write.place.weight[write.positions] = before
        self._before, self._written = [], None

    def _put(self, digest: str) -> None:
        if digest not in self._prepared:
            raise ValueError(f"{digest}: it was not sent")
        writes = self._prepared[digest].result()
        for write in writes:
            self._compare(write)
        self._before = [(write, write.place.weight[write.positions].clone()) for write in writes]
        self._written = digest
        for write in writes:
            write.place.weight[write.positions] = write.values

    def _prepare(self, tensors: Mapping[str, torch.Tensor], body: DeltaBody) -> list[_Write]:
        writes = []
        for change in body.changes(tensors):
            place = self._places.find(change.tensor.name, change.tensor.shape)
            if place is None:
                continue
            is_here, positions = place.local(change.positions)
            values = change.values[is_here].to(self._device, self._dtype)
            stored = change.positions[is_here]
            writes.append(_Write(change.tensor, place, stored, positions.to(self._device), values))
        self._stored = self._stored or read_checkpoint(self._folder)
        return writes

    def _compare(self, write: _Write) -> None:
        """Check that a place holds what the checkpoint says, at some of the positions that are to change.

        Raises:
            ValueError: It does not: vLLM lays these weights out differently, or something changed them.
        """
        name = write.tensor.name
        if name not in self._stored:
            raise ValueError(f"{name}: expected a tensor of the checkpoint, which has none of this name")
        step = max(1, len(write.positions) // _NUM_COMPARED)
        positions = write.positions[::step][:_NUM_COMPARED]
        stored = self._stored[name].values_at(write.stored[::step][:_NUM_COMPARED]).to(self._dtype)
        if not torch.equal(write.place.weight[positions].cpu(), stored):
            raise ValueError(
                f"{name}: expected the model to hold what the checkpoint says, got other values; weights "
                "that were changed after loading can't be patched"
            )

    def _nbytes(self, future: "Future[list[_Write]]") -> int:
        return sum(2 * (w.positions.nbytes + w.values.nbytes) for w in future.result())


def body_of(facts: Mapping[str, Any]) -> DeltaBody:
    """Return which tensors change, of the manifest's ``delta``."""
    return DeltaBody(
        tuple(
            ChangedTensor(str(entry["name"]), (rows, columns), int(entry["num_changed"]))
            for entry in facts["delta"]["tensors"]
            for rows, columns in [entry["shape"]]
        )
    )
