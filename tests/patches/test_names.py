"""The grammar of names and versions."""

import pytest

from patches.errors import InvalidName
from patches.names import is_digest, validate_name, validate_version, version_key


@pytest.mark.parametrize("name", ["a", "0", "toxicity", "a.b-c_d", "a" * 64])
def test_a_name_within_the_grammar_is_accepted(name: str) -> None:
    assert validate_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "A",
        "-a",
        ".a",
        "_a",
        "a" * 65,
        "a b",
        "a@1",
        "a/b",
        "a,b",
        "a:b",
        "é",
        "a\n",
        "none",
        "..",
        "\u0430",
    ],
)
def test_a_name_outside_the_grammar_is_refused(name: str) -> None:
    with pytest.raises(InvalidName, match="name: "):
        validate_name(name)


@pytest.mark.parametrize("version", ["0.0.0", "1.2.3", "1.0.0-rc.1", "1.0.0+build.5", "10.20.30-a-b.0+c"])
def test_a_semantic_version_is_accepted(version: str) -> None:
    assert validate_version(version) == version


@pytest.mark.parametrize(
    "version", ["", "1", "1.2", "v1.2.3", "01.2.3", "1.2.3-", "1.2.3-01", "1.2.3 ", "1.2.3\n", "1." * 40]
)
def test_what_is_no_semantic_version_is_refused(version: str) -> None:
    with pytest.raises(InvalidName, match="version: "):
        validate_version(version)


def test_versions_sort_as_semver_org_says() -> None:
    ordered = [
        "1.0.0-alpha",
        "1.0.0-alpha.1",
        "1.0.0-alpha.beta",
        "1.0.0-beta",
        "1.0.0-beta.2",
        "1.0.0-beta.11",
        "1.0.0-rc.1",
        "1.0.0",
        "1.0.1",
        "1.2.0",
        "1.10.0",
        "2.0.0",
    ]
    backwards = ordered[::-1]
    assert sorted(backwards, key=version_key) == ordered


def test_a_digest_needs_its_prefix_and_all_its_digits() -> None:
    assert is_digest("sha256:" + "0a" * 32)
    assert not is_digest("0a" * 32)
    assert not is_digest("sha256:" + "0A" * 32)
    assert not is_digest("sha256:" + "0a" * 31)
