"""What ``policypatch fleet`` says about a catalog, and about going from one revision to the next."""

import time
from collections.abc import Sequence
from typing import Any

from patches.names import version_key
from server.fleet.document import Document, Meaning
from server.fleet.publisher import Published
from server.fleet.standing import Standing


def moves(before: Document, after: Document) -> list[str]:
    """Return a line for each thing that every server would do."""
    lines = []
    for name, entry in after.names.items():
        known = before.names[name].versions if name in before.names else {}
        for version in sorted(entry.versions.keys() - known.keys(), key=version_key):
            lines.append(f"{name}@{version}: loaded ({entry.versions[version].digest[:19]}…)")
    then, now = (document.meanings(document.revision) or {} for document in (before, after))
    for name in sorted({*then, *now}):
        if then.get(name) != now.get(name):
            lines.append(f"{name}: {meant(then.get(name))} -> {meant(now.get(name))}")
    if before.policy != after.policy:
        lines.append(f"policy: {after.policy or 'none'}")
    if before.min_server != after.min_server:
        lines.append(f"servers below policypatch {after.min_server}: take no further revision")
    lines += [f"revoked: {one}" for one in after.revoked if one not in before.revoked]
    lines += [f"trusted no more: {one}" for one in before.trusted_keys if one not in after.trusted_keys]
    lines += [f"trusted key: {one}" for one in after.trusted_keys if one not in before.trusted_keys]
    return lines


def meant(meaning: Meaning | None) -> str:
    """Return what a bare name means, in a few words."""
    if meaning is None:
        return "nothing"
    if meaning.canary is None:
        return meaning.active
    return f"{meaning.active} with {meaning.canary.version} for {meaning.canary.share:.3g} of the requests"


def described(published: Published) -> dict[str, Any]:
    """Return what is published, for programs."""
    document = published.document
    assert document is not None
    return {
        "revision": document.revision,
        "published_at": document.published_at,
        "effective_at": document.effective_at,
        "lease_ends_s": published.lease_ends_s,
        "names": {
            name: {
                "active": entry.meaning.active if entry.meaning is not None else None,
                "canary": entry.meaning.canary.version
                if entry.meaning is not None and entry.meaning.canary is not None
                else None,
                "versions": {version: file.digest for version, file in entry.versions.items()},
            }
            for name, entry in document.names.items()
        },
        "retained": sorted(map(int, document.retained)),
        "policy": document.policy,
        "revoked": list(document.revoked),
        "trusted_keys": list(document.trusted_keys),
    }


def entry_rows(published: Published) -> list[str]:
    """Return what is published, for people."""
    document = published.document
    assert document is not None
    left_s = (published.lease_ends_s or 0.0) - time.time()
    lease = f"the lease ends in {left_s:.0f} s" if left_s > 0 else f"the lease ran out {-left_s:.0f} s ago"
    lines = [f"revision {document.revision}, published at {document.published_at}; {lease}"]
    for name, entry in document.names.items():
        revoked = set(document.revoked)
        there = ", ".join(f"{v} (revoked)" if f.digest in revoked else v for v, f in entry.versions.items())
        lines.append(f"  {name}: {meant(entry.meaning)}  (in the catalog: {there})")
    lines.append(f"  policy: {document.policy or 'none'}")
    if document.trusted_keys:
        lines.append(f"  trusted keys: {', '.join(document.trusted_keys)}")
    if document.revoked:
        lines.append(f"  revoked: {', '.join(document.revoked)}")
    kept = sorted(map(int, document.retained))
    lines.append(f"  conversations may go on as of: {', '.join(map(str, kept)) or 'no earlier revision'}")
    return lines


def standing_rows(standings: Sequence[Standing], newest: int) -> list[str]:
    """Return where servers stand, for people.

    Args:
        standings: One for each.
        newest: The revision that is published.
    """
    there = sum(one.is_at(newest) for one in standings)
    lines = [f"revision {newest} is in force on {there} of {len(standings)} servers"]
    width = max((len(one.server) for one in standings), default=0)
    for one in standings:
        parts = [f"revision {one.revision}"] if one.revision is not None else []
        if one.heard is not None and one.heard != one.revision:
            parts.append(f"has heard of {one.heard}")
        if one.lease_seconds is not None:
            left_s = one.lease_seconds
            parts.append(f"lease ends in {left_s:.0f} s" if left_s > 0 else "its lease has run out")
        if one.is_ready is False:
            parts.append("not ready")
        if one.problem is not None:
            parts.append(one.problem)
        lines.append(f"  {one.server:{width}}  {', '.join(parts)}")
    return lines
