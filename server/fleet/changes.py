"""From one revision of a catalog to the next: pure functions, with no clock, key or store.

Each returns the names as they are to be; ``next_revision`` makes a document of them, which remembers what
names meant before, and forgets what nothing needs any more.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from patches.names import version_key
from server.fleet.document import FORMAT, CanaryEntry, Document, Meaning, NameEntry, VersionEntry

#: Earlier revisions that a document says the meanings of, where nothing else is asked for.
KEEP_REVISIONS = 16

#: Versions of a name that stay in the catalog although nothing means them, so that an order can go back.
KEEP_VERSIONS = 3

Names = Mapping[str, NameEntry]


class ChangeRefused(ValueError):
    """The catalog does not allow it; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Added:
    """A version that is to be in the catalog."""

    name: str
    version: str
    entry: VersionEntry


def require_new(added: Collection[Added], revoked: Collection[str]) -> None:
    """Check that nothing that is added is revoked.

    Raises:
        ChangeRefused: Something is; says what.
    """
    for one in added:
        if one.entry.digest in revoked:
            raise ChangeRefused(f"{one.name}@{one.version} is revoked for good; publish another content")


def with_keys(keys: Collection[str], added: Collection[str], names: Collection[str]) -> tuple[str, ...]:
    """Return the targets of the keys that are to be trusted.

    Args:
        keys: Those that are.
        added: Further ones; each replaces one of the same file name.
        names: File names of those that no longer are.

    Raises:
        ChangeRefused: One of ``names`` is not trusted.
    """
    known = {target.rpartition("/")[2]: target for target in keys}
    for name in names:
        if name not in known:
            there = ", ".join(sorted(known)) or "none"
            raise ChangeRefused(f"'{name[:80]}' is no trusted key; those are: {there}")
    known = {name: target for name, target in known.items() if name not in names}
    return tuple(sorted((known | {target.rpartition("/")[2]: target for target in added}).values()))


def with_versions(names: Names, added: Collection[Added], *, activate: bool = True) -> Names:
    """Return the names with further versions, each of which is active from then on.

    Args:
        names: The names as they are.
        added: At most one version of a name becomes active: the highest.
        activate: Make them active; else they are there for a canary, or to go to later.

    Raises:
        ChangeRefused: A version is there with another content, or a canary of the name runs.
    """
    result = dict(names)
    for one in sorted(added, key=lambda a: version_key(a.version)):
        entry = result.get(one.name, NameEntry(None, {}))
        known = entry.versions.get(one.version)
        if known is not None and known.digest != one.entry.digest:
            raise ChangeRefused(
                f"{one.name}@{one.version} is in the catalog with another content ({known.digest[:19]}…); "
                "give the new content a version of its own"
            )
        entry = replace(entry, versions=entry.versions | {one.version: one.entry})
        result[one.name] = activated(one.name, entry, one.version) if activate else entry
    return result


def activated(name: str, entry: NameEntry, version: str) -> NameEntry:
    """Return the entry whose bare name means ``version``.

    Raises:
        ChangeRefused: It is not in the catalog, or a canary runs.
    """
    _require_version(name, entry, version)
    if entry.meaning is not None and entry.meaning.canary is not None:
        raise ChangeRefused(
            f"a canary of '{name}' runs ({entry.meaning.canary.version}); promote or abort it first"
        )
    return replace(entry, meaning=Meaning(version))


def with_canary(names: Names, name: str, canary: CanaryEntry) -> Names:
    """Return the names in which a share of the requests for ``name`` gets another version.

    Raises:
        ChangeRefused: Nothing is active that it could stand beside, or another canary runs.
    """
    entry = _entry(names, name)
    _require_version(name, entry, canary.version)
    if entry.meaning is None or entry.meaning.active == canary.version:
        raise ChangeRefused(f"'{name}' has no other active version that {canary.version} could stand beside")
    running = entry.meaning.canary
    if running is not None:
        if running.version != canary.version:
            raise ChangeRefused(f"the canary {running.version} of '{name}' runs; promote or abort it first")
        canary = replace(canary, since=running.since)
    return {**names, name: replace(entry, meaning=replace(entry.meaning, canary=canary))}


def canary_ended(names: Names, name: str, *, is_promoted: bool) -> Names:
    """Return the names in which the canary of ``name`` is over: active from then on, or gone.

    Raises:
        ChangeRefused: None runs.
    """
    entry = _entry(names, name)
    if entry.meaning is None or entry.meaning.canary is None:
        raise ChangeRefused(f"no canary of '{name}' runs")
    version = entry.meaning.canary.version if is_promoted else entry.meaning.active
    return {**names, name: replace(entry, meaning=Meaning(version))}


def as_of(document: Document, revision: int) -> Names:
    """Return the names as they were in an earlier revision; versions stay in the catalog.

    Raises:
        ChangeRefused: The document does not say what names meant then.
    """
    meanings = document.meanings(revision)
    if meanings is None or revision == document.revision:
        known = ", ".join(sorted(document.retained, key=int)) or "none"
        raise ChangeRefused(f"revision: expected an earlier one that is retained ({known}), got {revision}")
    return {name: replace(entry, meaning=meanings.get(name)) for name, entry in document.names.items()}


