"""Where a model's files are, and whether they can be read: asked before anything heavy is loaded."""

import json
import os
import re
from pathlib import Path

from patches.errors import ModelUnusable

#: ``NAME`` or ``OWNER/NAME``, as model hubs write it.
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")


def require_model(model: str | os.PathLike[str]) -> None:
    """Check that a model is a readable folder with a configuration, or reads as the id of a hub model.

    Raises:
        ModelUnusable: It is not; the message says what to do.
    """
    path = Path(model)
    if not _exists(path):
        if not _HUB_ID.fullmatch(str(model)):
            raise ModelUnusable(
                f"model: there is no folder {path}; name one with config.json, or the id of a hub model"
            )
        return
    if not path.is_dir():
        raise ModelUnusable(f"model: expected a folder with config.json, got the file {path}")
    require_config(path)


def require_config(folder: Path) -> None:
    """Check that the configuration in a model's folder can be read and is JSON.

    Raises:
        ModelUnusable: It can't, or is not.
    """
    file = folder / "config.json"
    try:
        json.loads(file.read_bytes())
    except FileNotFoundError:
        raise ModelUnusable(
            f"model: {folder} has no config.json; expected the folder of a transformers model"
        ) from None
    except OSError as error:
        raise _unreadable(file, error) from None
    except ValueError as error:
        raise ModelUnusable(f"model: {file} is no JSON: {error}; copy the model anew") from None


def model_folder(model: str | os.PathLike[str], revision: str | None = None) -> Path:
    """Find the folder of a model: a local path, or a hub id that is in the local cache.

    Raises:
        ModelUnusable: There is no such folder.
    """
    require_model(model)
    path = Path(model)
    if path.is_dir():
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(model), revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, FileNotFoundError):
        raise ModelUnusable(
            f"model: {str(model)!r} is neither a folder nor a hub model in the local cache; download it first"
        ) from None


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise _unreadable(path, error) from None
    return True


def _unreadable(path: Path, error: OSError) -> ModelUnusable:
    return ModelUnusable(f"model: {path} can't be read: {error.strerror or error}; check who may read it")
