"""What serves at one instant: as a request asks about it, and as it follows from what the workers hold."""

from collections.abc import Sequence
from typing import Protocol

from server.catalog.residents import Resident, Residents
from server.versions.activation import Canary, Target
from server.versions.view import CanaryArm, CatalogView


class Served(Protocol):
    """What requests need to know of the catalog: the catalog itself, or what another process says of it."""

    @property
    def view(self) -> CatalogView:
        """What serves now; read it once per decision."""

    @property
    def residents(self) -> Residents:
        """Who uses what."""

    def require_in_step(self) -> None:
        """Return where ``view`` is what every process of the server serves now.

        Raises:
            NotInStep: It may not be, so that nothing may be decided by it.
        """
        ...


def with_residents(
    view: CatalogView, name: str, residents: Sequence[Resident], wanted: Target | None, canary: Canary | None
) -> CatalogView:
    """Give the view in which ``name`` serves what of ``residents`` a file or an order wants served.

    Args:
        view: The view before.
        name: The patch.
        residents: All contents of it that the workers can hold.
        wanted: What the bare name shall mean.
        canary: The canary that shall run beside it.
    """
    tried = canary.target if canary is not None else None
    usable = [r for r in residents if not r.is_barred]
    served = [r.patch for r in usable if r.paths or r.target in (wanted, tried)]
    active = next((p for p in served if wanted is not None and p.digest == wanted.digest), None)
    trial = next((p for p in served if tried is not None and p.digest == tried.digest), None)
    arm = CanaryArm(trial, canary) if trial is not None and canary is not None else None
    return view.with_name(name, served, active, arm)
