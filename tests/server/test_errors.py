"""The error table: statuses, bodies, and that they survive a process boundary."""

import pickle
from pathlib import Path

import pytest

from server import errors
from server.errors import (
    ADMIN_CODES,
    ERROR_CODES,
    REQUEST_CODES,
    CatalogStale,
    FileRefused,
    InvalidPatchFile,
    NotInStep,
    PatchNotReady,
    PatchWithdrawn,
    PolicyPatchError,
)


def tree(kind: type[PolicyPatchError]) -> list[type[PolicyPatchError]]:
    return [kind, *(deeper for child in kind.__subclasses__() for deeper in tree(child))]


KINDS = [kind for kind in tree(PolicyPatchError) if kind.__module__ == "server.errors"]
DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_survives_pickling(kind: type[PolicyPatchError]) -> None:
    copy = pickle.loads(pickle.dumps(kind("what happened", param="model")))
    assert (type(copy), copy.body()) == (kind, kind("what happened", param="model").body())


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_is_in_the_modules_table(kind: type[PolicyPatchError]) -> None:
    assert errors.__doc__ is not None
    (line,) = [line for line in errors.__doc__.splitlines() if f"{kind.__name__} " in line]
    assert line.split()[-2:] == [str(kind.status), kind.code]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_is_documented(kind: type[PolicyPatchError]) -> None:
    page = "admin.md" if kind.code in ADMIN_CODES else "http.md"
    lines = (DOCS / page).read_text("utf-8").splitlines()
    assert any(f"`{kind.code}`" in line and f"| {kind.status} |" in line for line in lines)


def test_every_code_has_one_kind() -> None:
    assert sorted(kind.code for kind in KINDS) == sorted(ERROR_CODES)


def test_codes_of_requests_are_those_that_no_file_causes() -> None:
    refusals = tree(FileRefused)
    codes = {kind.code for kind in KINDS if kind not in refusals}
    assert sorted(codes - set(ADMIN_CODES)) == sorted(REQUEST_CODES)


def test_the_reason_of_a_refused_file_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(InvalidPatchFile("no", reason="truncated")))
    assert (error.reason, error.message) == ("truncated", "no")


def test_only_not_ready_asks_to_come_again() -> None:
    assert [kind for kind in KINDS if "Retry-After" in kind("x").headers()] == [
        CatalogStale,
        PatchNotReady,
        NotInStep,
        PatchWithdrawn,
    ]
    assert PatchNotReady("x").headers() == {"Retry-After": "1"}
