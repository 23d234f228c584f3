"""What the log and the audit log say about changes of the catalog."""

import logging

from patches.names import version_key
from server.audit import AuditEvent
from server.versions.activation import BY_FOLDER, Target
from server.versions.view import CatalogView

logger = logging.getLogger(__name__)


def folder_event(name: str, active: Target | None) -> AuditEvent:
    """Describe a change that files caused."""
    return AuditEvent(
        event="folder.activate",
        decision="done",
        principal=BY_FOLDER,
        wish=name,
        patch=f"{name}@{active.version}" if active is not None else None,
        digest=active.digest if active is not None else None,
    )


def log_change(name: str, before: CatalogView, after: CatalogView) -> None:
    """Log what the bare name means now, where that changed."""
    old = before.names[name].active if name in before.names else None
    new = after.names[name].active if name in after.names else None
    if old == new:
        return
    if new is None:
        logger.warning("patch %s: no version is active any more", name)
    elif old is not None and version_key(new.version) < version_key(old.version):
        logger.warning("patch %s: fell back from %s to %s", name, old.version, new.version)
    else:
        logger.info("patch %s: %s (%s) is active", name, new.version, new.digest)
