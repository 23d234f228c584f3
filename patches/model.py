"""A base model loaded with transformers, together with its fingerprint.

Everything that computes K/V takes a ``LoadedModel``, so that a patch always carries the fingerprint of the
very weights, and the very dtype, that made it.
"""

import os
from dataclasses import dataclass
from typing import Any

import torch

from patches.base_model import DTYPES, BaseModel
from patches.errors import ModelUnusable
from patches.fingerprint import fingerprint_model
from patches.model_files import require_model
from patches.text import lines_of


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A transformers model in evaluation mode, on one device, in the dtype of its fingerprint."""

    base_model: BaseModel
    #: A ``transformers.PreTrainedModel``.
    network: Any
    #: A ``transformers.PreTrainedTokenizerBase``, or ``None`` where the folder has no tokenizer.
    tokenizer: Any | None


def load_model(
    model: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    device: str = "cpu",
    revision: str | None = None,
) -> LoadedModel:
    """Load a model, and its tokenizer where it has one.

    Args:
        model: A local folder or a hub id; a hub id that is not in the cache is downloaded by transformers.
        dtype: ``bfloat16``, ``float16`` or ``float32``; the model's own where ``None``.
        device: A torch device such as ``cpu`` or ``cuda:0``.
        revision: The revision of a hub model.

    Raises:
        ModelUnusable: It can't be loaded, or its kind can't carry a prefix.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    if dtype is not None and dtype not in DTYPES:
        raise ModelUnusable(f"dtype: expected {' or '.join(DTYPES)}, got {dtype!r}")
    require_model(model, revision)
    torch_device = require_device(device)
    try:
        config = AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=False)
        dtype = dtype or own_dtype(config)
        network = AutoModelForCausalLM.from_pretrained(
            model, revision=revision, config=config, dtype=getattr(torch, dtype), trust_remote_code=False
        )
        network = network.to(torch_device).eval().requires_grad_(False)
    except (OSError, ValueError, KeyError, RuntimeError, AssertionError) as error:
        raise ModelUnusable(f"model: {model} can't be loaded on {device}: {_reason(model, error)}") from error
    return LoadedModel(
        base_model=fingerprint_model(model, dtype, revision=revision),
        network=network,
        tokenizer=load_tokenizer(model, revision),
    )


def require_device(device: str) -> torch.device:
    """Return the torch device of this name.

    Raises:
        ModelUnusable: This machine, or this build of torch, has none of it.
    """
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ModelUnusable(
            f"device: {device} is unavailable here: {_first_line(error)}; leave it out to compute on the CPU"
        ) from error
    return found


def own_dtype(config: Any) -> str:
    """Return the dtype that a transformers configuration names; ``float32`` where it names no such one."""
    for part in (config, config.get_text_config()):
        name = str(getattr(part, "dtype", None)).removeprefix("torch.")
        if name in DTYPES:
            return name
    return "float32"


def load_tokenizer(model: str | os.PathLike[str], revision: str | None = None) -> Any | None:
    """Load a model's tokenizer; ``None`` where it has none that can be loaded."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError):
        return None


def _reason(model: str | os.PathLike[str], error: BaseException) -> str:
    if not os.path.isdir(model) and isinstance(error, OSError):
        return "it is neither a folder nor a hub model in the local cache, nor on the hub; download it first"
    return _first_line(error)


def _first_line(error: BaseException) -> str:
    lines = lines_of(str(error).strip())
    return lines[0][:300] if lines else type(error).__name__
