"""What a command says when its caller made a mistake."""


class CommandError(Exception):
    """A mistake of the caller: shown as one line, and one for each of ``details``; exit code 2."""

    def __init__(self, message: str, *details: str) -> None:
        super().__init__(message)
        self.details = details
