"""Reads a policy file for a command, whose caller is told every mistake in it."""

from pathlib import Path

from server.commands.errors import CommandError
from server.policy.errors import PolicyFileError
from server.policy.file import PolicyFile, load_policy


def read_policy(path: Path, argument: str) -> PolicyFile:
    """Read a policy file; the error names every mistake in it."""
    try:
        return load_policy(path)
    except PolicyFileError as error:
        lines = [f"{path}:{p.place.line}:{p.place.column}: {p.message}" for p in error.problems]
        raise CommandError(f"{argument}: no policy:", *lines) from error
    except OSError as error:
        raise CommandError(f"{argument}: {path} can't be read: {error.strerror or error}") from error
