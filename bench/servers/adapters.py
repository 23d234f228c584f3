"""Other ways to give each tenant a behaviour on the same vLLM: LoRA, and embeddings that clients send.

Adapters hold random weights (``bench.servers.random_adapter``). The client that sends embeddings has
the policy's own embeddings and the user's, as a client that holds a soft prefix must have: the server takes
either tokens or embeddings for a whole prompt, never a mixture.
"""

import base64
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.errors import BenchError
from bench.servers.makers import run_maker

if TYPE_CHECKING:
    import torch

#: Ranks of the adapters: a usual one, and the least there is.
LORA_RANKS = (16, 1)
#: Rows that stand in for the embeddings of a model whose weights are random.
_NUM_RANDOM_ROWS = 4096


def make_adapters(
    model: str, folder: Path, *, dtype: str, ranks: Sequence[int], count: int = 1, name: str | None = None
) -> dict[str, Path]:
    """Write adapters of random weights; their names -> their folders.

    They are called `NAME-0` and so on; without a name `lora-rR` by their rank, one of each.

    Raises:
        BenchError: they could not be made; the message ends with what was said.
    """
    arguments = ["bench.servers.random_adapter", "--model", model, "--dtype", dtype, "--count", str(count)]
    arguments += ["--name", name] if name else []
    arguments += [argument for rank in ranks for argument in ("--rank", str(rank))]
    made = json.loads(run_maker("adapters", [*arguments, "-o", str(folder)]))["adapters"]
    return {name: Path(path) for name, path in made.items()}


def lora_flags(adapters: Mapping[str, Path], *, max_rank: int, num_in_batch: int) -> list[str]:
    """Return what `vllm serve` needs to serve adapters under their names."""
    modules = [f"{name}={path}" for name, path in adapters.items()]
    bounds = ["--max-lora-rank", str(max_rank), "--max-loras", str(num_in_batch)]
    return ["--enable-lora", *bounds, "--lora-modules", *modules]


def embedder(model: str, dtype: str, *, is_model_real: bool) -> Callable[[Sequence[int]], str]:
    """Make what turns token ids into the body's ``prompt_embeds``.

    Args:
        model: a folder with weights in safetensors; with random weights any folder.
        dtype: of the embeddings that are sent.
        is_model_real: the model's own embeddings count.

    Raises:
        BenchError: the folder has no embeddings.
    """
    # Takes seconds to import, and only this arm needs it.
    import torch

    rows = _embeddings(Path(model)) if is_model_real else _random_rows(model)
    rows = rows.to(getattr(torch, dtype))

    def embed(ids: Sequence[int]) -> str:
        index = torch.tensor(ids) if is_model_real else torch.tensor(ids) % len(rows)
        buffer = io.BytesIO()
        torch.save(rows[index], buffer)
        return base64.b64encode(buffer.getvalue()).decode("ascii")

    return embed


def _embeddings(folder: Path) -> "torch.Tensor":
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as weights:
            for name in weights.keys():  # noqa: SIM118 (no mapping)
                if name.endswith("embed_tokens.weight"):
                    found: torch.Tensor = weights.get_tensor(name)
                    return found
    raise BenchError(f"{folder}: expected embeddings in a safetensors file, got none; leave the arm out")


def _random_rows(model: str) -> "torch.Tensor":
    import torch
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model, local_files_only=True)
    return torch.randn(_NUM_RANDOM_ROWS, config.hidden_size, generator=torch.Generator().manual_seed(0))
