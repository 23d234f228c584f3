"""Where a model's files are, and whether they can be read: asked before anything heavy is loaded.

What reads a hub model asks a hub that does not answer again and again, for half a minute. So the hub is asked
once here, before that.
"""

import json
import os
import re
from pathlib import Path

from patches.errors import ModelUnusable

#: ``NAME`` or ``OWNER/NAME``, as model hubs write it.
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")


#: One answer is a header; a hub that takes longer would take minutes for the weights' first bytes.
_HUB_TIMEOUT_S = 10


def require_model(model: str | os.PathLike[str], revision: str | None = None) -> None:
    """Check that a model is a readable folder with a configuration, or a model that the hub has.

    Raises:
        ModelUnusable: It is neither; the message says what to do.
    """
    if not _is_folder(model) and not _is_in_cache(str(model), revision):
        _ask_hub(str(model), revision)


def require_local_model(model: str | os.PathLike[str]) -> None:
    """Check that a model is a readable folder with a configuration, or a hub model in the local cache.

    Raises:
        ModelUnusable: It is neither; the message says what to do.
    """
    if not _is_folder(model) and not _cache_of(str(model)).is_dir():
        raise _not_here(model)


def _is_folder(model: str | os.PathLike[str]) -> bool:
    """Return whether a model is a readable folder with a configuration; else it reads as a hub id.

    Raises:
        ModelUnusable: It is neither.
    """
    path = Path(model)
    if not _exists(path):
        if not _HUB_ID.fullmatch(str(model)):
            raise ModelUnusable(
                f"model: there is no folder {path}; name one with config.json, or the id of a hub model"
            )
        return False
    if not path.is_dir():
        raise ModelUnusable(f"model: expected a folder with config.json, got the file {path}")
    require_config(path)
    return True


def _is_in_cache(model: str, revision: str | None) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(model, "config.json", revision=revision), str)


def _ask_hub(model: str, revision: str | None) -> None:
    import httpx
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    none_here = f"model: there is no folder {model}, and no hub model of that name in the local cache"
    try:
        get_hf_file_metadata(hf_hub_url(model, "config.json", revision=revision), timeout=_HUB_TIMEOUT_S)
    except OfflineModeIsEnabled:
        raise ModelUnusable(f"{none_here}; unset HF_HUB_OFFLINE to download it, or name a folder") from None
    except GatedRepoError:
        raise ModelUnusable(
            f"model: the hub gives {model} only to those who asked for it; do so, and set HF_TOKEN"
        ) from None
    except (EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError):
        what = model if revision is None else f"{model} at revision {revision}"
        raise ModelUnusable(
            f"{none_here}; the hub shows no {what} with a config.json (a private one needs HF_TOKEN)"
        ) from None
    except httpx.TransportError as error:
        raise ModelUnusable(f"{none_here}, and the hub can't be reached ({error}); name a folder") from None


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
    if _is_folder(model):
        return Path(model)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(model), revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, FileNotFoundError):
        raise _not_here(model) from None


def _cache_of(model: str) -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    return Path(HF_HUB_CACHE, repo_folder_name(repo_id=model, repo_type="model"))


def _not_here(model: str | os.PathLike[str]) -> ModelUnusable:
    return ModelUnusable(
        f"model: {str(model)!r} is neither a folder nor a hub model in the local cache; download it first"
    )


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
