"""A long command as one line with its seconds. What it says goes into a log, whose end is shown if it fails.

    python tools/steps.py LOG LABEL COMMAND...

Standard library only: it runs before anything is installed.
"""

import argparse
import contextlib
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

#: Lines of the log that a failed step shows.
_SHOWN_LINES = 15
#: Characters of an answer that the log keeps.
_LOGGED_ANSWER = 1000


class StepFailed(Exception):
    """A step came to nothing; the text is for the person who started it."""


class Steps:
    """Steps one after the other, with one log."""

    def __init__(self, log: Path, out: TextIO | None = None) -> None:
        self.log = log
        self._out = sys.stdout if out is None else out
        log.parent.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def step(self, label: str) -> Iterator[list[str]]:
        """Show ``label``, and at the end the seconds, and what was appended to the list that is yielded."""
        results: list[str] = []
        start, ended = time.monotonic(), threading.Event()
        # Seconds pass where someone looks on, on one line; elsewhere the line is written once.
        is_watched = self._out.isatty()
        if is_watched and len(label) > (width := shutil.get_terminal_size().columns - len(" ... 9999 s")):
            label = f"{label[: width - 2]}.."

        def line() -> str:
            return f"{label} ... {time.monotonic() - start:.0f} s"

        def tick() -> None:
            while not ended.wait(1):
                self._show(f"\r{line()}")

        self._show(f"{label} ... ")
        ticker = threading.Thread(target=tick, daemon=True)
        if is_watched:
            ticker.start()
        try:
            yield results
        except BaseException:
            results.append("failed")
            raise
        finally:
            ended.set()
            if is_watched:
                ticker.join()
            end = ", ".join([line(), *results])
            self._show(f"\r{end}\n" if is_watched else f"{end.removeprefix(f'{label} ... ')}\n")

    def run(self, label: str, command: Sequence[str]) -> None:
        """Run one command as one step.

        Raises:
            StepFailed: It failed; the text holds the end of the log.
        """
        with self.step(label):
            self.call(command)

    def call(self, command: Sequence[str]) -> None:
        """Run a command inside a step.

        Raises:
            StepFailed: It failed; the text holds the end of the log.
        """
        if code := self._logged(command, is_answer=False).returncode:
            text = self.log.read_text(encoding="utf-8", errors="replace")
            shown = "\n".join(f"  {line}" for line in text.splitlines()[-_SHOWN_LINES:])
            raise StepFailed(f"{shown}\n{self.log}: the command above ended with code {code}")

    def ask(self, command: Sequence[str]) -> str | None:
        """Return what a command prints; ``None`` where it fails."""
        answer = self._logged(command, is_answer=True)
        return answer.stdout if answer.returncode == 0 else None

    def _logged(self, command: Sequence[str], *, is_answer: bool) -> subprocess.CompletedProcess[str]:
        with self.log.open("a", encoding="utf-8") as log:
            log.write(f"\n$ {' '.join(command)}\n")
            log.flush()
            if shutil.which(command[0]) is None:
                raise StepFailed(f"{command[0]}: there is no such program")
            answer = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if is_answer else log,
                stderr=log,
                encoding="utf-8",
                errors="replace",
                check=False,
            )
            log.write((answer.stdout or "")[:_LOGGED_ANSWER])
        return answer

    def _show(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


def exit_code(steps: Callable[[], None]) -> int:
    """Return the exit code for how ``steps`` end, after a failure is shown."""
    try:
        steps()
    except StepFailed as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command as one step; its exit code is 1 where the command failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("log", type=Path, metavar="LOG")
    parser.add_argument("label", metavar="LABEL")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND")
    args = parser.parse_args(argv)
    return exit_code(lambda: Steps(args.log).run(args.label, args.command))


if __name__ == "__main__":
    sys.exit(main())
