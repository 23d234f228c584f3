"""The flags of ``policypatch serve`` that are not vLLM's: each once, with its default, help and reader.

A class here is a group in ``--help`` and what the room of that name is handed; a field is called as its flag.
To add a flag, add a field here and use it where it acts: nothing between has to know.
"""

import argparse
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from pydantic import ByteSize

from patches.argument_values import count, num_bytes, seconds, share
from patches.errors import InvalidName
from patches.headers import PATCH_HEADER
from patches.names import validate_name


def patch_name(text: str) -> str:
    """Read the name of a patch.

    Raises:
        argparse.ArgumentTypeError: It is none.
    """
    try:
        return validate_name(text)
    except InvalidName as error:
        raise argparse.ArgumentTypeError(str(error)) from None


@dataclass(frozen=True, slots=True)
class Flag:
    """How a field is written on the command line."""

    #: ``{default}`` in it becomes the field's default, as a person would write it.
    meaning: str
    metavar: str | None = None
    #: Reads the value; raises ``argparse.ArgumentTypeError`` where it is wrong.
    type: Callable[[str], Any] = str
    choices: tuple[str, ...] | None = None


_GIB, _FOUR_GIB = ByteSize(1 << 30), ByteSize(4 << 30)


@dataclass(frozen=True, slots=True)
class PatchOptions:
    """What is served."""

    model: Annotated[str, Flag("model folder, or the id of a model in the local hub cache", "M")]
    patches: Annotated[Path, Flag("folder of patch files, watched", "DIR", Path)]
    composition: Annotated[
        str,
        Flag(
            f"what may answer `{PATCH_HEADER}: a, b`: only what `policypatch compose` prepared, or, where "
            "nothing was, the patches joined side by side, which may answer differently (default: {default})",
            choices=("prepared", "joined"),
        ),
    ] = "prepared"


@dataclass(frozen=True, slots=True)
class PolicyOptions:
    """Who may have which patch."""

    default_patch: Annotated[
        str | None,
        Flag("patch for requests that name none (default: the base model answers)", "NAME"),
    ] = None
    require_patch: Annotated[
        bool,
        Flag(f"refuse `{PATCH_HEADER}: none`, and answers without a patch"),
    ] = False
    require_choice: Annotated[
        bool,
        Flag(
            f"refuse requests that name nothing, neither in `{PATCH_HEADER}` nor behind the model's name; "
            "`none` is a choice, too"
        ),
    ] = False
    policy: Annotated[
        Path | None,
        Flag(
            "policy file: who may choose which patch; watched, and in place of the flags above",
            "FILE",
            Path,
        ),
    ] = None
    audit_log: Annotated[
        Path | None,
        Flag(
            "append a JSON line on every decision to this file; SIGHUP opens it anew (default: none)",
            "FILE",
            Path,
        ),
    ] = None


@dataclass(frozen=True, slots=True)
class MemoryOptions:
    """How much of which memory patches may take."""

    patch_device_memory: Annotated[
        ByteSize,
        Flag(
            "memory of each device for the patches used last, such as 512MiB (default: {default})",
            "SIZE",
            num_bytes,
        ),
    ] = _GIB
    patch_host_memory: Annotated[
        ByteSize,
        Flag(
            "host memory for patches, of all workers together; the others are read from their files when a "
            "request needs them (default: {default})",
            "SIZE",
            num_bytes,
        ),
    ] = _FOUR_GIB
    pin_patch: Annotated[
        frozenset[str],
        Flag(
            "keep this patch in memory, and its device copy longest; may be given several times",
            "NAME",
            patch_name,
        ),
    ] = frozenset()
    pin_blocks: Annotated[
        frozenset[str],
        Flag(
            "keep this patch's blocks in the KV cache while it is used at least every ten minutes; may be "
            "given several times",
            "NAME",
            patch_name,
        ),
    ] = frozenset()
    pin_blocks_share: Annotated[
        float,
        Flag(
            "share of the KV cache that blocks kept so may take at most; patches used last come first "
            "(default: {default})",
            "SHARE",
            share,
        ),
    ] = 0.1
    steering_slots: Annotated[
        int,
        Flag(
            "distinct steering vectors that may act at a time; requests for others wait. 0 switches steering "
            "patches off (default: {default})",
            "N",
            count,
        ),
    ] = 32
    preload: Annotated[
        bool,
        Flag("fill host memory at start, instead of with the first request of each patch"),
    ] = False


@dataclass(frozen=True, slots=True)
class WeightOptions:
    """Whether the model's weights may change while the server runs."""

    weight_patches: Annotated[
        bool,
        Flag("take weight patches; `policypatch patches activate` puts one in force, for all requests"),
    ] = False
    mismatched: Annotated[
        str,
        Flag(
            "what becomes of prefixes and vectors that were made for other weights than those in force: they "
            "answer no request, or, with keep, go on, which each answer says (default: {default})",
            choices=("refuse", "keep"),
        ),
    ] = "refuse"
    weight_drain_timeout: Annotated[
        float,
        Flag(
            "seconds that running requests may take to end before weights change; else nothing does "
            "(default: {default})",
            "S",
            seconds,
        ),
    ] = 60.0


