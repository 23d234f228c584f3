"""The list of revoked digests."""

from collections.abc import Callable
from pathlib import Path

import pytest

from patches.errors import RevocationsInvalid
from patches.format import Patch
from patches.signing.revocations import read_revocations, revoked_part

A, B = ("sha256:" + digit * 64 for digit in "ab")


def test_digests_are_read_with_comments_and_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "revoked.txt"
    path.write_text(f"# leaked on Monday\n\n{A}\n  {B}  # and its copy\n")
    assert read_revocations(path) == {A, B}
    path.write_text("")
    assert read_revocations(path) == frozenset()


@pytest.mark.parametrize("line", ["a" * 64, A.upper(), A[:-1], f"{A} {B}", "pirate@1.0.0"])
def test_one_line_that_is_no_digest_spoils_the_list(line: str, tmp_path: Path) -> None:
    path = tmp_path / "revoked.txt"
    path.write_text(f"{B}\n{line}\n")
    with pytest.raises(RevocationsInvalid, match="line 2: expected sha256:"):
        read_revocations(path)


def test_a_list_that_cannot_be_read_is_no_empty_list(tmp_path: Path) -> None:
    with pytest.raises(RevocationsInvalid, match="No such file"):
        read_revocations(tmp_path / "gone")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(RevocationsInvalid, match="can't be read"):
        read_revocations(tmp_path / "binary")


def test_a_composition_is_revoked_with_any_of_its_parts(make: Callable[..., Patch]) -> None:
    parts = [{"name": n, "version": "1.0.0", "digest": d} for n, d in (("a", A), ("b", B))]
    patch = make("both", origin={"method": "compose", "components": parts})
    assert revoked_part({B}, patch.digest, patch.manifest) == B
    assert revoked_part({patch.digest}, patch.digest, patch.manifest) == patch.digest
    assert revoked_part({"sha256:" + "c" * 64}, patch.digest, patch.manifest) is None
