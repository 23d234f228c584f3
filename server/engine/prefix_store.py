"""The prefixes of one worker: in host memory, where the front end put them, and in device slots before it.

``load`` only hands the bytes to a thread, so that the engine's steps go on while a rank's part is cut out and
copied into pinned memory; ``loaded`` tells when it is there. Everything else runs on the thread of the steps.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load as load_safetensors

from prefix_kernels import shard_prefix_kv
from server.engine.device_slots import DeviceSlots, SlotCounts
from server.engine.stores import Layout


@dataclass(frozen=True, slots=True)
class RankLayout:
    """The part of a model's K/V that one rank keeps."""

    #: Its layers, as indices into the model's.
    layers: Sequence[int]
    heads: range
    #: Of the whole model.
    num_kv_heads: int
    head_size: int
    dtype: torch.dtype

    def check(self, shape: Sequence[int], dtype: torch.dtype) -> None:
        """Compare ``[L, 2, N, H_kv, D]`` of a whole prefix with the model.

        Raises:
            ValueError: They don't fit.
        """
        heads = (shape[1], shape[3], shape[4])
        # What holds both exactly is the model's own: a narrower prefix is widened, and nothing is rounded.
        holds_exactly = torch.promote_types(dtype, self.dtype) == self.dtype
        if heads != (2, self.num_kv_heads, self.head_size) or not holds_exactly:
            raise ValueError(
                f"kv: expected [L, 2, N, {self.num_kv_heads}, {self.head_size}] {self.dtype}, "
                f"got {list(shape)} {dtype}"
            )
        if self.layers[-1] >= shape[0]:
            raise ValueError(f"kv: expected at least {self.layers[-1] + 1} layers, got {shape[0]}")

    def nbytes(self, shape: Sequence[int]) -> int:
        """Bytes of this rank's part of a prefix of ``shape``."""
        return len(self.layers) * 2 * shape[2] * len(self.heads) * self.head_size * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class _Hosted:
    #: [L_rank, 2, N, h_kv, D] in the model's dtype: quantized caches are quantized as they are written.
    tensor: torch.Tensor
    #: Of the whole prefix, as it was sent.
    layout: Layout


class PrefixStore:
    """Holds prefixes for the steps of one worker."""

    def __init__(self, layout: RankLayout, device: torch.device, max_device_bytes: int) -> None:
        self._layout = layout
        self._device = device
        self._slots = DeviceSlots(device, max_device_bytes)
        self._hosted: dict[str, _Hosted] = {}
        self._loading: dict[str, Future[_Hosted]] = {}
        self._loader = ThreadPoolExecutor(1, "policy-patch-load", initializer=self._enter_thread)

    def _enter_thread(self) -> None:
        # Pinning memory in a thread that never chose a device would open a context on the first one.
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)

    def check(self, digest: str, layout: Layout, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Confirm that a prefix could be held here.

        Returns:
            ``digest``, ``layout`` of the whole prefix and ``nbytes`` of the part that this rank would hold.

        Raises:
            ValueError: It does not have this model's shape or dtype, or is larger than all slots together.
        """
        shape, dtype = layout["kv"]
        self._layout.check(shape, getattr(torch, dtype))
        nbytes = self._layout.nbytes(shape)
        if nbytes > self._slots.max_bytes:
            raise ValueError(
                f"kv: its {nbytes} bytes exceed the {self._slots.max_bytes} of --patch-device-memory"
            )
        return {"digest": digest, "layout": dict(layout), "nbytes": nbytes}

    def load(self, digest: str, blob: bytes, is_pinned: bool, facts: Mapping[str, Any]) -> None:
        """Begin to put a prefix into host memory; what is there already stays as it is.

        Args:
            digest: The patch's digest.
            blob: Safetensors bytes with one tensor ``kv``, ``[L, 2, N, H_kv, D]``, of the whole model, in its
                dtype or a narrower one.
            is_pinned: Its device slot is the last to be given up.
            facts: What the manifest says for its kind; not needed here.
        """
        if is_pinned:
            self._slots.pin(digest)
        if digest not in self._hosted and digest not in self._loading:
            self._loading[digest] = self._loader.submit(self._host, digest, blob)

    def _host(self, digest: str, blob: bytes) -> _Hosted:
        kv = load_safetensors(blob)["kv"]
        layout = {"kv": (list(kv.shape), str(kv.dtype).removeprefix("torch."))}
        self.check(digest, layout, {})
        tensor = shard_prefix_kv(kv, self._layout.layers, self._layout.heads).to(self._layout.dtype)
        return _Hosted(tensor.pin_memory() if self._device.type == "cuda" else tensor, layout)

    def loaded(self, digest: str) -> dict[str, Any] | None:
        """Return what ``check`` says of a prefix that is in host memory; ``None`` while it is on its way.

        Raises:
            ValueError: It was never sent, or has another shape or dtype than this model's.
        """
        loading = self._loading.get(digest)
        if loading is not None:
            if not loading.done():
                return None
            del self._loading[digest]
            self._hosted[digest] = loading.result()
        if digest not in self._hosted:
            raise ValueError(f"prefix {digest} was not sent")
        hosted = self._hosted[digest]
        return {"digest": digest, "layout": dict(hosted.layout), "nbytes": hosted.tensor.nbytes}

    def unload(self, digest: str) -> int:
        """Drop a prefix and return the bytes of host memory set free; 0 where it was not there."""
        self._loading.pop(digest, None)
        self._slots.drop(digest)
        dropped = self._hosted.pop(digest, None)
        return 0 if dropped is None else dropped.tensor.nbytes

    def resident(self) -> dict[str, int]:
        """Return digest -> bytes for what is in host memory."""
        return {digest: hosted.tensor.nbytes for digest, hosted in self._hosted.items()}

    def in_slots(self) -> list[str]:
        """Return the digests that have a device slot, least recently used first."""
        return self._slots.held()

    def __contains__(self, digest: str) -> bool:
        return digest in self._hosted

    def together(self, digests: Iterable[str]) -> Iterator[dict[str, torch.Tensor]]:
        """Bring prefixes of host memory onto the device; see ``DeviceSlots.together``."""
        return self._slots.together({digest: self._hosted[digest].tensor for digest in digests})

    def take_counts(self) -> SlotCounts:
        """Return what happened to the slots since the last call."""
        return self._slots.take_counts()