@dataclass(frozen=True, slots=True)
class AdminOptions:
    """How operators change what is served, and what survives a restart."""

    admin_key_file: Annotated[
        Path | None,
        Flag(
            "lines of name:key for the admin calls of /v1/patches, mode 600 (default: they are refused)",
            "FILE",
            Path,
        ),
    ] = None
    admin_listen: Annotated[
        str | None,
        Flag(
            "take admin calls at HOST:PORT or unix:PATH, and there only (default: where requests arrive)",
            "ADDRESS",
        ),
    ] = None
    state: Annotated[
        Path | None,
        Flag(
            "folder in which activations, pins and history survive a restart (default: they don't)",
            "DIR",
            Path,
        ),
    ] = None
    keep_previous: Annotated[
        int,
        Flag(
            "versions of each patch that were active before and stay loaded for a rollback "
            "(default: {default})",
            "N",
            count,
        ),
    ] = 1


@dataclass(frozen=True, slots=True)
class FleetOptions:
    """Which catalog of a fleet is followed, in place of a folder, a policy file and keys of its own."""

    catalog: Annotated[
        str | None,
        Flag(
            "follow the catalog that `policypatch fleet publish` writes, at http(s)://... or in a folder; "
            "--patches then names the folder that keeps a copy (default: the files of --patches decide)",
            "URL",
        ),
    ] = None
    catalog_root: Annotated[
        Path | None,
        Flag("root.json of `policypatch fleet init`, which says whose catalog counts", "FILE", Path),
    ] = None
    catalog_poll: Annotated[
        float, Flag("seconds between looks at the catalog (default: {default})", "S", seconds)
    ] = 2.0
    stale: Annotated[
        str,
        Flag(
            "what requests get that need no required patch where the catalog's lease has run out; all others "
            "are refused (default: {default})",
            choices=("serve", "refuse"),
        ),
    ] = "serve"


@dataclass(frozen=True, slots=True)
class TrustOptions:
    """Whose patches are loaded."""

    trusted_keys: Annotated[
        Path | None,
        Flag(
            "folder of public keys: only patches that one of them signed are loaded (default: all are)",
            "DIR",
            Path,
        ),
    ] = None
    revoked: Annotated[
        Path | None,
        Flag(
            "list of digests that never load, and that are removed where they are live (default: none)",
            "FILE",
            Path,
        ),
    ] = None


@dataclass(frozen=True, slots=True)
class LogOptions:
    """What the server says while it runs."""

    log_format: Annotated[
        str,
        Flag(
            "how the log is written: as text, or as JSON with one line for each request (default: {default})",
            choices=("text", "json"),
        ),
    ] = "text"


@dataclass(frozen=True, slots=True)
class ServeFlags:
    """All of them, by group."""

    patches: PatchOptions
    policy: PolicyOptions = field(default_factory=PolicyOptions)
    memory: MemoryOptions = field(default_factory=MemoryOptions)
    weights: WeightOptions = field(default_factory=WeightOptions)
    admin: AdminOptions = field(default_factory=AdminOptions)
    trust: TrustOptions = field(default_factory=TrustOptions)
    fleet: FleetOptions = field(default_factory=FleetOptions)
    log: LogOptions = field(default_factory=LogOptions)

    @property
    def fleet_folder(self) -> Path:
        """Where a server that follows a catalog keeps its copy."""
        return self.patches.patches / ".fleet"

    @property
    def patch_folder(self) -> Path:
        """The folder whose patch files are served."""
        return self.patches.patches if self.fleet.catalog is None else self.fleet_folder / "patches"

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Add every flag to ``parser``, in groups."""
        for name, group in get_type_hints(ServeFlags).items():
            arguments = parser.add_argument_group(name)
            for one, flag in _flags(group):
                arguments.add_argument(f"--{one.name.replace('_', '-')}", **_reading(one, flag))

    @classmethod
    def read(cls, args: argparse.Namespace) -> "ServeFlags":
        """Collect the flags that ``parser`` found."""
        return cls(
            **{
                name: group(**{one.name: _value(one, args) for one, _ in _flags(group)})
                for name, group in get_type_hints(cls).items()
            }
        )


def _flags(group: type[Any]) -> list[tuple[Field[Any], Flag]]:
    hints = get_type_hints(group, include_extras=True)
    return [(one, hints[one.name].__metadata__[0]) for one in fields(group)]


def _reading(one: Field[Any], flag: Flag) -> dict[str, Any]:
    """Return what ``add_argument`` takes for a field."""
    if isinstance(one.default, bool):
        return {"help": flag.meaning, "action": "store_true"}
    reading: dict[str, Any] = {"metavar": flag.metavar, "type": flag.type, "choices": flag.choices}
    if one.default is MISSING:
        return reading | {"help": flag.meaning, "required": True}
    if isinstance(one.default, frozenset):
        return reading | {"help": flag.meaning, "action": "append", "default": []}
    is_size = isinstance(one.default, ByteSize)
    shown = one.default.human_readable(separator="") if is_size else one.default
    return reading | {"help": flag.meaning.format(default=shown), "default": one.default}


def _value(one: Field[Any], args: argparse.Namespace) -> Any:
    value = getattr(args, one.name)
    return frozenset(value) if isinstance(one.default, frozenset) else value
