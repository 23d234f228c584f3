"""A LoRA adapter: low-rank factors beside the attention's projections, in the format of PEFT.

Its factors are one flat vector, so that optimizer, checkpoint and resume are those of a prefix. Hooks add
them to the model's attention projections while ``LoraFactors`` holds current values; the weights themselves
never change.

Layout of the vector: for each target in the model's order ``A [r, in]``, then ``B [out, r]``.
"""

import hashlib
from pathlib import Path
from typing import Any

import torch

from patches.errors import EvaluationError, TrainingError
from patches.model import LoadedModel
from patches.train.contexts import Context

#: The projections that are adapted, by the last part of their name.
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
#: ``lora_alpha / r``, PEFT's usual ratio.
SCALE = 2.0


class LoraFactors:
    """The places of the factors in one network, and what is in them right now."""

    def __init__(self, network: Any, rank: int, seed: int = 0) -> None:
        """Hook into the attention projections.

        Args:
            network: The frozen model.
            rank: Of the factors.
            seed: For the start values.

        Raises:
            TrainingError: The model has none of the known names.
        """
        found = [(name, module) for name, module in network.named_modules() if _is_target(name, module)]
        if not found:
            raise TrainingError(f"lora_rank: the model has no projections named {', '.join(TARGETS)}")
        self.rank = rank
        self._network = network
        self._seed = seed
        #: The flat vector that the hooks add; ``None`` leaves the model as it is.
        self.current: torch.Tensor | None = None
        self._shapes = {name: (module.in_features, module.out_features) for name, module in found}
        self._starts: dict[str, int] = {}
        self.num_values = 0
        for name, module in found:
            self._starts[name] = self.num_values
            self.num_values += rank * (module.in_features + module.out_features)
            module.register_forward_hook(self._hook(name))

    def start(self) -> torch.Tensor:
        """Draw A as PEFT does, uniformly within 1/sqrt(in), and leave B at zero: nothing changes yet."""
        generator = torch.Generator().manual_seed(self._seed)
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

    def learned(self, values: torch.Tensor) -> "LoraAdapter":
        """Return these values, at work: the model is as it was until ``patched`` is called."""
        return LoraAdapter(self, self._network, values)

    def save(self, values: torch.Tensor, path: Path) -> str:
        """Write a PEFT adapter.

        Raises:
            OSError: The folder can't be written.
        """
        folder = path.with_name(f"{path.name}.lora")
        _save_adapter(self._state_dict(values), self.rank, folder)
        return f"{folder}: a LoRA adapter, for `policypatch eval --lora`; servers take patches"

    def _state_dict(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
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


class LoraAdapter:
    """Factors as the loop takes them; there is no K/V, and no patch to stand among."""

    num_others = 0

    def __init__(self, factors: LoraFactors, network: Any, values: torch.Tensor) -> None:
        device = network.get_input_embeddings().weight.device
        self.values = torch.nn.Parameter(values.detach().to(device, torch.float32, copy=True))
        self._factors = factors
        self._network = network
        factors.current = None

    def frozen(self, values: torch.Tensor) -> "LoraAdapter":
        """Return an adapter of other values, which don't learn."""
        other = LoraAdapter(self._factors, self._network, values)
        other.values.requires_grad_(False)
        return other

    def patched(self, context: Context) -> None:
        """Switch the factors on."""
        self._factors.current = self.values

    def unpatched(self, context: Context) -> None:
        """Switch the factors off."""
        self._factors.current = None


def form(network: Any, size: int, seed: int) -> LoraFactors:
    """Attach an adapter of this rank to a network.

    Raises:
        TrainingError: The model has no projections of the known names.
    """
    return LoraFactors(network, size, seed)


def require_saved(folder: Path) -> None:
    """Check that a folder looks like an adapter; PEFT would take any other name for a hub id.

    Raises:
        EvaluationError: It does not.
    """
    if not (folder / "adapter_config.json").is_file():
        raise EvaluationError(f"{folder}: expected a LoRA adapter: has no adapter_config.json")


def merged(model: LoadedModel, folder: Path) -> tuple[LoadedModel, str]:
    """Merge an adapter into a model's weights.

    Returns:
        The model, and the digest of the adapter's weights.

    Raises:
        EvaluationError: The folder is not a LoRA adapter, or PEFT is not installed.
    """
    require_saved(folder)
    try:
        from peft import PeftModel
    except ImportError as error:
        raise EvaluationError("PEFT is not installed; install policypatch[train]") from error
    try:
        network = PeftModel.from_pretrained(model.network, str(folder)).merge_and_unload().eval()
    except (OSError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        raise EvaluationError(
            f"{folder}: expected a LoRA adapter: {str(error).partition(chr(10))[0][:200]}"
        ) from error
    weights = b"".join(path.read_bytes() for path in sorted(folder.glob("adapter_model.*")))
    digest = f"sha256:{hashlib.sha256(weights).hexdigest()}"
    return LoadedModel(model.base_model, network, model.tokenizer), digest


def _save_adapter(tensors: dict[str, torch.Tensor], rank: int, folder: Path) -> None:
    from peft import LoraConfig
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
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
