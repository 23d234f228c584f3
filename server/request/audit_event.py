"""What the audit log says about one request. Pure."""

from collections.abc import Sequence
from http import HTTPStatus

from starlette.types import Scope

from patches.headers import PATCH_HEADER, asgi_name
from server.audit import AuditDecision, AuditEvent
from server.errors import PolicyPatchError
from server.request.exchange import exchange_of
from server.request.scope import RequestScope


def request_event(
    request: RequestScope, scope: Scope, rejection: PolicyPatchError | None, status: int
) -> AuditEvent | None:
    """Describe how a request was decided; ``None`` where it ended before there was a decision.

    Args:
        request: What is known of it.
        scope: Its ASGI scope.
        rejection: The refusal that was answered.
        status: The status of any other answer.
    """
    selection, caller = request.selection, request.caller
    if rejection is None and selection is None:
        return None
    patch = selection.patch if selection is not None else None
    decision: AuditDecision = "allowed"
    if rejection is not None:
        decision, status = "denied", rejection.status
    elif not request.reached_engine and not request.may_run_later(status):
        # A stream has told its mistake as an event, under status 200.
        if status < HTTPStatus.BAD_REQUEST and not request.is_mistaken:
            return None
        # A mistake in the body, or a client that went away: nothing was answered under the patch.
        decision, patch = "not_run", None
    elif selection is not None and selection.source in ("default", "none"):
        decision = "defaulted"
    return AuditEvent(
        event="request",
        decision=decision,
        request_id=exchange_of(scope).request_id,
        principal=caller.key if caller is not None else None,
        tenant=caller.tenant if caller is not None else None,
        route=f"{scope.get('method', 'WEBSOCKET')} {scope['path']}",
        wish=_wish_text(request, scope),
        rule=getattr(rejection, "rule", None) or request.rule,
        reason=rejection.message if rejection is not None else None,
        patch=patch.reference if patch is not None else None,
        digest=patch.digest if patch is not None else None,
        status=int(status),
        code=rejection.code if rejection is not None else None,
        details=request.decided,
    )


def _wish_text(request: RequestScope, scope: Scope) -> str | None:
    lines = [f"{PATCH_HEADER}: {v.decode('latin-1')}" for v in _values(scope, asgi_name(PATCH_HEADER))]
    if request.alias_text is not None:
        lines.append(f"model: {request.alias_text}")
    return "\n".join(lines) if lines else None


def _values(scope: Scope, name: bytes) -> Sequence[bytes]:
    return [value for key, value in scope["headers"] if key == name]
