"""Things that lie where a patch file is expected and are no file of bytes: links, pipes, folders."""

import os
import random
import socket
from collections.abc import Callable
from pathlib import Path

MIB = 1 << 20
#: Size of the sparse files: more than the format takes, and hardly a block on disk.
SPARSE_BYTES = (1 << 30) + 1

#: Puts something at a path that is no file of bytes; given the good file, which lies outside of the folder.
Place = Callable[[random.Random, Path, Path], None]


def _dangling_link(rng: random.Random, path: Path, good: Path) -> None:
    path.symlink_to(f"/nowhere/{rng.randrange(1000)}")


def _link_to_itself(rng: random.Random, path: Path, good: Path) -> None:
    path.symlink_to(path.name)


def _link_to_a_device(rng: random.Random, path: Path, good: Path) -> None:
    path.symlink_to(
        rng.choice(("/dev/zero", "/dev/urandom", "/dev/tty", "/proc/self/mem", "/proc/self/environ"))
    )


def _link_to_a_folder(rng: random.Random, path: Path, good: Path) -> None:
    path.symlink_to(rng.choice((path.parent, good.parent, Path("/"), Path("/proc"))))


def _folder(rng: random.Random, path: Path, good: Path) -> None:
    path.mkdir()


def _pipe(rng: random.Random, path: Path, good: Path) -> None:
    os.mkfifo(path)


def _socket(rng: random.Random, path: Path, good: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def _sparse(rng: random.Random, path: Path, good: Path) -> None:
    """The good file, followed by a hole: larger than the format takes, or than the header says."""
    path.write_bytes(good.read_bytes())
    os.truncate(path, rng.choice((SPARSE_BYTES, 1 << 40, 8 * MIB)))


PLACES: dict[str, Place] = {
    "link to nothing": _dangling_link,
    "link to itself": _link_to_itself,
    "link to a device": _link_to_a_device,
    "link to a folder": _link_to_a_folder,
    "folder": _folder,
    "named pipe": _pipe,
    "socket": _socket,
    "sparse file": _sparse,
}
