"""What ends a start with one line and exit code 2: mistakes that whoever starts the server can mend."""

from patches.errors import PatchError
from server.admin_keys import AdminKeysError
from server.admin_listener import AdminListenError
from server.audit import AuditLogError
from server.catalog_state import StateError
from server.engine.support import UnsupportedSetup
from server.errors import MalformedPatchName
from server.folder import FolderError
from server.trust import TrustError

START_ERRORS: tuple[type[Exception], ...] = (
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
