"""``policypatch serve``: our flags first, every other one goes to vLLM."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from server.commands.errors import CommandError
from server.commands.tier_arguments import add_tier_arguments, tier_options

if TYPE_CHECKING:
    from server.admin.control import ControlOptions
    from server.policy.file import PolicyFile

DESCRIPTION = """\
Serve a model over the OpenAI API and give each request the policy patch that its X-Policy-Patch header names.

Patches are the *.safetensors files of the folder; it is watched, so a file that is renamed into it is served
within a second, and one that is removed is drained and gone."""

EPILOG = """\
Every flag of `vllm serve` works here too and is passed on: --port, --dtype, --max-model-len, --api-key, ...
`policypatch serve --engine-help` lists their groups, `--engine-help=CacheConfig` one of them, `=all` all.

examples:
  policypatch serve --model ./smollm2 --patches examples/patches --port 8000
  policypatch serve --model ./smollm2 --patches ./patches --default-patch safety --require-patch
  policypatch serve --model ./smollm2 --patches ./patches --policy policy.yaml --audit-log audit.jsonl
  policypatch serve --model ./smollm2 --patches ./patches --state ./state --admin-key-file ./admin-keys
  policypatch serve --model ./smollm2 --patches ./patches --state ./state --trusted-keys ./trusted
  policypatch serve --model ./smollm2 --patches ./patches --composition joined
  policypatch serve --model ./smollm2 --patches ./patches --api-server-count 2 --data-parallel-size 2
  curl localhost:8000/v1/chat/completions -H 'X-Policy-Patch: pirate' -H 'Content-Type: application/json' \\
    -d '{"model": "smollm2", "messages": [{"role": "user", "content": "What is the capital of France?"}]}'
"""


class EngineHelp(argparse.Action):
    """Prints vLLM's own help and exits, as ``--help`` does with ours."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option: object = None,
    ) -> None:
        """Never returns."""
        from server.engine.launch import engine_parser

        engine_parser().parse_args([f"--help={values}" if values else "--help"])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that are not vLLM's."""
    parser.add_argument(
        "--model", required=True, help="model folder, or the id of a model in the local hub cache"
    )
    parser.add_argument(
        "--patches", required=True, type=Path, metavar="DIR", help="folder of patch files, watched"
    )
    parser.add_argument(
        "--default-patch",
        metavar="NAME",
        help="patch for requests that name none (default: the base model answers)",
    )
    parser.add_argument(
        "--require-patch",
        action="store_true",
        help="refuse `X-Policy-Patch: none`, and answers without a patch",
    )
    _add_control_arguments(parser)
    parser.add_argument(
        "--engine-help",
        action=EngineHelp,
        nargs="?",
        metavar="GROUP",
        help="show the flags of `vllm serve` and exit",
    )


def _add_control_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--policy",
        type=Path,
        metavar="FILE",
        help="policy file: who may choose which patch; watched, and in place of the two flags above",
    )
    parser.add_argument(
        "--composition",
        choices=("prepared", "joined"),
        default="prepared",
        help="what may answer `X-Policy-Patch: a, b`: only what `policypatch compose` prepared, or, where "
        "nothing was, the patches joined side by side, which may answer differently (default: %(default)s)",
    )
    parser.add_argument(
        "--audit-log",
        type=Path,
        metavar="FILE",
        help="append a JSON line on every decision to this file; SIGHUP opens it anew (default: none)",
    )
    add_tier_arguments(parser)
    parser.add_argument(
        "--state",
        type=Path,
        metavar="DIR",
        help="folder in which activations, pins and history survive a restart (default: they don't)",
    )
    parser.add_argument(
        "--keep-previous",
        type=int,
        default=1,
        metavar="N",
        help="versions of each patch that were active before and stay loaded for a rollback (default: 1)",
    )
    parser.add_argument(
        "--admin-key-file",
        type=Path,
        metavar="FILE",
        help="lines of name:key for the admin calls of /v1/patches, mode 600 (default: they are refused)",
    )
    parser.add_argument(
        "--admin-listen",
        metavar="ADDRESS",
        help="take admin calls at HOST:PORT or unix:PATH, and there only (default: where requests arrive)",
    )
    parser.add_argument(
        "--trusted-keys",
        type=Path,
        metavar="DIR",
        help="folder of public keys: only patches that one of them signed are loaded (default: all are)",
    )
    parser.add_argument(
        "--revoked",
        type=Path,
        metavar="FILE",
        help="list of digests that never load, and that go where they are live (default: none)",
    )


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT.

    Returns:
        0 after an orderly end, 1 where the start failed.
    """
    if not args.patches.is_dir():
        raise CommandError(
            f"--patches: {args.patches} is not a folder; create it, or name the one with the patches"
        )
    if args.admin_listen is not None and args.admin_key_file is None:
        raise CommandError("--admin-listen: nobody could call there; name the keys with --admin-key-file")
    if args.keep_previous < 0:
        raise CommandError(f"--keep-previous: expected 0 or more, got {args.keep_previous}")
    try:
        from server.engine.launch import serve
        from server.engine.options import ServeOptions
        from server.engine.processes import FrontEndRefused
    except ImportError as error:
        raise CommandError(
            f"vLLM is not installed ({error}); install policypatch[cpu] or policypatch[gpu]"
        ) from error
    from server.engine.start_errors import START_ERRORS
    from server.policy.rules import Policy

    policy_file = _read_policy(args)
    try:
        policy = (
            Policy.from_flags(default_patch=args.default_patch, require_patch=args.require_patch)
            if policy_file is None
            else policy_file[1].policy
        )
        control, tiers = _control_options(args), tier_options(args)
        options = ServeOptions(
            args.model, args.patches, policy, policy_file, args.audit_log, control, tiers, args.composition
        )
        serve(options, args.engine_arguments)
    except START_ERRORS as error:
        raise CommandError(str(error)) from error
    except FrontEndRefused as error:
        raise CommandError(str(error)) from error
    except (ValueError, RuntimeError, OSError) as error:
        print(f"policypatch serve: the start failed: {error}", file=sys.stderr)
        raise
    return 0


def _control_options(args: argparse.Namespace) -> "ControlOptions":
    from server.admin.control import ControlOptions

    return ControlOptions(
        state=args.state,
        keep_previous=args.keep_previous,
        admin_key_file=args.admin_key_file,
        trusted_keys=args.trusted_keys,
        revoked=args.revoked,
        admin_listen=args.admin_listen,
    )


def _read_policy(args: argparse.Namespace) -> "tuple[Path, PolicyFile] | None":
    if args.policy is None:
        return None
    if args.default_patch is not None or args.require_patch:
        raise CommandError(
            "--policy: the file says what --default-patch and --require-patch say; use one way"
        )
    from server.commands.policy_file import read_policy

    return args.policy, read_policy(args.policy, "--policy")
