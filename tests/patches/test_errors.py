"""Errors cross process borders."""

import pickle

import pytest

from patches import errors


@pytest.mark.parametrize(
    "error",
    [
        errors.PatchFormatError("truncated", "file: cut off"),
        errors.BaseModelMismatch(["dtype: expected a, got b", "rope: expected c, got d"]),
        errors.InvalidName("name: bad"),
        errors.PatchExists("there"),
    ],
)
def test_an_error_survives_pickling(error: errors.PatchError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


def test_each_error_refines_one_of_the_standard_library() -> None:
    assert issubclass(errors.PatchFormatError, ValueError)
    assert issubclass(errors.BaseModelMismatch, ValueError)
    assert issubclass(errors.PatchExists, FileExistsError)
