"""The grammar of policy names, versions and digests.

A *policy name* is what a request writes in ``X-Policy-Patch``; a *version* is a semantic version 2.0.0.
Neither can contain ``@``, ``,``, ``:``, a slash or a space, so a reference such as ``toxicity@1.2.0`` and a
file name such as ``toxicity-1.2.0.safetensors`` need no escaping.
"""

import re

from patches.errors import InvalidName

#: A policy name: 1 to 64 characters. It starts with a letter or a digit, so it is never a hidden file.
NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")

#: ``none`` asks for the base model.
RESERVED_NAMES = frozenset({"none"})

#: Semantic version 2.0.0, in the form that semver.org recommends.
VERSION_PATTERN = re.compile(
    r"(?P<major>0|[1-9][0-9]*)\.(?P<minor>0|[1-9][0-9]*)\.(?P<patch>0|[1-9][0-9]*)"
    r"(?:-(?P<prerelease>(?:0|[1-9][0-9]*|[0-9]*[a-zA-Z-][0-9a-zA-Z-]*)"
    r"(?:\.(?:0|[1-9][0-9]*|[0-9]*[a-zA-Z-][0-9a-zA-Z-]*))*))?"
    r"(?:\+(?P<build>[0-9a-zA-Z-]+(?:\.[0-9a-zA-Z-]+)*))?"
)

MAX_VERSION_LENGTH = 64

DIGEST_PATTERN = re.compile(r"sha256:[0-9a-f]{64}")

#: Sorts as semantic versions do; build metadata breaks ties so that the order is total.
VersionKey = tuple[int, int, int, tuple[tuple[int, int, str], ...], str]


def validate_name(name: str) -> str:
    """Return ``name`` where it is a valid policy name.

    Raises:
        InvalidName: It does not match the grammar, or is reserved.
    """
    if not NAME_PATTERN.fullmatch(name):
        raise InvalidName(
            f"name: expected 1 to 64 characters of a-z, 0-9, '.', '_', '-', starting with a letter or digit, "
            f"got {name[:80]!r}"
        )
    if name in RESERVED_NAMES:
        raise InvalidName(f"name: {name!r} is reserved, it asks for no patch; choose another name")
    return name


def validate_version(version: str) -> str:
    """Return ``version`` where it is a semantic version.

    Raises:
        InvalidName: It is not a semantic version, or is longer than ``MAX_VERSION_LENGTH``.
    """
    if len(version) > MAX_VERSION_LENGTH or not VERSION_PATTERN.fullmatch(version):
        raise InvalidName(f"version: expected a semantic version such as 1.2.0, got {version[:80]!r}")
    return version


def is_digest(text: str) -> bool:
    """Return whether ``text`` is a full content digest, ``sha256:`` and 64 hexadecimal digits."""
    return DIGEST_PATTERN.fullmatch(text) is not None


def version_key(version: str) -> VersionKey:
    """Return the sort key of a valid version; a pre-release comes before its release.

    Raises:
        InvalidName: ``version`` is not a semantic version.
    """
    match = VERSION_PATTERN.fullmatch(validate_version(version))
    assert match is not None
    prerelease: tuple[tuple[int, int, str], ...] = ((2, 0, ""),)
    if match["prerelease"]:
        prerelease = tuple(
            (0, int(part), "") if part.isdigit() else (1, 0, part) for part in match["prerelease"].split(".")
        )
    return int(match["major"]), int(match["minor"]), int(match["patch"]), prerelease, match["build"] or ""
