"""The lowest version of each name that may be used, as signed statements said. It never goes down by itself.

What a statement raised stays raised after its file is gone, and, with a state file, after a restart: removing
a patch from the folder must not bring an older one back. An operator may permit one version below the bound;
the next statement that raises the bound ends all permissions of its name, since its signer knew better.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from patches.canonical import parse_json
from patches.durable import write_json_atomically
from patches.fields import FieldReader
from patches.names import validate_name, version_key
from patches.reading import read_regular_file

STATE_FORMAT = 1
MAX_STATE_BYTES = 16 * 1024 * 1024


class MinimumVersionsError(Exception):
    """The state file can't be read; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Bound:
    """What is known about one name."""

    minimum: str
    #: Versions below the minimum that an operator allows.
    permitted: frozenset[str] = frozenset()


class MinimumVersions:
    """Remembers one bound per name. Any thread; ``permit``, ``forbid`` and ``save`` block on the disk."""

    def __init__(self, path: Path | None = None) -> None:
        """Read the state file.

        Args:
            path: Where bounds are kept; a file that is not there yet holds none. ``None`` for memory only.

        Raises:
            MinimumVersionsError: The file can't be read, or is damaged.
        """
        self._path = path
        self._bounds: Mapping[str, Bound] = {} if path is None else _read(path)
        #: What is on disk; with no state file, what would be.
        self._saved = self._bounds
        self._changing = threading.Lock()
        #: Held over a write, so that an older one never ends after a newer one.
        self._saving = threading.Lock()

    @property
    def bounds(self) -> Mapping[str, Bound]:
        """The bound of each name that has one. Never mutated."""
        return self._bounds

    def allows(self, name: str, version: str) -> bool:
        """Return whether a version of ``name`` may be used."""
        bound = self._bounds.get(name)
        return (
            bound is None or version_key(version) >= version_key(bound.minimum) or version in bound.permitted
        )

    def raise_to(self, name: str, minimum: str) -> bool:
        """Forbid what is below ``minimum``, and return whether that is a change. It still has to be saved."""
        with self._changing:
            bound = self._bounds.get(name)
            if bound is not None and version_key(minimum) <= version_key(bound.minimum):
                return False
            self._bounds = {**self._bounds, name: Bound(minimum)}
            return True

    def permit(self, name: str, version: str) -> None:
        """Allow one version below the bound, where there is a bound, and save that.

        Raises:
            OSError: It can't be saved; nothing was changed.
        """
        self._change_permitted(name, lambda permitted: permitted | {version})

    def forbid(self, name: str, version: str) -> None:
        """Take a permission back, and save that.

        Raises:
            OSError: It can't be saved; nothing was changed.
        """
        self._change_permitted(name, lambda permitted: permitted - {version})

    def save(self) -> None:
        """Put the bounds on disk, where there is a state file and they are not there yet.

        Raises:
            OSError: They can't be written; the ones before them are still there.
        """
        with self._saving:
            self._save()

    def _change_permitted(self, name: str, change: Callable[[frozenset[str]], frozenset[str]]) -> None:
        with self._saving:
            with self._changing:
                before = self._bounds.get(name)
                if before is None:
                    return
                after = replace(before, permitted=change(before.permitted))
                self._bounds = {**self._bounds, name: after}
            try:
                self._save()
            except OSError:
                with self._changing:
                    # A statement may have raised the bound meanwhile; that stays.
                    if self._bounds[name] is after:
                        self._bounds = {**self._bounds, name: before}
                raise

    def _save(self) -> None:
        bounds = self._bounds
        if self._path is None or bounds is self._saved:
            return
        document = {
            "format": STATE_FORMAT,
            "names": [
                {"name": name, "minimum": bound.minimum, "permitted": sorted(bound.permitted)}
                for name, bound in sorted(bounds.items())
            ],
        }
        write_json_atomically(self._path, document, mode=0o600)
        self._saved = bounds


def _read(path: Path) -> Mapping[str, Bound]:
    try:
        document = parse_json(read_regular_file(path, MAX_STATE_BYTES).decode("utf-8"))
        return _decode(document)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise MinimumVersionsError(
            f"{path}: {reason}; restore it from a backup, or remove it and lose the bounds it holds"
        ) from None


def _decode(document: object) -> Mapping[str, Bound]:
    reader = FieldReader("state", document)
    reader.integer("format", STATE_FORMAT, STATE_FORMAT)
    bounds = {}
    for entry in reader.objects("names", 0):
        name, minimum = entry.text("name"), entry.text("minimum")
        permitted = entry.free().get("permitted")
        if not isinstance(permitted, list) or not all(isinstance(version, str) for version in permitted):
            entry.problem("permitted", "a list of versions", permitted)
        elif not reader.problems:
            bounds[validate_name(name)] = Bound(_valid(minimum), frozenset(map(_valid, permitted)))
    if reader.problems:
        raise ValueError(reader.problems[0])
    return bounds


def _valid(version: str) -> str:
    version_key(version)
    return version
