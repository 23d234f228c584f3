"""From a GGUF file to an ordinary checkpoint, by `transformers`. It asks no model hub."""

import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path


def convert_gguf(gguf: Path, checkpoint: Path, dtype: str) -> None:
    """Write weights, config, tokenizer and chat template of a GGUF file as an ordinary checkpoint.

    Args:
        gguf: The file; quantized weights are widened.
        checkpoint: An empty folder.
        dtype: Of the weights that are written.

    Raises:
        RuntimeError: transformers can't read this file; ``ValueError`` and ``SafetensorError`` likewise.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    folder, name = str(gguf.parent), gguf.name
    with _quiet_libraries():
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            gguf_file=name,
            dtype=getattr(torch, dtype),
            quantization_config=GgufConfig(gguf_file=name, dequantize=True),
            local_files_only=True,
        )
        # Both describe the GGUF file: with the first, saving is refused.
        for attribute in ("quantization_config", "_model_name_or_path"):
            if hasattr(model.config, attribute):
                delattr(model.config, attribute)
        model.save_pretrained(checkpoint)
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name, local_files_only=True)
        tokenizer.init_kwargs.pop("local_files_only", None)
        tokenizer.model_max_length = model.config.max_position_embeddings
        tokenizer.save_pretrained(checkpoint)
    for path in checkpoint.iterdir():
        path.chmod(0o644)


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Keep transformers' and tqdm's bars out of ours; an error still comes as an exception."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
