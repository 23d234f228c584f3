"""Who may give orders, and the record of everyone who tried."""

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from starlette.requests import ClientDisconnect, Request

from patches.headers import ADMIN_KEY_HEADER
from server.admin.keys import AdminKeys
from server.audit import Audit, AuditEvent
from server.errors import AdminDisabled, AdminKeyInvalid, ManagedByFleet, PolicyPatchError

#: Reasons of calls that no answer could reach: the caller went away before its body was whole, or the server
#: ended while it carried the call out.
BROKEN_OFF, CANCELLED = "broken_off", "cancelled"

#: Of a form that can stand anywhere; see ``server.request.access_log``.
_REQUEST_ID_HEADER = "X-Request-Id"


@dataclass
class Order:
    """One order while it is carried out: what the audit log will say about it."""

    action: str
    by: str
    wish: str
    #: ``name@version`` and digest of what it ended with.
    patch: str | None = None
    digest: str | None = None


class AdminAccess:
    """Checks admin keys, and writes every order down."""

    def __init__(self, keys: AdminKeys | None, audit: Audit, *, is_managed: bool = False) -> None:
        """Make one.

        Args:
            keys: Whose calls are taken; ``None`` for no one's.
            audit: Where orders are written down.
            is_managed: The catalog of a fleet decides what is served, so that every order is refused.
        """
        self._keys = keys
        self._audit = audit
        self._is_managed = is_managed

    async def admit(self, request: Request) -> str:
        """Return the name of the key that ``request`` carries.

        Raises:
            AdminDisabled: There are no admin keys.
            AdminKeyInvalid: It carries none, or one that is not in the file.
        """
        try:
            return await self._identify(request)
        except PolicyPatchError as error:
            self._audit.record(
                AuditEvent(
                    event="admin.call",
                    decision="denied",
                    request_id=request.headers.get(_REQUEST_ID_HEADER),
                    route=_route(request),
                    reason=error.message,
                    status=error.status,
                    code=error.code,
                )
            )
            raise

    def refused(self, request: Request, action: str, by: str, error: BaseException) -> None:
        """Write down a call that failed before it became an order; ``order`` writes down the others."""
        if not getattr(request.state, "is_noted", False):
            self._note(request, Order(action, by, "@".join(request.path_params.values())), error)

    def require_unmanaged(self) -> None:
        """Return where operators of this server decide what it serves.

        Raises:
            ManagedByFleet: The catalog of its fleet does.
        """
        if self._is_managed:
            raise ManagedByFleet(
                "this server follows the catalog of its fleet, which one server must not leave; change that "
                "with `policypatch fleet`"
            )

    @contextlib.contextmanager
    def order(self, request: Request, action: str, by: str, wish: str) -> Iterator[Order]:
        """Carry out one order: an error ends it as failed, everything else as done."""
        order = Order(action, by, wish)
        try:
            self.require_unmanaged()
            yield order
        except BaseException as error:
            self._note(request, order, error)
            raise
        self._note(request, order, None)

    async def _identify(self, request: Request) -> str:
        if self._keys is None:
            raise AdminDisabled(
                "this server accepts no admin calls; start it with --admin-key-file to enable them"
            )
        if self._keys.is_due:
            await asyncio.to_thread(self._keys.refresh)
        key = _presented_key(request)
        name = self._keys.name_of(key) if key else None
        if name is None:
            raise AdminKeyInvalid(f"send an admin key as 'Authorization: Bearer' or in {ADMIN_KEY_HEADER}")
        return name

    def _note(self, request: Request, order: Order, error: BaseException | None) -> None:
        request.state.is_noted = True
        ours = error if isinstance(error, PolicyPatchError) else None
        self._audit.record(
            AuditEvent(
                event=f"admin.{order.action}",
                decision="done" if error is None else "failed",
                principal=order.by,
                request_id=request.headers.get(_REQUEST_ID_HEADER),
                route=_route(request),
                wish=order.wish,
                reason=None if error is None else _reason_of(error),
                patch=order.patch,
                digest=order.digest,
                code=ours.code if ours is not None else None,
            )
        )


def _reason_of(error: BaseException) -> str:
    match error:
        case PolicyPatchError():
            return error.message
        case ClientDisconnect():
            return BROKEN_OFF
        case asyncio.CancelledError():
            return CANCELLED
    return f"internal error: {type(error).__name__}"


def _presented_key(request: Request) -> str | None:
    own = request.headers.get(ADMIN_KEY_HEADER)
    if own is not None:
        return own.strip()
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else None


def _route(request: Request) -> str:
    return f"{request.method} {request.url.path}"
