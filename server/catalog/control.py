"""What operators hold a catalog to."""

from dataclasses import dataclass, field

from server.audit import Audit, NullAudit
from server.catalog.records import Records
from server.trust.trust import Trust


@dataclass(frozen=True, slots=True)
class CatalogControl:
    """What a catalog obeys and where it reports; by default nothing survives and every file is accepted."""

    #: Orders, and what followed from them.
    records: Records = field(default_factory=Records)
    #: Which files are accepted.
    trust: Trust = field(default_factory=Trust)
    #: Records the changes that files cause.
    audit: Audit = field(default_factory=NullAudit)
