"""The servers that arms need: plain vLLM, ours, and those of other features, all up at the same time."""

import contextlib
import shlex
import subprocess
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.run.rounds import progress
from bench.servers.adapters import LORA_RANKS, lora_flags, make_adapters
from bench.servers.environment import without_places
from bench.servers.launch import EngineOptions, ours_server, plain_server, require_same_environment
from bench.servers.processes import ServerSpec, require_running, running_server, speed_variables


@dataclass(frozen=True)
class Servers:
    """The servers of a run.

    Attributes:
        urls: base URL by server.
        are_own: the bench started them.
        check: raises where one of its own has died.
        facts: what records say about them.
    """

    urls: dict[str, str]
    are_own: bool
    check: Callable[[], None] = lambda: None
    facts: Mapping[str, Any] = field(default_factory=dict)


@contextlib.contextmanager
def servers_up(
    engine: EngineOptions, needed: Collection[str], patches: Path, log_folder: Path, start_timeout_s: float
) -> Iterator[Servers]:
    """Start the servers that the arms need.

    Args:
        engine: what all of them get.
        needed: names of servers; see ``bench.load.arms.ARMS``.
        patches: the folder that ours serves.
        log_folder: takes logs, and adapters.
        start_timeout_s: for each server.

    Raises:
        ServerFailed: a server did not start.
        CheckFailed: the servers' environments differ.
    """
    specs = [plain_server(engine, log_folder)] if "plain" in needed else []
    specs += [ours_server(engine, patches, log_folder)] if "ours" in needed else []
    specs += [peer_server(name, engine, log_folder) for name in ("twin", "embeds", "lora") if name in needed]
    processes: dict[str, subprocess.Popen[bytes]] = {}

    def check() -> None:
        for spec in specs:
            require_running(spec, processes[spec.name])

    with contextlib.ExitStack() as stack:
        # One after the other: each measures free memory when it starts.
        for spec in specs:
            progress(f"starting {spec.name} on port {spec.port}, log in {spec.log_path}")
            server = running_server(spec, start_timeout_s=start_timeout_s)
            processes[spec.name] = stack.enter_context(server)
        variables = {name: speed_variables(process) for name, process in processes.items()}
        require_same_environment(variables)
        commands = {s.name: shlex.join(["python", *map(without_places, s.command[1:])]) for s in specs}
        speed = {name: without_places(value) for name, value in next(iter(variables.values())).items()}
        facts = {"server_commands": commands, "speed_variables": speed}
        yield Servers({spec.name: spec.url for spec in specs}, True, check, facts)


def peer_server(name: str, engine: EngineOptions, folder: Path) -> ServerSpec:
    """Describe plain vLLM with a peer's feature switched on, or, as a twin, without any.

    Raises:
        BenchError: no adapters could be made.
    """
    flags = ["--enable-prompt-embeds"] if name == "embeds" else []
    if name == "lora":
        adapters = make_adapters(engine.model, folder / "adapters", dtype=engine.dtype, ranks=LORA_RANKS)
        flags = lora_flags(adapters, max_rank=max(LORA_RANKS), num_in_batch=len(adapters))
    return plain_server(engine, folder, name=name, flags=flags)
