"""What the tensors of a patch have to be, held against its manifest: names, dtypes, shapes, values."""

from collections.abc import Mapping, Sequence

import torch

from patches.errors import PatchFormatError
from patches.manifest import Manifest

#: Values looked at together: the truth of each of a whole large tensor would need half as much memory again.
_PIECE = 2**22


def layout_problems(
    manifest: Manifest, layout: Mapping[str, tuple[str, tuple[int, ...]]]
) -> list[PatchFormatError]:
    """Return where names, dtypes and shapes of tensors are not what a manifest asks for.

    Args:
        manifest: The manifest.
        layout: Dtype, as safetensors names it, and shape of each tensor by name.
    """
    rules = manifest.body.tensor_rules(manifest.base_model)
    missing = manifest.body.missing(layout)
    problems = [f"tensors: expected {missing}, got {', '.join(sorted(layout)) or 'none'}"] if missing else []
    for name, (dtype, shape) in sorted(layout.items()):
        rule = rules.get(name)
        if rule is None:
            known = " or ".join(rules)
            problems.append(f"tensor {ascii(name)[:80]}: unknown name; expected {known}")
            continue
        if dtype not in rule.dtypes:
            problems.append(f"tensor {name}: expected dtype {' or '.join(sorted(rule.dtypes))}, got {dtype}")
        if shape != rule.shape:
            problems.append(f"tensor {name}: expected shape {list(rule.shape)}, got {list(shape)}")
    return [PatchFormatError("bad_tensor", problem) for problem in problems]


def value_problems(manifest: Manifest, tensors: Mapping[str, torch.Tensor]) -> list[PatchFormatError]:
    """Return what is wrong with the values of tensors that have the right shapes."""
    problems: Sequence[str] = [
        f"tensor {name}: expected finite values, got NaN or infinity"
        for name, tensor in sorted(tensors.items())
        if not all(bool(torch.isfinite(part).all()) for part in torch.split(tensor.reshape(-1), _PIECE))
    ]
    problems = problems or manifest.body.value_problems(tensors)
    return [PatchFormatError("bad_tensor", problem) for problem in problems]
