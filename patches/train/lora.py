"""A LoRA adapter, learned by the same trainer from the same pairs, so that patches can be compared with one.

It is no patch and is not served: ``policypatch eval --lora`` measures it. Its factors are one flat vector, so
that optimizer, checkpoint and resume are those of a prefix. Hooks add them to the model's attention
projections while ``LoraFactors`` has given them the current values; the weights themselves never change.

Layout of the vector: for each target in the model's order ``A [r, in]``, then ``B [out, r]``.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from patches.errors import TrainingError
from patches.train.contexts import Context
from patches.train.forward import PrefixKv
from patches.train.soft_prefix import SoftPrefix

#: The projections that are adapted, by the last part of their name.
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
#: ``lora_alpha / r``, PEFT's usual ratio.
SCALE = 2.0


class LoraFactors:
    """The places of the factors in one network, and what is in them right now."""

    def __init__(self, network: Any, rank: int) -> None:
        """Hook into the attention projections.

        Raises:
            TrainingError: The model has none of the known names.
        """
        found = [(name, module) for name, module in network.named_modules() if _is_target(name, module)]
        if not found:
            raise TrainingError(f"lora_rank: the model has no projections named {', '.join(TARGETS)}")
        self.rank = rank
        #: The flat vector that the hooks add; ``None`` leaves the model as it is.
        self.current: torch.Tensor | None = None
        self._shapes = {name: (module.in_features, module.out_features) for name, module in found}
        self._starts: dict[str, int] = {}
        self.num_values = 0
        for name, module in found:
            self._starts[name] = self.num_values
            self.num_values += rank * (module.in_features + module.out_features)
            module.register_forward_hook(self._hook(name))

    def initial_values(self, seed: int) -> torch.Tensor:
        """Draw A as PEFT does, uniformly within 1/sqrt(in), and leave B at zero: nothing changes yet."""
        generator = torch.Generator().manual_seed(seed)
        values = torch.zeros(self.num_values)
        for name, (num_in, _) in self._shapes.items():
            start = self._starts[name]
            drawn = torch.rand(self.rank * num_in, generator=generator) * 2 - 1
            values[start : start + len(drawn)] = drawn / num_in**0.5
        return values

    def factors(self, name: str, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cut one target's ``A [r, in]`` and ``B [out, r]`` out of the vector, as views."""
        num_in, num_out = self._shapes[name]
        start, middle = self._starts[name], self._starts[name] + self.rank * num_in
        a = values[start:middle].view(self.rank, num_in)
        return a, values[middle : middle + num_out * self.rank].view(num_out, self.rank)

    def state_dict(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        """Name the factors as PEFT does."""
        named = {}
        for name in self._shapes:
            for key, factor in zip("AB", self.factors(name, values), strict=True):
                named[f"base_model.model.{name}.lora_{key}.weight"] = factor.detach().cpu().clone()
        return named

    def _hook(self, name: str) -> Any:
        def add(module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            if self.current is None:
                return output
            a, b = (factor.to(output.dtype) for factor in self.factors(name, self.current))
            return output + SCALE * (inputs[0] @ a.T) @ b.T

        return add


class LoraPrefix(SoftPrefix):
    """What the loop takes for a prefix: its values are the factors, and it has no K/V.

    ``patched`` and ``unpatched`` switch the factors on and off for the forward passes that follow, which is
    the order in which every objective calls them.
    """

    def __init__(self, factors: LoraFactors, network: Any, values: torch.Tensor) -> None:
        """Take start values; the model is as it was until ``patched`` is called."""
        super().__init__(network, "prompt", values)
        self._factors = factors
        factors.current = None

    def frozen(self, values: torch.Tensor) -> "LoraPrefix":
        """Give an adapter of other values that does not learn."""
        other = LoraPrefix(self._factors, self._network, values)
        other.values.requires_grad_(False)
        return other

    def patched(self, context: Context) -> PrefixKv | None:  # type: ignore[override]
        """Switch the factors on."""
        self._factors.current = self.values
        return None

    def unpatched(self, context: Context) -> PrefixKv | None:
        """Switch the factors off."""
        self._factors.current = None
        return None


def save_adapter(tensors: Mapping[str, torch.Tensor], rank: int, folder: Path) -> None:
    """Write a PEFT LoRA adapter.

    Raises:
        OSError: The folder can't be written.
    """
    from peft import LoraConfig
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), folder / "adapter_model.safetensors", {"format": "pt"})
    config = LoraConfig(
        r=rank,
        lora_alpha=int(SCALE * rank),
        target_modules=list(TARGETS),
        task_type="CAUSAL_LM",
        inference_mode=True,
    )
    config.save_pretrained(str(folder))


def _is_target(name: str, module: Any) -> bool:
    return name.rpartition(".")[2] in TARGETS and isinstance(module, torch.nn.Linear)
