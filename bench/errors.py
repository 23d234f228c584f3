"""The errors that end a benchmark.

BenchError
├── ServerFailed      a server did not start, or died
├── RequestFailed     an answer was not the complete, well-formed stream that was asked for
├── CutShort          the time was up; what was measured until then is on record, and is reported
├── CheckFailed       the servers answer, but not as the question needs: timing them would mean nothing
└── RecordInvalid     a line of a record file cannot be read
"""


class BenchError(Exception):
    """A benchmark cannot give a number. The message is for the person who ran it."""


class ServerFailed(BenchError, RuntimeError):
    """A server did not become ready or did not stay up."""


class RequestFailed(BenchError, RuntimeError):
    """A request was not answered with the stream that it asked for."""


class CutShort(BenchError, TimeoutError):
    """A time limit was reached. Unlike after any other error, the rounds before it are good."""


class CheckFailed(BenchError, RuntimeError):
    """Answers are not what the question needs them to be.

    Attributes:
        findings: one line per thing that is wrong.
    """

    def __init__(self, findings: list[str]) -> None:
        super().__init__(findings)
        self.findings = findings

    def __str__(self) -> str:
        return "answers are not as expected:\n" + "\n".join(f"  - {finding}" for finding in self.findings)


class RecordInvalid(BenchError, ValueError):
    """A record file holds a line that is not a record of this schema."""
