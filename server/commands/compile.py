"""``policypatch compile``: policy text, or a PEFT adapter, becomes a patch file."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from patches.label import Label
from patches.rendering import default_system_text
from server.commands.errors import CommandError
from server.commands.patch_arguments import (
    BLOCK_SIZE,
    add_delta_argument,
    add_label_arguments,
    add_model_arguments,
    add_output_arguments,
    label_of,
    load,
    patch_errors,
    progress,
    save,
    warn,
)
from server.commands.text_file import MAX_TEXT_BYTES, decode_text, read_text_file

if TYPE_CHECKING:
    from patches.format import Patch
    from patches.model import LoadedModel

DESCRIPTION = """\
Make a patch from policy text or from a PEFT adapter.

Text becomes the system message of the model's chat template, without anything behind it; --raw takes the file
exactly as it is, final line break included. A PEFT adapter (PROMPT_TUNING, P_TUNING, PREFIX_TUNING,
CARTRIDGE) is imported as PEFT itself would run it. K/V is computed by transformers at the tokens' true
positions, in the dtype that the server will run the model in.

The result is DIR/NAME-VERSION.safetensors. Equal input gives an equal digest."""

EPILOG = """\
examples:
  policypatch compile --model models/smollm2 --text pirate.txt --name pirate --version 1.0.0 -o patches
  policypatch compile --model models/smollm2 --text pirate.txt --pad-to-multiple 16 --name pirate \\
      --version 1.0.1 --changelog "Fills three blocks." --supersedes 1.0.0 -o patches
  policypatch compile --model models/smollm2 --peft adapters/tone --name tone --version 0.1.0 -o patches
  echo "Answer in French." | policypatch compile --model models/smollm2 --text - --name french \\
      --version 1.0.0 -o patches"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the source, the model, the label and the output."""
    source = parser.add_argument_group("source").add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--text", metavar="FILE", help="a file of policy text in UTF-8; - reads standard input"
    )
    source.add_argument("--peft", metavar="DIR", type=Path, help="the folder of a PEFT adapter")
    text = parser.add_argument_group("text")
    text.add_argument("--raw", action="store_true", help="take the text as it is, without the chat template")
    text.add_argument(
        "--chat-template", metavar="FILE", type=Path, help="use this chat template instead of the model's own"
    )
    length = text.add_mutually_exclusive_group()
    for verb, what in (("pad", "lengthen with line breaks"), ("cut", "drop the last tokens of the text")):
        length.add_argument(
            f"--{verb}-to-multiple",
            metavar="K",
            type=int,
            nargs="?",
            const=BLOCK_SIZE,
            help=f"{what} to a multiple of K tokens (K: {BLOCK_SIZE})",
        )
    text.add_argument("--keep-text", action="store_true", help="store the text in the manifest")
    add_model_arguments(parser)
    add_delta_argument(parser)
    add_label_arguments(parser, name=None, version=None)
    add_output_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Make the patch."""
    with patch_errors():
        label = label_of(args, args.name)
        if args.peft is not None:
            _refuse_text_options(args)
            patch = _import(load(args), label, args)
        else:
            text = _read_text(args.text)
            template = None if args.chat_template is None else read_text_file(args.chat_template)
            patch = _compile(load(args), text, template, label, args)
        save(patch, args)
    return 0


def _import(model: "LoadedModel", label: Label, args: argparse.Namespace) -> "Patch":
    from patches.peft_import import import_adapter

    with progress(f"importing {args.peft}"):
        return import_adapter(model, args.peft, label)


def _compile(
    model: "LoadedModel", text: str, template: str | None, label: Label, args: argparse.Namespace
) -> "Patch":
    from patches.compile import compile_text

    if template is not None and model.tokenizer is not None:
        model.tokenizer.chat_template = template
    with progress("computing K/V"):
        patch = compile_text(
            model,
            text,
            label,
            raw=args.raw,
            pad_to_multiple=args.pad_to_multiple,
            cut_to_multiple=args.cut_to_multiple,
            keep_text=args.keep_text,
        )
    if not args.raw and (default := default_system_text(model.tokenizer)) is not None:
        warn(
            "this chat template begins a conversation that has no system message with one of its own:",
            f"  {default.strip()!r}",
            "A request without a system message carries the patch and, behind it, this default. Serve with "
            "--chat-template and a template without it, or send a system message, to be rid of it.",
        )
    return patch


def _refuse_text_options(args: argparse.Namespace) -> None:
    for option in ("raw", "chat_template", "pad_to_multiple", "cut_to_multiple", "keep_text"):
        if getattr(args, option) not in (None, False):
            raise CommandError(f"--{option.replace('_', '-')} goes with --text, not with --peft")


def _read_text(source: str) -> str:
    if source != "-":
        return read_text_file(Path(source))
    return decode_text(sys.stdin.buffer.read(MAX_TEXT_BYTES + 1), "standard input")
