"""What a patch file holds, checked without a tensor library."""

import pytest
import torch

from patches.content import DTYPE_WORDS, StoredTensor
from patches.format import encode_patch, find_content, find_problems
from patches.kinds.prefix import PrefixBody
from patches.manifest import Manifest
from tests.tiny_model import SMALLEST_MODEL

_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
_MORE_THAN_A_PIECE = 2**17 + 5


def stored(tensor: torch.Tensor, dtype: str) -> StoredTensor:
    return StoredTensor(dtype, tuple(tensor.shape), tensor.view(torch.uint8).numpy().data)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", _DTYPES)
@pytest.mark.parametrize("place", [0, 2**17 - 1, 2**17, -1])
def test_a_value_that_is_not_finite_is_found_wherever_it_is(value: float, dtype: str, place: int) -> None:
    tensor = torch.zeros(_MORE_THAN_A_PIECE, dtype=_DTYPES[dtype])
    tensor[place] = value
    assert not stored(tensor, dtype).is_finite()


@pytest.mark.parametrize("dtype", _DTYPES)
def test_the_largest_and_smallest_values_of_a_dtype_are_finite(dtype: str) -> None:
    limits = torch.finfo(_DTYPES[dtype])
    values = [limits.max, limits.min, limits.tiny, limits.smallest_normal / 2, 0.0, -0.0]
    assert stored(torch.tensor(values, dtype=_DTYPES[dtype]), dtype).is_finite()


def test_integers_and_empty_tensors_are_finite() -> None:
    assert stored(torch.full((3,), 2**31 - 1, dtype=torch.int32), "I32").is_finite()
    assert stored(torch.full((3,), 255, dtype=torch.uint8), "U8").is_finite()
    assert stored(torch.empty(0, dtype=torch.float32), "F32").is_finite()


def test_content_is_what_the_patch_holds() -> None:
    embeddings = torch.randn(2, SMALLEST_MODEL.hidden_size)
    data = encode_patch(
        Manifest("pirate", "1.0.0", SMALLEST_MODEL, PrefixBody(2), {"method": "text"}),
        {"embeddings": embeddings},
    )
    content, problems = find_content(data)
    patch = find_problems(data)[0]
    assert content is not None
    assert patch is not None
    assert not problems
    assert (content.manifest, content.digest) == (patch.manifest, patch.digest)
    (tensor,) = content.tensors.values()
    assert (tensor.word, tensor.shape, tensor.nbytes) == ("float32", tuple(embeddings.shape), patch.nbytes)
    assert tensor.values.tolist() == embeddings.tolist()


def test_every_dtype_of_a_file_is_one_of_torch() -> None:
    assert all(isinstance(getattr(torch, word), torch.dtype) for word in DTYPE_WORDS.values())
