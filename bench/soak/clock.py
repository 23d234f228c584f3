"""A clock that can be set while a server runs: libfaketime, preloaded into all of its processes.

Only the time of day moves, as where an administrator or NTP sets it; the monotonic clock goes on.
"""

import importlib.util
import os
from pathlib import Path

#: Where distributions put it.
_PLACES = ("/usr/lib/*/faketime", "/usr/lib/faketime", "/usr/lib64/faketime", "/usr/local/lib/faketime")


class ShiftedClock:
    """The time of day of processes that are started with ``environment()``, ``shift`` seconds off."""

    def __init__(self, library: Path, file: Path) -> None:
        self._library = library
        self._file = file
        self.shift(0)

    def shift(self, seconds: float) -> None:
        """Set the clock to the true time and so many seconds; processes see it within a second."""
        staged = self._file.with_suffix(".staged")
        staged.write_text(f"{seconds:+.0f}\n")
        os.replace(staged, self._file)

    def environment(self) -> dict[str, str]:
        """Return the variables that a process needs."""
        others = os.environ.get("LD_PRELOAD")
        return {
            "LD_PRELOAD": f"{self._library} {others}" if others else str(self._library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_CACHE_DURATION": "1",
        }


def find_libfaketime() -> Path | None:
    """Find the library: of the Python package, else of the system."""
    spec = importlib.util.find_spec("libfaketime")
    roots = [Path(spec.origin).parent] if spec is not None and spec.origin is not None else []
    for root in roots:
        for path in sorted(root.glob("vendor/libfaketime/src/libfaketime.so*")):
            return path
    for pattern in _PLACES:
        for path in sorted(Path("/").glob(f"{pattern.lstrip('/')}/libfaketime.so.1")):
            return path
    return None
