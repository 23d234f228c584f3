"""What requests ask about what serves, whichever process knows it."""

from typing import Protocol

from server.catalog.residents import Residents
from server.versions.view import CatalogView


class Served(Protocol):
    """What requests need to know of the catalog: the catalog itself, or what another process says of it."""

    @property
    def view(self) -> CatalogView:
        """What serves now; read it once per decision."""

    @property
    def residents(self) -> Residents:
        """What the workers hold, and which requests use it."""

    def require_in_step(self) -> None:
        """Return where ``view`` is what every process of the server serves now.

        Raises:
            NotInStep: It may not be, so that nothing may be decided by it.
        """
        ...
