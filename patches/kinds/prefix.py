"""The kind ``prefix``: N virtual tokens whose K/V lie in front of a request's own."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from patches.base_model import BaseModel
from patches.canonical import JsonValue
from patches.fields import FieldReader
from patches.kinds.body import DTYPE_NAMES, TensorRule

MAX_NUM_VIRTUAL_TOKENS = 4096

#: Tokens of one block of vLLM's KV cache on a GPU.
_BLOCK_SIZE = 16


@dataclass(frozen=True)
class PrefixBody:
    """How long a prefix is."""

    kind: ClassVar[str] = "prefix"
    format_version: ClassVar[int] = 1
    methods: ClassVar[tuple[str, ...]] = ("text", "peft", "compose", "trained")
    max_file_bytes: ClassVar[int] = 1024**3
    is_dtype_bound: ClassVar[bool] = True
    payload: ClassVar[tuple[str, ...]] = ("kv",)

    num_virtual_tokens: int

    @property
    def num_tokens(self) -> int:
        """See ``Body.num_tokens``."""
        return self.num_virtual_tokens

    @classmethod
    def read(cls, reader: FieldReader, model: BaseModel) -> Self:
        """See ``Body.read``."""
        return cls(reader.integer("num_virtual_tokens", 1, MAX_NUM_VIRTUAL_TOKENS))

    def document(self) -> dict[str, JsonValue]:
        """See ``Body.document``."""
        return {"num_virtual_tokens": self.num_virtual_tokens}

    def tensor_rules(self, model: BaseModel) -> Mapping[str, TensorRule]:
        """See ``Body.tensor_rules``."""
        n, dtype = self.num_virtual_tokens, DTYPE_NAMES[model.dtype]
        kv = (model.num_layers, 2, n, model.num_kv_heads, model.head_size)
        return {
            "embeddings": TensorRule((n, model.hidden_size), frozenset({dtype, "F32"})),
            "kv": TensorRule(kv, frozenset({dtype})),
        }

    def missing(self, names: Collection[str]) -> str | None:
        """See ``Body.missing``."""
        return None if names else "embeddings or kv"

    def value_problems(self, tensors: Mapping[str, np.ndarray]) -> Sequence[str]:
        """See ``Body.value_problems``."""
        return ()

    def facts(self) -> Sequence[tuple[str, str]]:
        """See ``Body.facts``."""
        n = self.num_virtual_tokens
        blocks, rest = divmod(n, _BLOCK_SIZE)
        fill = f"{blocks} block{'s' * (blocks != 1)} of {_BLOCK_SIZE}"
        return [("virtual tokens", f"{n} ({fill}{f' and {rest} tokens' if rest else ''})")]
