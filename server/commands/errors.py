"""What a command says when its caller made a mistake."""


class CommandError(Exception):
    """A mistake of the caller: shown as one line, exit code 2."""
