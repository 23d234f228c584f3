"""``GET /ready``: whether to send requests here. ``/health`` says whether the process is worth keeping."""

from collections.abc import Awaitable, Callable, Iterable

from fastapi import APIRouter
from pydantic import BaseModel

from server.errors import PatchNotReady
from server.routes.patches import ErrorBody


class Readiness(BaseModel):
    """This process answers requests as the policy demands."""

    ready: bool = True


def ready_router(
    require_in_step: Callable[[], None],
    require_alive: Callable[[], Awaitable[None]],
    needs: Callable[[], Iterable[tuple[str, bool]]],
) -> APIRouter:
    """Make the route.

    Args:
        require_in_step: Raises ``NotInStep`` where this process does not know what serves.
        require_alive: Raises ``NotInStep`` where the engine can't answer.
        needs: Returns what the policy requires or has as a default, and whether it is served.
    """
    router = APIRouter(tags=["policy patches"])

    @router.get("/ready", summary="Whether to send requests here", responses={503: {"model": ErrorBody}})
    async def ready() -> Readiness:
        require_in_step()
        await require_alive()
        # Anyone may ask, so nothing is named.
        if missing := sum(not is_served for _, is_served in needs()):
            raise PatchNotReady(
                f"{missing} of the patches that the policy needs can't be served; the log and GET "
                "/v1/patches say why"
            )
        return Readiness()

    return router
