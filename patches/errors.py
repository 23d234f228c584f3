"""What can go wrong with a patch.

The tree::

    PatchError
    ├── PatchFormatError   (ValueError)       the bytes are no valid patch file; ``reason`` is a metric label
    ├── InvalidName        (ValueError)       a policy name or version outside the grammar
    ├── BaseModelMismatch  (ValueError)       made for another model; ``differences`` names each difference
    ├── KindMismatch       (ValueError)       a patch of a kind that this can't be done with
    ├── ModelUnusable      (ValueError)       a model that can't be read, or can't carry a prefix
    ├── CompileError       (ValueError)       a text or embeddings that can't become a patch
    ├── DeltaError         (ValueError)       checkpoints of which no weight patch can be made as asked
    ├── ScoresError        (ValueError)       scores of weights that can't be computed, or used as asked
    ├── ComposeError       (ValueError)       patches that can't be joined
    ├── AdapterError       (ValueError)       a PEFT adapter that can't be imported or exported
    ├── SignatureRefused   (ValueError)       no valid signature by a trusted key; ``reason`` as above
    ├── KeyUnusable        (ValueError)       a key file, or a folder of them, that can't be used
    ├── RevocationsInvalid (ValueError)       a list of revoked digests that can't be read
    ├── EvaluationError    (ValueError)       a suite, an arm or a gate that can't be evaluated as asked
    ├── SubjectFailed      (RuntimeError)     the model or server that is evaluated gave no usable answer
    ├── DataUnavailable    (LookupError)      a package is unavailable, or isn't the pinned one
    ├── SamplingInvalid    (ValueError)       answers that can't be drawn so, such as at temperature -1
    ├── RecipeInvalid      (ValueError)       a recipe that can't be followed, and which key of it
    ├── PairsError         (ValueError)       prompts, answers or pairs that can't be used
    ├── TrainingError      (ValueError)       a training run that can't begin as it was asked for
    ├── TrainingStopped    (RuntimeError)     a training run that ended early; its checkpoint is kept
    └── PatchExists        (FileExistsError)  another content already has this file name

Every error survives pickling, because engine processes hand them to each other.
"""

from collections.abc import Sequence

#: Every value of ``PatchFormatError.reason``. Metrics use these as label values, so the set is closed.
FORMAT_REASONS = (
    "unreadable",
    "too_large",
    "truncated",
    "not_safetensors",
    "bad_header",
    "bad_manifest",
    "bad_name",
    "unsupported_version",
    "bad_tensor",
    "digest_mismatch",
)

#: Every value of ``SignatureRefused.reason``, a closed set for the same purpose.
SIGNATURE_REASONS = ("unsigned", "bad_signature", "untrusted_signer", "signature_mismatch")


class PatchError(Exception):
    """Root of everything that this package raises on purpose."""


class PatchFormatError(PatchError, ValueError):
    """The bytes are not a valid patch file."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)
        #: One of ``FORMAT_REASONS``.
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return self.message


class InvalidName(PatchError, ValueError):
    """A policy name or a version does not follow the grammar of ``patches.names``."""


class BaseModelMismatch(PatchError, ValueError):
    """The patch belongs to another model than the one at hand."""

    def __init__(self, differences: Sequence[str]) -> None:
        super().__init__(list(differences))
        #: One sentence per differing property, such as ``dtype: expected bfloat16, got float32``.
        self.differences = list(differences)

    def __str__(self) -> str:
        return "the patch was made for another base model: " + "; ".join(self.differences)


class KindMismatch(PatchError, ValueError):
    """What was asked for can't be done with a patch of this kind."""


class ModelUnusable(PatchError, ValueError):
    """The model can't be read, or its kind can't carry a prefix."""


class CompileError(PatchError, ValueError):
    """The text, or the embeddings, can't become a patch."""


class DeltaError(PatchError, ValueError):
    """Of these checkpoints no weight patch can be made as it was asked for."""


class ScoresError(PatchError, ValueError):
    """Scores of weights can't be computed, or can't be used as it was asked for."""


class ComposeError(PatchError, ValueError):
    """These patches can't be joined into one."""


class AdapterError(PatchError, ValueError):
    """This PEFT adapter can't be imported, or the patch can't be exported as one."""


class SignatureRefused(PatchError, ValueError):
    """The patch has no valid signature by a trusted key."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)
        #: One of ``SIGNATURE_REASONS``.
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return self.message


class KeyUnusable(PatchError, ValueError):
    """A file is not a key of a kind that signs patches, or a folder holds none."""


class RevocationsInvalid(PatchError, ValueError):
    """The list of revoked digests can't be read, or a line of it is not a digest."""


class EvaluationError(PatchError, ValueError):
    """A suite, an arm or a gate can't be evaluated as asked."""


class SubjectFailed(PatchError, RuntimeError):
    """The model or the server that is evaluated gave no usable answer."""


class DataUnavailable(PatchError, LookupError):
    """A package that carries data or a judge is unavailable, or holds other bytes than the pinned ones."""


class SamplingInvalid(PatchError, ValueError):
    """A value that says how answers are drawn is outside its range."""


class RecipeInvalid(PatchError, ValueError):
    """A recipe can't be followed: a key or value is wrong, or something that it needs is missing."""


class PairsError(PatchError, ValueError):
    """Prompts, answers or preference pairs that can't be used, and why."""


class TrainingError(PatchError, ValueError):
    """A training run can't begin as it was asked for."""


class TrainingStopped(PatchError, RuntimeError):
    """A training run ended before its time: no finite loss, no memory, no disk. Its checkpoint is kept."""


class PatchExists(PatchError, FileExistsError):
    """Another patch already has this file name."""
