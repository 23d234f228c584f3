"""The seam of kinds: what a kind of patch says in its manifest, and which tensors follow from that.

Format, manifest, catalog and workers ask the body and know no kind by name. Another kind is a module beside
this one and its row in ``patches.kinds.KINDS``; ``docs/code.md`` says what else it touches.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, Self

import numpy as np

from patches.base_model import BaseModel
from patches.canonical import JsonValue
from patches.fields import FieldReader

#: Of safetensors, by the name that a manifest uses.
DTYPE_NAMES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


@dataclass(frozen=True, slots=True)
class TensorRule:
    """What one tensor of a patch has to be."""

    shape: tuple[int, ...]
    #: Names of safetensors, any of which will do.
    dtypes: frozenset[str]


class Body(Protocol):
    """The part of a manifest that only patches of one kind have."""

    #: Word for the kind in manifests, lists and metrics.
    kind: ClassVar[str]
    #: Of the files that hold it.
    format_version: ClassVar[int]
    #: What ``origin.method`` may be.
    methods: ClassVar[tuple[str, ...]]
    max_file_bytes: ClassVar[int]
    #: Whether its tensors fit a model in one dtype only, or in one that holds each of their values.
    is_dtype_bound: ClassVar[bool]
    #: The tensors that workers hold; a patch that lacks the first one can't be served.
    payload: ClassVar[tuple[str, ...]]

    @property
    def num_tokens(self) -> int:
        """How many positions it takes in front of a prompt."""
        ...

    @classmethod
    def read(cls, reader: FieldReader, model: BaseModel) -> Self:
        """Read its keys of a manifest; ``reader`` collects what is wrong with them."""
        ...

    def document(self) -> dict[str, JsonValue]:
        """Return its keys of a manifest; ``read`` is the inverse."""
        ...

    def tensor_rules(self, model: BaseModel) -> Mapping[str, TensorRule]:
        """Return which tensors there may be for ``model``, by name."""
        ...

    def missing(self, names: Collection[str]) -> str | None:
        """Return which tensors a patch lacks that has those of ``names``; None where it lacks none."""
        ...

    def value_problems(self, tensors: Mapping[str, np.ndarray]) -> Sequence[str]:
        """Return what is wrong with finite values of the right shapes; those of bfloat16 are bits."""
        ...

    def facts(self) -> Sequence[tuple[str, str]]:
        """Return what people should know of it, as rows of a word and a text."""
        ...