def version_before(document: Document, name: str) -> str:
    """Return what ``name`` meant before it meant what it does now.

    Raises:
        ChangeRefused: The document does not say so.
    """
    now = _entry(document.names, name).meaning
    for revision in sorted(map(int, document.retained), reverse=True):
        then = (document.meanings(revision) or {}).get(name)
        if then is not None and (now is None or then.active != now.active):
            return then.active
    if now is not None and now.canary is not None:
        return now.active
    raise ChangeRefused(f"'{name}' meant nothing else in the revisions that are retained; name a version")


def gone_back(document: Document, name: str, version: str) -> Names:
    """Return the names in which ``name`` means an older version that is in the catalog; a canary ends.

    Raises:
        ChangeRefused: It is not in the catalog.
    """
    entry = _entry(document.names, name)
    _require_version(name, entry, version)
    return {**document.names, name: replace(entry, meaning=Meaning(version))}


def without(names: Names, name: str) -> Names:
    """Return the names in which ``name`` means nothing.

    Raises:
        ChangeRefused: It means nothing now.
    """
    entry = _entry(names, name)
    if entry.meaning is None:
        raise ChangeRefused(f"'{name}' means nothing now")
    return {**names, name: replace(entry, meaning=None)}


def require_unrevoked(names: Names, revoked: Collection[str]) -> None:
    """Check that no bare name means a revoked content.

    Raises:
        ChangeRefused: One does; says which.
    """
    for name, entry in sorted(names.items()):
        for version in entry.meaning.versions if entry.meaning is not None else ():
            if entry.versions[version].digest in revoked:
                raise ChangeRefused(
                    f"{name}@{version} would be revoked, and '{name}' means it; add --withdraw {name}, or "
                    f"roll '{name}' back first"
                )


def next_revision(
    before: Document,
    names: Names,
    *,
    published_at: str,
    effective_at: str | None = None,
    keep: int = KEEP_REVISIONS,
) -> Document:
    """Return the revision after ``before``.

    Args:
        before: The one that is in force, with the policy, keys and revocations that are to hold; ``nothing``
            where this is the first.
        names: What names are to mean.
        published_at: Now.
        effective_at: When it is to hold.
        keep: Earlier revisions that it says the meanings of.

    Raises:
        ChangeRefused: A name means what is revoked.
    """
    require_unrevoked(names, before.revoked)
    retained = _retained(before, names, keep)
    needed = {name: set(e.meaning.versions) if e.meaning is not None else set() for name, e in names.items()}
    for then in retained.values():
        for name, meaning in then.items():
            if meaning is not None:
                needed[name].update(meaning.versions)
    pruned = {name: _pruned(entry, needed[name], before.revoked) for name, entry in names.items()}
    return replace(
        before,
        revision=before.revision + 1,
        published_at=published_at,
        effective_at=effective_at,
        names={name: entry for name, entry in sorted(pruned.items()) if entry.versions},
        retained={str(revision): dict(then) for revision, then in retained.items()},
    )


def nothing(published_at: str) -> Document:
    """Return the empty catalog that the first revision follows."""
    return Document(FORMAT, 0, published_at)


def _retained(before: Document, names: Names, keep: int) -> Mapping[int, Mapping[str, Meaning | None]]:
    """Return what differs from ``names`` in each of the last ``keep`` revisions."""
    now = {name: entry.meaning for name, entry in names.items() if entry.meaning is not None}
    known = [*map(int, before.retained), *([before.revision] if before.revision else [])]
    result: dict[int, Mapping[str, Meaning | None]] = {}
    for revision in sorted(known)[-keep:] if keep else []:
        then = before.meanings(revision)
        assert then is not None
        concerned = sorted(n for n in {*now, *then} if now.get(n) != then.get(n))
        result[revision] = {name: then.get(name) for name in concerned}
    return result


def _pruned(entry: NameEntry, needed: Collection[str], revoked: Collection[str]) -> NameEntry:
    """Return the entry without versions that nothing means, but for the latest that could be gone back to."""
    spare = [v for v in entry.versions if v not in needed and entry.versions[v].digest not in revoked]
    kept = {*needed, *sorted(spare, key=version_key)[-KEEP_VERSIONS:]}
    return replace(entry, versions={v: entry.versions[v] for v in sorted(kept, key=version_key)})


def _entry(names: Names, name: str) -> NameEntry:
    if (entry := names.get(name)) is None:
        raise ChangeRefused(f"'{name[:64]}' is not in the catalog; `policypatch fleet show` lists what is")
    return entry


def _require_version(name: str, entry: NameEntry, version: str) -> None:
    if version not in entry.versions:
        there = ", ".join(sorted(entry.versions, key=version_key))
        raise ChangeRefused(f"version: expected one of '{name}' in the catalog ({there}), got {version[:80]}")
