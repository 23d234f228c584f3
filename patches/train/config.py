"""How a patch is trained: one frozen dataclass, whose defaults are the command's.

Everything in it reaches the patch's manifest, and nothing else does: no path, no device, no time. Two runs
with equal configurations on equal data give one digest on one machine.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from patches.base_model import DTYPES
from patches.canonical import JsonValue
from patches.deltas.sides import MAX_SHARE, SIDES
from patches.errors import TrainingError
from patches.kinds.prefix import MAX_NUM_VIRTUAL_TOKENS
from patches.kinds.steering import SITES, Steering

KINDS = ("prompt", "prefix", "steering", "delta")
STAGES = ("sft", "dpo")
INITS = ("tile", "pool", "system", "random")
REFERENCES = ("sft", "base", "teacher", "none")
SCHEDULES = ("constant", "linear", "cosine")
DEFAULT_STRENGTH = 0.1
#: kind -> what an option is that was left out, where that differs from the field's default. Weights of the
#: model itself bear smaller steps than values that begin with nothing; the paper takes a hundred.
DEFAULTS_OF: Mapping[str, Mapping[str, Any]] = {
    "delta": {"stages": ("sft",), "steps": 100, "sft_learning_rate": 3e-4, "dpo_learning_rate": 1e-4}
}


class CheckedConfig:
    """A configuration that checks its options one by one."""

    def _require(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise TrainingError(f"{name}: expected {expected}, got {getattr(self, name)}")


@dataclass(frozen=True)
class TrainConfig(CheckedConfig):
    """What is learned, from which start, by which steps."""

    #: ``prompt`` learns input embeddings, ``prefix`` the K/V of every layer, ``steering`` a vector for some.
    kind: str = "prompt"
    num_virtual_tokens: int = 48
    #: What the prefix starts as; ``patches.train.initial`` says what each means.
    init: str = "tile"
    stages: tuple[str, ...] = STAGES
    sft_epochs: int = 3
    sft_learning_rate: float = 5e-3
    dpo_epochs: int = 2
    dpo_learning_rate: float = 1e-3
    #: Pairs that a stage learns from, a sample of all; every pair where ``None``.
    sft_pairs: int | None = None
    dpo_pairs: int | None = None
    #: Steps of each stage, in place of its epochs.
    steps: int | None = None
    beta: float = 0.1
    dpo_reference: str = "sft"
    #: Weight of the KL divergence to the unpatched model on benign prompts.
    benign_weight: float = 1.0
    #: Tokens of an answer, or a document, that count there; what follows the first few differs little.
    benign_tokens: int = 64
    #: Benign rows of a step; as many as pairs where ``None``.
    benign_rows: int | None = None
    schedule: str = "cosine"
    #: Share of a stage's steps in which the learning rate rises.
    warmup: float = 0.1
    #: Pairs in one forward pass; of benign rows at most as many in another.
    batch_size: int = 8
    #: Forward passes for one step.
    accumulate: int = 1
    #: Tokens of prompt and answer together; longer samples are left out and counted.
    max_length: int = 1024
    max_grad_norm: float = 1.0
    #: Steps between validations; ``None`` validates after each epoch.
    validate_every: int | None = None
    #: Validations without an improvement after which a stage ends; 0 never ends one.
    patience: int = 3
    compute_dtype: str = "float32"
    seed: int = 0
    #: Of ``steering`` alone: the layers that it acts on, such as ``19-29`` (the last third where ``None``),
    #: where in a layer, and how much of a hidden state's length it may add.
    layers: str | None = None
    site: str | None = None
    strength: float | None = None
    #: Of ``delta`` alone: the share of the model's weights that learns (0.01 where ``None``), and which ones:
    #: those of the ``top`` scores where ``None``; ``bottom`` and ``random`` are to compare with.
    share: float | None = None
    side: str | None = None
    #: Learn a baseline instead of a patch: its option (``patches.train.baselines``), and how large it is.
    baseline: tuple[str, int] | None = None

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            TrainingError: One is outside its range.
        """
        choices = {
            "kind": KINDS,
            "init": INITS,
            "dpo_reference": REFERENCES,
            "schedule": SCHEDULES,
            "compute_dtype": DTYPES,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise TrainingError(f"{name}: expected {', '.join(allowed)}, got {getattr(self, name)!r}")
        if not self.stages or self.stages not in (STAGES, ("sft",), ("dpo",)):
            raise TrainingError(f"stages: expected sft, dpo or sft,dpo, got {','.join(self.stages)!r}")
        for name in ("sft_epochs", "dpo_epochs", "batch_size", "accumulate", "max_length"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("sft_learning_rate", "dpo_learning_rate", "beta", "max_grad_norm"):
            self._require(name, 0 < getattr(self, name) < float("inf"), "more than 0")
        self._require("benign_tokens", self.benign_tokens >= 1, "at least 1")
        for name in ("sft_pairs", "dpo_pairs", "benign_rows", "steps"):
            self._require(name, getattr(self, name) is None or getattr(self, name) >= 1, "at least 1")
        if self.baseline is not None and self.baseline[1] < 1:
            raise TrainingError(f"{self.baseline[0]}: expected at least 1, got {self.baseline[1]}")
        self._check_kinds()
        self._require("benign_weight", 0 <= self.benign_weight < float("inf"), "at least 0")
        self._require("warmup", 0 <= self.warmup < 1, "at least 0 and less than 1")
        self._require("patience", self.patience >= 0, "at least 0")
        self._require("validate_every", self.validate_every is None or self.validate_every >= 1, "at least 1")
        in_range = 1 <= self.num_virtual_tokens <= MAX_NUM_VIRTUAL_TOKENS
        self._require("num_virtual_tokens", in_range, f"1 to {MAX_NUM_VIRTUAL_TOKENS}")
        if self.stages == ("dpo",) and self.dpo_reference == "sft":
            raise TrainingError(
                "dpo_reference: expected base, teacher or none where the stage sft is left out, got 'sft'"
            )

    @classmethod
    def of(cls, **options: Any) -> Self:
        """Make the configuration of options that were given, with the defaults of their kind for the rest.

        Raises:
            TrainingError: One is outside its range.
        """
        return cls(**{**DEFAULTS_OF.get(options.get("kind", cls.kind), {}), **options})

    @property
    def steering(self) -> Steering:
        """How a learned vector is added: a share of the hidden state, and to the answer alone."""
        site, strength = self.site or SITES[0], self.strength or DEFAULT_STRENGTH
        return Steering(site, "relative", strength, tokens="answer")

    @property
    def rows_per_step(self) -> int:
        """Pairs that one step learns from."""
        return self.batch_size * self.accumulate

    @property
    def benign_rows_per_step(self) -> int:
        """Benign rows that one step stays silent on."""
        return self.rows_per_step if self.benign_rows is None else self.benign_rows

    def epochs_of(self, stage: str) -> int:
        """Return the number of epochs of a stage."""
        return self.sft_epochs if stage == "sft" else self.dpo_epochs

    def pairs_of(self, stage: str) -> int | None:
        """Return the number of pairs that a stage learns from; ``None`` for all."""
        return self.sft_pairs if stage == "sft" else self.dpo_pairs

    def learning_rate_of(self, stage: str) -> float:
        """Return the highest learning rate of a stage."""
        return self.sft_learning_rate if stage == "sft" else self.dpo_learning_rate

    def as_json(self) -> dict[str, JsonValue]:
        """Return the configuration for the manifest."""
        unused = ("num_virtual_tokens", "init") if self.kind in ("steering", "delta") else ()
        document = {k: v for k, v in asdict(self).items() if v is not None and k not in unused}
        baseline = dict([document.pop("baseline")]) if self.baseline is not None else {}
        return {**document, **baseline, "stages": list(self.stages)}

    def _check_kinds(self) -> None:
        for kind, names in {"steering": ("layers", "site", "strength"), "delta": ("share", "side")}.items():
            for name in names:
                is_used = self.kind == kind and self.baseline is None
                self._require(name, is_used or getattr(self, name) is None, f"it with the kind {kind} only")
        self._require("share", self.share is None or 0 < self.share <= MAX_SHARE, f"0 to {MAX_SHARE:g}")
        self._require("side", self.side in (None, *SIDES), ", ".join(SIDES))
        self._require("site", self.site in (None, *SITES), " or ".join(SITES))
        self._require("strength", self.strength is None or 0 < self.strength <= 1, "more than 0, at most 1")
