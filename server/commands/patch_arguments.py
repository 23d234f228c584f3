"""What the commands that make patches share: the model, the label, the folder, and how they report."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from patches.base_model import DTYPES
from patches.content import PatchContent
from patches.errors import PatchError, PatchExists, PatchFormatError
from patches.format import Patch, find_content, read_patch, read_patch_bytes
from patches.label import Label
from patches.model_files import require_model
from patches.terminal import one_line
from server.commands.errors import CommandError
from server.commands.output import complain, say

if TYPE_CHECKING:
    from patches.model import LoadedModel

#: A vLLM block on a GPU. A prefix that fills its last block is shared whole between requests.
BLOCK_SIZE = 16


def add_model_arguments(parser: argparse.ArgumentParser, *, is_required: bool = True) -> None:
    """Declare the model and how it is run."""
    group = parser.add_argument_group("model")
    group.add_argument("--model", metavar="M", required=is_required, help="a model folder, or a hub id")
    group.add_argument("--revision", metavar="R", help="the revision of a hub model")
    group.add_argument(
        "--dtype",
        choices=DTYPES,
        help="the dtype that the server will run the model in (default: the model's own)",
    )
    group.add_argument("--device", metavar="D", default="cpu", help="where to compute (default: cpu)")


def add_delta_argument(parser: argparse.ArgumentParser) -> None:
    """Declare the weight patch under which ``load`` has the model compute."""
    parser.add_argument(
        "--under",
        metavar="FILE",
        type=Path,
        help="a weight patch: the result is for the model under it, and serves while it is in force",
    )


def add_label_arguments(parser: argparse.ArgumentParser, *, name: str | None, version: str | None) -> None:
    """Declare name, version and notes.

    Args:
        parser: The parser of the command.
        name: Says what an omitted name becomes; ``None`` makes it required.
        version: The default version; ``None`` makes it required.
    """
    group = parser.add_argument_group("label")
    group.add_argument(
        "--name",
        metavar="NAME",
        required=name is None,
        help="policy name: a-z, 0-9, '.', '_', '-'" + ("" if name is None else f" (default: {name})"),
    )
    group.add_argument(
        "--version",
        metavar="V",
        required=version is None,
        default=version,
        help="semantic version, such as 1.2.0" + ("" if version is None else f" (default: {version})"),
    )
    group.add_argument("--license", metavar="L", help="an SPDX expression, such as Apache-2.0")
    group.add_argument("--changelog", metavar="LINE", help="what is new in this version, in one line")
    group.add_argument("--supersedes", metavar="V", help="the version, or digest, that this one replaces")


def add_output_arguments(parser: argparse.ArgumentParser, metavar: str = "DIR") -> None:
    """Declare where the result goes."""
    group = parser.add_argument_group("output")
    group.add_argument(
        "-o",
        "--output",
        metavar=metavar,
        type=Path,
        required=True,
        help="folder for the result; it is made if it does not exist",
    )
    group.add_argument("--force", action="store_true", help="overwrite what is there with different content")


def label_of(args: argparse.Namespace, name: str) -> Label:
    """Make the label from the arguments."""
    return Label(
        name, args.version, license=args.license, changelog=args.changelog, supersedes=args.supersedes
    )


def require_models(args: argparse.Namespace, *others: str | None) -> None:
    """Check the model that the arguments name, and ``others``, before anything slow is imported.

    Raises:
        CommandError: One can't be read, or the hub has none of its name.
    """
    with patch_errors():
        for model, revision in ((args.model, args.revision), *((other, None) for other in others)):
            if model is not None:
                require_model(model, revision)


def load(args: argparse.Namespace) -> "LoadedModel":
    """Load the model that the arguments name, showing that it takes a while."""
    require_models(args)
    from patches.model import load_model

    with progress(f"loading {args.model}"):
        model = load_model(args.model, dtype=args.dtype, device=args.device, revision=args.revision)
    if getattr(args, "under", None) is None:
        return model
    from patches.deltas.applied import under_delta

    return under_delta(model, read(args.under))


def read(path: Path) -> Patch:
    """Read a patch file; the error names the file."""
    try:
        return read_patch(path)
    except PatchError as error:
        raise CommandError(of_file(path, error)) from error


def read_content(path: Path) -> PatchContent:
    """Check a patch file as ``read`` does, without torch, whose import takes a second or two."""
    try:
        content, problems = find_content(read_patch_bytes(path))
    except PatchFormatError as error:
        raise CommandError(of_file(path, error)) from error
    if content is None:
        raise CommandError(of_file(path, problems[0])) from problems[0]
    return content


def of_file(path: Path, error: Exception) -> str:
    """Return what an error says, with the file that it is about named once."""
    text = str(error)
    return text if text.startswith(f"{path}: ") else f"{path}: {text}"


def unwritable(path: Path, error: OSError) -> CommandError:
    """Return the error that a result can't be written where it shall go."""
    if isinstance(error, FileExistsError | NotADirectoryError):
        return CommandError(f"{path}: expected a folder, but a file is there; choose another name")
    if isinstance(error, IsADirectoryError):
        return CommandError(f"{path}: expected a file, but a folder is there; choose another name")
    return CommandError(f"{path}: can't be written: {error.strerror or error}")


