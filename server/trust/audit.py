"""Adds to each event about a patch who vouches for that patch."""

from dataclasses import replace

from server.audit import Audit, AuditEvent
from server.trust.trust import Trust


class SignerAudit:
    """Passes events on, with the name of the signer where there is one. Never blocks, as any ``Audit``."""

    def __init__(self, audit: Audit, trust: Trust) -> None:
        self._audit = audit
        self._trust = trust

    def record(self, event: AuditEvent) -> None:
        """Pass ``event`` on."""
        signature = self._trust.signature_of(event.digest) if event.digest is not None else None
        if signature is not None:
            event = replace(event, details={**event.details, "signer": signature.key.signer})
        self._audit.record(event)
