"""What the tensors of a patch have to be, held against its manifest: names, dtypes, shapes, values."""

from collections.abc import Mapping, Sequence

from patches.content import StoredTensor
from patches.errors import PatchFormatError
from patches.manifest import Manifest


def layout_problems(manifest: Manifest, tensors: Mapping[str, StoredTensor]) -> list[PatchFormatError]:
    """Return where names, dtypes and shapes of tensors are not what a manifest asks for."""
    rules = manifest.body.tensor_rules(manifest.base_model)
    missing = manifest.body.missing(tensors)
    problems = [f"tensors: expected {missing}, got {', '.join(sorted(tensors)) or 'none'}"] if missing else []
    for name, tensor in sorted(tensors.items()):
        rule = rules.get(name)
        if rule is None:
            known = " or ".join(rules)
            problems.append(f"tensor {ascii(name)[:80]}: unknown name; expected {known}")
            continue
        if tensor.dtype not in rule.dtypes:
            dtypes = " or ".join(sorted(rule.dtypes))
            problems.append(f"tensor {name}: expected dtype {dtypes}, got {tensor.dtype}")
        if tensor.shape != rule.shape:
            problems.append(f"tensor {name}: expected shape {list(rule.shape)}, got {list(tensor.shape)}")
    return [PatchFormatError("bad_tensor", problem) for problem in problems]


def value_problems(manifest: Manifest, tensors: Mapping[str, StoredTensor]) -> list[PatchFormatError]:
    """Return what is wrong with the values of tensors that have the right shapes."""
    problems: Sequence[str] = [
        f"tensor {name}: expected finite values, got NaN or infinity"
        for name, tensor in sorted(tensors.items())
        if not tensor.is_finite()
    ]
    values = {name: tensor.values for name, tensor in tensors.items()}
    problems = problems or manifest.body.value_problems(values)
    return [PatchFormatError("bad_tensor", problem) for problem in problems]
