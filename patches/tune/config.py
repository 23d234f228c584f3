"""How a model is tuned: one frozen dataclass, whose defaults are the command's."""

from dataclasses import asdict, dataclass

from patches.base_model import DTYPES
from patches.canonical import JsonValue
from patches.errors import TrainingError
from patches.train.config import SCHEDULES, CheckedConfig

WEIGHTS = ("all", "linear")


@dataclass(frozen=True)
class TuneConfig(CheckedConfig):
    """By which steps; the rates are those of the code that SPA's authors published."""

    #: ``all`` of the model, or ``linear`` layers of its decoder layers alone: what a weight patch can hold.
    weights: str = "all"
    epochs: int = 1
    #: In place of epochs.
    steps: int | None = None
    learning_rate: float = 3e-5
    schedule: str = "cosine"
    #: Share of the steps in which the learning rate rises.
    warmup: float = 0.03
    weight_decay: float = 0.0
    batch_size: int = 4
    #: Forward passes for one step.
    accumulate: int = 1
    #: Tokens of prompt and answer together; longer rows are left out and counted.
    max_length: int = 1024
    max_grad_norm: float = 1.0
    #: The share of weights that ``--protect`` holds.
    share: float = 0.01
    seed: int = 0
    #: Of the folder's weights; the base's own where ``None``. What small steps change is lost in bfloat16.
    dtype: str | None = None

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            TrainingError: One is outside its range.
        """
        for name, allowed in (("weights", WEIGHTS), ("schedule", SCHEDULES), ("dtype", (None, *DTYPES))):
            if getattr(self, name) not in allowed:
                expected = ", ".join(word for word in allowed if word is not None)
                raise TrainingError(f"{name}: expected {expected}, got {getattr(self, name)!r}")
        for name in ("epochs", "batch_size", "accumulate", "max_length"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        self._require("steps", self.steps is None or self.steps >= 1, "at least 1")
        for name in ("learning_rate", "max_grad_norm"):
            self._require(name, 0 < getattr(self, name) < float("inf"), "more than 0")
        self._require("weight_decay", 0 <= self.weight_decay < float("inf"), "at least 0")
        self._require("warmup", 0 <= self.warmup < 1, "at least 0 and less than 1")
        self._require("seed", self.seed >= 0, "at least 0")

    def as_json(self) -> dict[str, JsonValue]:
        """Return the configuration for the record beside the model."""
        return {name: value for name, value in asdict(self).items() if value is not None}
