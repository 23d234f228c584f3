"""What ends a start with one line and exit code 2: mistakes that whoever starts the server can mend.

vLLM tells such mistakes by a traceback; the two contexts here turn them into errors of ours.
"""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import Any

from huggingface_hub.errors import LocalEntryNotFoundError
from pydantic import ValidationError

from patches.errors import PatchError
from server.admin.keys import AdminKeysError
from server.admin.listener import AdminListenError
from server.audit import AuditLogError
from server.catalog.folder import FolderError
from server.catalog.state_folder import StateError
from server.engine.address import AddressUnusable
from server.engine.children import failure
from server.engine.support import UnsupportedSetup
from server.errors import MalformedPatchName
from server.trust.trust import TrustError

logger = logging.getLogger(__name__)

START_ERRORS: tuple[type[Exception], ...] = (
    AddressUnusable,
    AdminKeysError,
    AdminListenError,
    AuditLogError,
    FolderError,
    MalformedPatchName,
    PatchError,
    StateError,
    TrustError,
    UnsupportedSetup,
)

#: How vLLM begins what it says where a process of the engine ended; that process has said why.
_ENGINE_FAILED = "Engine core initialization failed"


#: As which errors mistakes in flags and files come out of vLLM.
_MISTAKES = (
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


class EngineFailed(RuntimeError):
    """The engine's own processes could not start, and said why."""


@contextlib.contextmanager
def flags_judged() -> Iterator[None]:
    """Name what vLLM finds wrong with flags, model or machine while it resolves them, or makes its app.

    Raises:
        UnsupportedSetup: It found something.
    """
    try:
        yield
    except (UnsupportedSetup, PatchError):
        raise
    except _MISTAKES as error:
        logger.debug("vLLM refuses what it was given", exc_info=error)
        raise UnsupportedSetup(f"vLLM refuses this model with these flags: {reason_of(error)}") from error


@contextlib.contextmanager
def engine_started() -> Iterator[None]:
    """Raise one line where the engine failed, with what its own processes reported.

    Raises:
        UnsupportedSetup: A flag, a file or a missing package led to it.
        EngineFailed: Anything else did.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith(_ENGINE_FAILED):
            raise
        why = failure()
        if why is None:
            raise EngineFailed("vLLM's engine could not start; what it says above is why") from error
        line = f"vLLM's engine could not start: {why.reason}; the traceback is in {why.path}"
        raise (UnsupportedSetup if why.is_mistake else EngineFailed)(line) from error


def reason_of(error: Exception) -> str:
    """Return what an error says, in one line; of pydantic's, what each check said."""
    # A KeyError says its message in quotes.
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if isinstance(error, LocalEntryNotFoundError):
        return "it is no folder, and no hub model in the local cache; download it first"
    if isinstance(error, ValidationError):
        text = "; ".join(_check_of(one) for one in error.errors(include_url=False))
    return " ".join(text.split()) or type(error).__name__


def _check_of(failed: Mapping[str, Any]) -> str:
    """Return what a check of pydantic said, and which value it looked at where it does not say so itself."""
    said = str(failed["msg"])
    for prefix in ("Value error, ", "Assertion failed, "):
        if said.startswith(prefix):
            return said.removeprefix(prefix)
    where = ".".join(map(str, failed["loc"]))
    return f"{where}: {said}" if where else said
