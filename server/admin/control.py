"""What operators control a server with: admin keys, trust in signers, and the state that survives it."""

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass

from server.admin.access import AdminAccess
from server.admin.keys import AdminKeys
from server.admin.listener import bind_admin
from server.audit import Audit, NullAudit
from server.catalog.control import CatalogControl
from server.catalog.records import Records
from server.catalog.state_folder import CatalogState
from server.metrics.control import ControlMetrics
from server.options import ServeFlags
from server.trust.audit import SignerAudit
from server.trust.trust import Trust, TrustSources


@dataclass(frozen=True, slots=True)
class Control:
    """What the flags name, opened."""

    records: Records
    access: AdminAccess
    trust: Trust
    #: Where events go; names signers.
    audit: Audit
    #: Where admin calls arrive, if not where requests do.
    listener: socket.socket | None

    def of_catalog(self) -> CatalogControl:
        """Return what the catalog obeys."""
        return CatalogControl(self.records, self.trust, self.audit)


@contextlib.contextmanager
def open_control(flags: ServeFlags, metrics: ControlMetrics, audit: Audit) -> Iterator[Control]:
    """Open everything, before the engine takes its time to start.

    Raises:
        AdminKeysError: The key file can't be used.
        StateError: The state folder can't be used.
        AdminListenError: The address can't be listened on.
        TrustError: Keys, revocations or signed bounds can't be used.
    """
    options, trust_options = flags.admin, flags.trust
    keys = AdminKeys(options.admin_key_file) if options.admin_key_file is not None else None
    state = CatalogState(options.state) if options.state is not None else None
    records = Records(state, keep_previous=options.keep_previous, saved=metrics.state_saved)
    try:
        trust = Trust(TrustSources(trust_options.trusted_keys, trust_options.revoked, options.state))
        signer_audit = audit if isinstance(audit, NullAudit) else SignerAudit(audit, trust)
        with contextlib.ExitStack() as stack:
            listener = None
            if options.admin_listen is not None:
                listener = stack.enter_context(bind_admin(options.admin_listen))
            access = AdminAccess(keys, signer_audit, is_managed=flags.fleet.catalog is not None)
            yield Control(records, access, trust, signer_audit, listener)
    finally:
        records.close()
