"""What the module of a baseline offers to the trainer and to an evaluation."""

from pathlib import Path
from typing import Any, Protocol

import torch

from patches.model import LoadedModel
from patches.train.learned import Form


class BaselineForm(Form, Protocol):
    """A form of values whose result is saved by itself, as it is not a patch."""

    def save(self, values: torch.Tensor, path: Path) -> str:
        """Write a finished run's values.

        Args:
            values: What was learned.
            path: Folder and name; the baseline adds the suffix of its kind.

        Returns:
            One line for the user: what was written where, and what it is for.

        Raises:
            OSError: The folder can't be written.
        """


class BaselineModule(Protocol):
    """What the module of a baseline offers."""

    def form(self, network: Any, size: int, seed: int) -> BaselineForm:
        """Attach a baseline of this size to a network.

        Raises:
            TrainingError: The network can't carry it.
        """

    def require_saved(self, folder: Path) -> None:
        """Check, without loading it, that a folder holds a saved baseline.

        Raises:
            EvaluationError: It does not.
        """

    def merged(self, model: LoadedModel, folder: Path) -> tuple[LoadedModel, str]:
        """Return a model with a saved baseline in it, and the digest of what was saved.

        Raises:
            EvaluationError: The folder holds none, or what reads it is not installed.
        """