def read_password(path: Path | None) -> bytes | None:
    """Read the first line of a password file; ``None`` where there is no such file to read."""
    if path is None:
        return None
    try:
        password = path.read_bytes().split(b"\n")[0].removesuffix(b"\r")
    except OSError as error:
        raise CommandError(f"--password-file: {path}: {error.strerror or error}") from error
    if not password:
        raise CommandError(f"--password-file: {path}: the first line is empty")
    return password


def save(patch: Patch, args: argparse.Namespace) -> None:
    """Write a patch and say what was written."""
    from patches.format import write_patch

    with write_errors(args.output):
        path = write_patch(patch, args.output, overwrite=args.force)
    report(path, patch)


@contextmanager
def write_errors(folder: Path) -> Iterator[None]:
    """Turn errors about what is written into a folder into errors of the command line."""
    try:
        yield
    except PatchExists as error:
        raise CommandError(f"{error} (--force)") from error
    except OSError as error:
        raise unwritable(folder, error) from error


def report(path: Path, patch: Patch) -> None:
    """Print what was written, and what to know of its length."""
    n = patch.manifest.num_virtual_tokens
    held = f"{n} tokens" if n else patch.manifest.kind
    say(f"{path}: {held}, {patch.nbytes / 2**20:.1f} MiB, {patch.digest}")
    if n % BLOCK_SIZE:
        note(f"{n} tokens do not fill the last block of {BLOCK_SIZE}; each request copies that part anew")


def note(text: str) -> None:
    """Print something worth knowing, apart from the output."""
    complain(f"note: {text}")


def warn(text: str, *details: str) -> None:
    """Print something that may surprise, apart from the output."""
    for line in (f"warning: {text}", *details):
        complain(line)


@contextmanager
def patch_errors() -> Iterator[None]:
    """Turn errors about patches and models into errors of the command line."""
    try:
        yield
    except PatchError as error:
        raise CommandError(str(error)) from error


@contextmanager
def progress(text: str) -> Iterator[None]:
    """Show a spinner on a terminal while something long runs, and keep transformers quiet."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(stderr=True)
    with (
        quiet_transformers(),
        console.status(escape(one_line(text))) if console.is_terminal else nullcontext(),
    ):
        yield


@contextmanager
def counted(text: str) -> Iterator[Callable[[int, int], None]]:
    """Draw a bar on a terminal, by how many of how many are done, and keep transformers quiet."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn(escape(one_line(text))), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with quiet_transformers(), Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(text, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' own bars and notes off the screen."""
    from transformers.utils import logging

    verbosity, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bars:
            logging.enable_progress_bar()
