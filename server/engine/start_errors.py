"""What ends a start with one line and exit code 2: mistakes that whoever starts the server can mend."""

from patches.errors import PatchError
from server.admin.keys import AdminKeysError
from server.admin.listener import AdminListenError
from server.audit import AuditLogError
from server.catalog.folder import FolderError
from server.catalog.state_folder import StateError
from server.engine.support import UnsupportedSetup
from server.errors import MalformedPatchName
from server.trust.trust import TrustError

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
