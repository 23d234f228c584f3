"""``policypatch export``: a patch becomes a PEFT adapter."""

import argparse
from pathlib import Path

from patches.errors import PatchExists
from patches.peft_export import KINDS, export_adapter
from server.commands.errors import CommandError
from server.commands.output import say
from server.commands.patch_arguments import add_output_arguments, patch_errors, read, unwritable

DESCRIPTION = """\
Write a patch as a PEFT adapter folder, which PeftModel.from_pretrained loads. Embeddings become
PROMPT_TUNING; a patch that has only K/V becomes PREFIX_TUNING or CARTRIDGE. Name, version and notes have no
place in an adapter and stay behind."""

EPILOG = """\
examples:
  policypatch export --peft patches/pirate-1.0.0.safetensors --model ./smollm2 -o adapters/pirate
  policypatch export --peft patches/pirate-1.0.0.safetensors --as cartridge -o adapters/pirate-kv"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the patch, the kind of adapter and the output."""
    parser.add_argument("--peft", metavar="FILE", type=Path, required=True, help="the patch file to export")
    parser.add_argument(
        "--as",
        dest="kind",
        choices=KINDS,
        help="kind of adapter (default: prompt-tuning where there are embeddings, else prefix-tuning)",
    )
    parser.add_argument(
        "--model",
        metavar="M",
        help="folder or hub id of the base model, for AutoPeftModelForCausalLM to find it",
    )
    add_output_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Write the adapter."""
    patch = read(args.peft)
    with patch_errors():
        try:
            kind = export_adapter(patch, args.output, args.kind, base_model=args.model, overwrite=args.force)
        except PatchExists as error:
            raise CommandError(f"{error} (--force)") from error
        except OSError as error:
            raise unwritable(args.output, error) from error
    unnamed = "; AutoPeftModelForCausalLM needs a base model: --model" if args.model is None else ""
    say(f"{args.output}: {kind}, {patch.manifest.num_virtual_tokens} virtual tokens{unnamed}")
    return 0
