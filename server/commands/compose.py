"""``policypatch compose``: several patches become one, in order."""

import argparse
from pathlib import Path

from patches.headers import PATCH_HEADER
from server.commands.patch_arguments import (
    add_delta_argument,
    add_label_arguments,
    add_model_arguments,
    add_output_arguments,
    label_of,
    load,
    patch_errors,
    progress,
    read,
    save,
)

DESCRIPTION = f"""\
Join patches that carry embeddings, in the order given, and compute K/V anew: a later patch sits at other
positions and reads the ones before it. A server that has the result in its folder uses it for requests that
name the same patches in the same order ({PATCH_HEADER}: toxicity, bias), and under its own name."""

EPILOG = """\
examples:
  policypatch compose patches/toxicity-1.2.0.safetensors patches/bias-1.0.0.safetensors \\
      --model models/smollm2 -o patches
  policypatch compose a-1.0.0.safetensors b-1.0.0.safetensors c-1.0.0.safetensors --model models/smollm2 \\
      --name house-rules --version 2.0.0 -o patches"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the parts, the model, the label and the output."""
    parser.add_argument(
        "patches", metavar="PATCH", type=Path, nargs="+", help="patch files, at least two, in order"
    )
    add_model_arguments(parser)
    add_delta_argument(parser)
    add_label_arguments(parser, name="the names of the parts, joined by dots", version="1.0.0")
    add_output_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Make the composition."""
    from patches.compose import compose_patches, composed_name

    with patch_errors():
        parts = [read(path) for path in args.patches]
        label = label_of(args, args.name or composed_name([part.manifest.name for part in parts]))
        model = load(args)
        with progress("computing K/V"):
            patch = compose_patches(model, parts, label)
        save(patch, args)
    return 0
