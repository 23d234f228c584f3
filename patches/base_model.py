"""The fingerprint of a base model as a manifest writes it."""

from collections.abc import Mapping
from dataclasses import dataclass

from patches.canonical import JsonValue
from patches.fields import FieldReader

DTYPES = ("bfloat16", "float16", "float32")
MAX_DIMENSION = 2**20


@dataclass(frozen=True)
class BaseModel:
    """The fingerprint of the model that a patch belongs to; ``patches.fingerprint`` makes it."""

    #: Class name in the model's configuration, such as ``LlamaForCausalLM``.
    architecture: str
    num_layers: int
    #: Before any split over tensor-parallel ranks.
    num_kv_heads: int
    head_size: int
    hidden_size: int
    #: Canonical rotary parameters. Flat, or one object per kind of attention layer (Gemma 3).
    rope: Mapping[str, JsonValue]
    #: The dtype the model runs in, one of ``DTYPES``; not necessarily the one its weights are stored in.
    dtype: str
    tokenizer_digest: str
    weights_digest: str


def read_base_model(reader: FieldReader) -> BaseModel:
    """Read a fingerprint; ``reader`` collects what is wrong with it."""
    base_model = BaseModel(
        architecture=reader.line("architecture", 200),
        num_layers=reader.integer("num_layers", 1, MAX_DIMENSION),
        num_kv_heads=reader.integer("num_kv_heads", 1, MAX_DIMENSION),
        head_size=reader.integer("head_size", 1, MAX_DIMENSION),
        hidden_size=reader.integer("hidden_size", 1, MAX_DIMENSION),
        rope=reader.object("rope").free(),
        dtype=reader.one_of("dtype", DTYPES),
        tokenizer_digest=reader.digest("tokenizer_digest"),
        weights_digest=reader.digest("weights_digest"),
    )
    reader.finish()
    return base_model
