"""Changes of tensors on their way into a file: what counts as one, and how they are packed."""

import torch

from patches.errors import DeltaError
from patches.kinds.delta import MAX_NUM_WEIGHTS, MAX_SHARE, ChangedTensor, DeltaBody, packed_positions


class Collected:
    """Takes changed tensors in order of their names; holds no more than the file will."""

    def __init__(self, dtype: str, share: str = "keep", size: str = "scale") -> None:
        """Begin with nothing.

        Args:
            dtype: Of the values in the file.
            share: What the caller calls how many weights change, for errors.
            size: What it calls how much they do.
        """
        self._share, self._size = share, size
        self._dtype = getattr(torch, dtype)
        self._tensors: list[ChangedTensor] = []
        self._parts: dict[str, list[torch.Tensor]] = {"values": [], "indices": [], "mask": []}

    def add(self, name: str, old: torch.Tensor, positions: torch.Tensor, values: torch.Tensor) -> None:
        """Take what becomes of one tensor; weights that stay the same in the file's dtype don't count.

        Args:
            name: Of the tensor in the checkpoint.
            old: ``[outputs, inputs]``, as it is stored.
            positions: int64, rising.
            values: What stands there afterwards, before it is rounded.

        Raises:
            DeltaError: Too many change, or one becomes what the dtype does not hold.
        """
        rounded = values.to(self._dtype)
        if not bool(torch.isfinite(rounded).all()):
            raise DeltaError(
                f"{self._size}: expected changes that {str(self._dtype).removeprefix('torch.')} holds, "
                f"got an infinite weight in {name}; choose a smaller one"
            )
        is_changed = rounded != old.reshape(-1)[positions].to(self._dtype)
        positions, rounded = positions[is_changed], rounded[is_changed]
        if not len(positions):
            return
        share = len(positions) / old.numel()
        if share > MAX_SHARE or old.numel() > MAX_NUM_WEIGHTS:
            raise DeltaError(
                f"{self._share}: expected at most {MAX_SHARE:.0%} of each tensor to change, got {share:.1%} "
                f"of {name}; choose a smaller one"
            )
        tensor = ChangedTensor(name, (old.shape[0], old.shape[1]), len(positions))
        self._tensors.append(tensor)
        self._parts["values"].append(rounded)
        self._parts["mask" if tensor.is_masked else "indices"].append(packed_positions(tensor, positions))

    def finish(self, if_none: str) -> tuple[DeltaBody, dict[str, torch.Tensor]]:
        """Return the body and the tensors of the file.

        Args:
            if_none: The error where nothing changes.

        Raises:
            DeltaError: Nothing changes.
        """
        if not self._tensors:
            raise DeltaError(if_none)
        tensors = {name: torch.cat(parts) for name, parts in self._parts.items() if parts}
        return DeltaBody(tuple(self._tensors)), tensors
