"""``policypatch serve``: our flags first, every other one goes to vLLM."""

import argparse
from typing import TYPE_CHECKING

from patches.headers import PATCH_HEADER
from patches.model_files import require_local_model
from server.commands.errors import CommandError
from server.commands.output import complain
from server.commands.patch_arguments import patch_errors
from server.options import PolicyOptions, ServeFlags

if TYPE_CHECKING:
    from server.policy.file import PolicyFile

DESCRIPTION = f"""\
Serve a model over the OpenAI API and give each request the policy patch that its {PATCH_HEADER} header names.

Patches are the *.safetensors files of the folder; it is watched, so a file that is renamed into it is served
within a second, and one that is removed is drained and gone."""

EPILOG = f"""\
Every flag of `vllm serve` works here too and is passed on: --port, --dtype, --max-model-len, --api-key, ...
`policypatch serve --engine-help` lists their groups, `--engine-help=CacheConfig` one of them, `=all` all.

examples:
  policypatch serve --model ./smollm2 --patches examples/patches --port 8000
  policypatch serve --model ./smollm2 --patches ./patches --default-patch safety --require-patch
  policypatch serve --model ./smollm2 --patches ./patches --policy policy.yaml --audit-log audit.jsonl
  policypatch serve --model ./smollm2 --patches ./patches --state ./state --admin-key-file ./admin-keys
  policypatch serve --model ./smollm2 --patches ./patches --state ./state --trusted-keys ./trusted
  policypatch serve --model ./smollm2 --patches ./patches --composition joined
  policypatch serve --model ./smollm2 --patches ./copy --catalog https://store.test --catalog-root root.json
  policypatch serve --model ./smollm2 --patches ./patches --api-server-count 2 --data-parallel-size 2
  curl localhost:8000/v1/chat/completions -H '{PATCH_HEADER}: pirate' -H 'Content-Type: application/json' \\
    -d '{{"model": "smollm2", "messages": [{{"role": "user", "content": "What is the capital of France?"}}]}}'
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
    ServeFlags.add_arguments(parser)
    parser.add_argument_group("engine").add_argument(
        "--engine-help",
        action=EngineHelp,
        nargs="?",
        metavar="GROUP",
        help="show the flags of `vllm serve` and exit",
    )


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT.

    Returns:
        1 where the start failed; after an orderly end the process has ended, with 0.
    """
    flags = ServeFlags.read(args)
    # What a server that follows a catalog keeps there, it makes itself.
    if flags.fleet.catalog is None and not flags.patches.patches.is_dir():
        raise CommandError(
            f"--patches: {flags.patches.patches} is not a folder; create it, or name the one with the patches"
        )
    if flags.admin.admin_listen is not None and flags.admin.admin_key_file is None:
        raise CommandError("--admin-listen: no call would be allowed there; name keys with --admin-key-file")
    _prepare_fleet(flags)
    policy_file = _read_policy(flags.policy)
    with patch_errors():
        require_local_model(flags.patches.model)
    from server.engine.children import begin, prepare_children

    begin()
    prepare_children()
    try:
        from server.engine.launch import serve
        from server.engine.options import ServeOptions
        from server.engine.processes import FrontEndRefused
    except ImportError as error:
        raise CommandError(
            f"vLLM is not installed ({error}); install policypatch[cpu] or policypatch[gpu]"
        ) from error
    from server.engine.ending import end_process
    from server.engine.start_errors import START_ERRORS, EngineFailed
    from server.policy.rules import Policy

    try:
        policy = (
            Policy.from_flags(
                default_patch=flags.policy.default_patch,
                require_patch=flags.policy.require_patch,
                require_choice=flags.policy.require_choice,
            )
            if policy_file is None
            else policy_file.policy
        )
        serve(ServeOptions(flags, policy, policy_file), args.engine_arguments)
    except SystemExit as end:
        # So several processes on one socket end.
        if end.code:
            raise
    except START_ERRORS as error:
        raise CommandError(str(error)) from error
    except FrontEndRefused as error:
        raise CommandError(str(error)) from error
    except EngineFailed as error:
        complain(f"policypatch serve: {error}")
        return 1
    end_process(0)


def _prepare_fleet(flags: ServeFlags) -> None:
    """Make the folder of a server that follows a catalog; its flags must not contradict what that carries."""
    fleet = flags.fleet
    if (fleet.catalog is None) != (fleet.catalog_root is None):
        given, other = ("--catalog", "--catalog-root") if fleet.catalog else ("--catalog-root", "--catalog")
        raise CommandError(f"{given}: expected {other} beside it")
    if fleet.catalog is None or fleet.catalog_root is None:
        return
    for flag, value in {
        "--policy": flags.policy.policy,
        "--trusted-keys": flags.trust.trusted_keys,
        "--revoked": flags.trust.revoked,
        "--weight-patches": flags.weights.weight_patches or None,
    }.items():
        if value is not None:
            raise CommandError(f"{flag}: the catalog decides that for all servers; leave it out")
    try:
        fleet.catalog_root.read_bytes()
        flags.patch_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        named = "--catalog-root" if error.filename == str(fleet.catalog_root) else "--patches"
        raise CommandError(f"{named}: {error.filename}: {error.strerror}") from error


def _read_policy(options: PolicyOptions) -> "PolicyFile | None":
    if options.policy is None:
        return None
    if options.default_patch is not None or options.require_patch or options.require_choice:
        raise CommandError(
            "--policy: the file says what --default-patch, --require-patch and --require-choice say; use one "
            "way"
        )
    from server.commands.policy_file import read_policy

    return read_policy(options.policy, "--policy")
