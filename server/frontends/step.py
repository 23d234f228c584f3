"""The numbers that all processes of a server share: which step holds, and who is in step.

They lie in memory that was mapped before the processes were started. Each is one aligned 64-bit word, which
is written and read whole, and has one writer: the leader.
"""

from collections.abc import MutableSequence


def num_words(num_processes: int) -> int:
    """Return how many words a server of this many processes needs, all of them 0 at first."""
    return 1 + num_processes


class Steps:
    """Reads and writes the shared words; the same object, or an equal one, in every process."""

    def __init__(self, words: MutableSequence[int]) -> None:
        self._words = words

    @property
    def num_processes(self) -> int:
        """How many processes share them."""
        return len(self._words) - 1

    @property
    def current(self) -> int:
        """The step that holds for every process."""
        return self._words[0]

    def advance(self) -> None:
        """Make the next step hold, for every process at once. For the leader."""
        self._words[0] += 1

    def is_attached(self, index: int) -> bool:
        """Return whether the leader counts on this process."""
        return bool(self._words[1 + index])

    def set_attached(self, index: int, is_attached: bool) -> None:
        """Count on this process from now on, or not any more. For the leader."""
        self._words[1 + index] = is_attached
