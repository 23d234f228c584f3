"""The processes that train together: one, or several that `accelerate launch` started.

Every process holds the whole model and its own share of a step's rows; what is summed over the rows is summed
over the processes. The learned values are small, so that is one small message a step.
"""

import os
from typing import Any, Protocol

import torch

from patches.errors import TrainingError


class Ranks(Protocol):
    """The process group, as the loop sees it."""

    index: int
    size: int

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum a tensor over all processes; each gets the result."""

    def wait(self) -> None:
        """Wait until every process is here."""


class OneRank:
    """A process by itself."""

    index = 0
    size = 1

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensor."""
        return tensor

    def wait(self) -> None:
        """Return at once."""


class AccelerateRanks:
    """The processes of `accelerate launch`."""

    def __init__(self, device: str) -> None:
        try:
            from accelerate import PartialState
        except ImportError:
            raise TrainingError(
                "several processes need accelerate; install policypatch[train], or start one"
            ) from None
        self._state: Any = PartialState(cpu=device == "cpu")
        self.index = int(self._state.process_index)
        self.size = int(self._state.num_processes)
        self.device = str(self._state.device)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over all processes."""
        from accelerate.utils import reduce

        total: torch.Tensor = reduce(tensor, reduction="sum")
        return total

    def wait(self) -> None:
        """Wait for the others."""
        self._state.wait_for_everyone()


def join_ranks(device: str) -> tuple[Ranks, str]:
    """Join the process group that this process was started in, if any.

    Returns:
        The group, and the device that this process computes on.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        return OneRank(), device
    ranks = AccelerateRanks(device)
    return ranks, ranks.device
