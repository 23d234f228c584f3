"""Where the weights of a checkpoint lie in the model that vLLM loaded, and on which setups they can change.

vLLM lays some linear layers of a checkpoint into one, row upon row. Everything else that keeps a weight from
lying where it is looked for (quantisation, adapters around layers, splits over ranks) is refused.
"""

import re
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from vllm.model_executor.layers.linear import LinearBase, RowParallelLinear, UnquantizedLinearMethod
from vllm.model_executor.models.utils import PPMissingLayer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vllm.config import VllmConfig

#: Key of the connector's extra configuration: weights may change.
WEIGHTS_KEY = "weight_patches"

#: Last word of a checkpoint's module -> that of vLLM's, and which part of it is the checkpoint's.
_FUSED = {
    "q_proj": ("qkv_proj", 0),
    "k_proj": ("qkv_proj", 1),
    "v_proj": ("qkv_proj", 2),
    "gate_proj": ("gate_up_proj", 0),
    "up_proj": ("gate_up_proj", 1),
}
_PLAIN_ON_CPU = "_cpu_skip_gemm_dispatch"
_LAYER = re.compile(r"model\.layers\.[0-9]+(?=\.)")


def may_change(config: "VllmConfig") -> bool:
    """Return whether the launcher was asked to let weights change."""
    transfer = config.kv_transfer_config
    return bool(transfer is not None and transfer.get_from_extra_config(WEIGHTS_KEY, False))


def config_problem(config: "VllmConfig") -> str | None:
    """Return why weights can't change under this configuration, or ``None``."""
    model, parallel = config.model_config, config.parallel_config
    reasons = {
        "the server was started without --weight-patches": not may_change(config),
        f"{model.model} is quantised ({model.quantization})": model.quantization is not None,
        "LoRA adapters are built around the layers": config.lora_config is not None,
        "with speculative decoding a second model proposes tokens": config.speculative_config is not None,
        "sleep mode may throw weights away": model.enable_sleep_mode,
        "expert parallelism moves weights between ranks": parallel.enable_expert_parallel,
        "the compiler bakes weights in (inductor_compile_config: max_autotune or freezing)": any(
            config.compilation_config.inductor_compile_config.get(word)
            for word in ("max_autotune", "freezing")
        ),
        "the weights are random (--load-format dummy)": config.load_config.load_format == "dummy",
    }
    return next((reason for reason, applies in reasons.items() if applies), None)


@contextmanager
def weights_in_place(config: "VllmConfig") -> "Iterator[None]":
    """Have vLLM keep the weights of linear layers as they are loaded, where they are to change.

    On a CPU it would pack them for its kernels and drop them. What it computes with is torch's own product
    then, which is slower or faster by the machine.
    """
    if not may_change(config):
        yield
        return
    setattr(LinearBase, _PLAIN_ON_CPU, True)
    try:
        yield
    finally:
        delattr(LinearBase, _PLAIN_ON_CPU)


@dataclass(frozen=True, slots=True)
class Place:
    """The part of a checkpoint's tensor that this rank holds; what is written into it acts at once."""

    #: Flat, contiguous, on the device of the model.
    weight: torch.Tensor
    #: Rows and columns of the checkpoint's tensor that are here: the first, and how many.
    rows: tuple[int, int]
    columns: tuple[int, int]
    #: Columns of the checkpoint's tensor.
    width: int
    #: Row of the first of them in the parameter.
    first_row: int
    #: Another rank holds the same, and counts it.
    is_copy: bool

    def local(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return which positions in the checkpoint's tensor are here, and where in ``weight`` they lie.

        Args:
            positions: int64, on the CPU.

        Returns:
            bool of the same shape, and int64 for each that is here.
        """
        rows = positions // self.width - self.rows[0]
        columns = positions % self.width - self.columns[0]
        is_here = (rows >= 0) & (rows < self.rows[1]) & (columns >= 0) & (columns < self.columns[1])
        local = (rows[is_here] + self.first_row) * self.columns[1] + columns[is_here]
        return is_here, local


class Places:
    """Finds weights of the checkpoint in one loaded model, or in one rank's part of it."""

    def __init__(self, network: nn.Module) -> None:
        self._modules: Mapping[str, nn.Module] = dict(network.named_modules())

    def find(self, name: str, shape: tuple[int, int]) -> Place | None:
        """Find a tensor of the checkpoint; ``None`` where a rank of another pipeline stage has it.

        Args:
            name: Of the tensor, such as ``model.layers.0.self_attn.q_proj.weight``.
            shape: Its shape in the checkpoint.

        Raises:
            ValueError: There is no such tensor, or it is no weight of a linear layer that lies as loaded.
        """
        path = name.removesuffix(".weight")
        parent, _, word = path.rpartition(".")
        module: Any = self._modules.get(path)
        sizes, part = [], 0
        if self._is_elsewhere(name):
            return None
        if module is None and word in _FUSED:
            fused, part = _FUSED[word]
            module = self._modules.get(f"{parent}.{fused}")
            sizes = list(getattr(module, "output_partition_sizes", []))
        if not isinstance(module, LinearBase):
            raise ValueError(f"{name}: expected the weight of a linear layer of this model, got none")
        if not isinstance(module.quant_method, UnquantizedLinearMethod):
            raise ValueError(f"{name}: expected weights that are not quantised")
        weight = module.weight.data
        num_rows, num_columns = (sizes[part] if sizes else weight.shape[0]), weight.shape[1]
        by_row = isinstance(module, RowParallelLinear)
        # Where there are more ranks than K/V heads, several ranks hold one.
        copies = getattr(module, "num_kv_head_replicas", 1) if part else 1
        at, num_splits = module.tp_rank // copies, module.tp_size // copies
        whole = (num_rows, num_columns * num_splits) if by_row else (num_rows * num_splits, num_columns)
        if whole != shape or not weight.is_contiguous():
            raise ValueError(f"{name}: expected shape {list(whole)}, got {list(shape)}")
        return Place(
            weight.view(-1),
            (0 if by_row else at * num_rows, num_rows),
            (at * num_columns if by_row else 0, num_columns),
            shape[1],
            sum(sizes[:part]),
            is_copy=module.tp_rank % copies > 0,
        )

    def _is_elsewhere(self, name: str) -> bool:
        """Return whether a layer that this rank leaves out has the tensor."""
        found = _LAYER.match(name)
        return found is not None and isinstance(self._modules.get(found[0]), PPMissingLayer)
