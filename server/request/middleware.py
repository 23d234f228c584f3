"""The policy patch's place in the HTTP stack: pure ASGI, around vLLM's routes and inside its authentication.

For each request that could run the model: reads the header, refuses at once what can't be honoured, sets the
request scope, and names the patch that answers in the response headers. Invariants: no 2xx answer leaves that
the selected patch had no part in; a refusal that is known before the first byte of the body has its own
status, on streams too.
"""

import contextlib
import logging
from collections.abc import Awaitable
from functools import partial
from http import HTTPStatus

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.audit import Audit, NullAudit
from server.errors import PatchNotApplied, PolicyPatchError
from server.metrics.patches import PatchMetrics
from server.policy.caller import Credentials
from server.request.answer_headers import AS_OF_NAME, PATCH_NAME, answer_headers, is_event_stream
from server.request.audit_event import request_event
from server.request.body import model_of, read_ahead, read_whole, text_of
from server.request.decider import Decider
from server.request.exchange import exchange_of
from server.request.prompt_routes import RouteKind, is_routed, loses_model, replacing_model, route_kind
from server.request.refusal import refuse_websocket, send_refusal
from server.request.scope import RequestScope, current_credentials, current_scope
from server.versions.composition import SelectedPatch

logger = logging.getLogger(__name__)

#: Methods that never carry a prompt. SDKs that send a default header send it with these too.
_PROMPTLESS_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


class PolicyPatchMiddleware:
    """Wraps the app; holds no state of any request."""

    def __init__(self, app: ASGIApp, decider: Decider, metrics: PatchMetrics) -> None:
        self._app = app
        self._decider = decider
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] in _PROMPTLESS_METHODS:
            token = current_credentials.set(Credentials.of(scope))
            try:
                await self._app(scope, receive, send)
            finally:
                current_credentials.reset(token)
            return
        kind = route_kind(scope["path"], scope.get("root_path", ""))
        if not kind.is_generating and not is_routed(scope):
            # The router's 404 is what helps the caller. A model has some of the known routes only.
            await self._app(scope, receive, send)
            return
        exchange = exchange_of(scope)
        exchange.request = request = RequestScope(kind, Credentials.of(scope), exchange.trace)
        if kind is RouteKind.NEUTRAL:
            await self._pass(request, scope, receive, send)
            return
        await self._decider.enter(request)
        try:
            await self._answer(request, scope, receive, send)
        finally:
            self._decider.close(request)

    async def _answer(self, request: RequestScope, scope: Scope, receive: Receive, send: Send) -> None:
        kind = request.kind
        model: str | None = None
        is_lost = loses_model(scope)
        # Where this process does not know what serves now, opening refuses the request.
        try:
            if kind.is_generating and (is_lost or self._decider.wants_user):
                read = read_whole if is_lost else read_ahead
                fields, receive = await read(receive)
                request.user = text_of(fields, "user")
                model = model_of(fields) if is_lost else None
            self._decider.open(request, *_header_values(scope))
            if model is not None:
                # Here, since no route will ask about it.
                self._decider.take_lost_model(request, model, replacing_model(scope))
        except PolicyPatchError as error:
            self._refuse(error, request, scope)
            await send_refusal(error, scope["path"], (), send)
            return
        answering = _Exchange(self._decider, self._metrics, request, scope["path"], receive, send)
        await answering.run(self._app, scope)

    def _refuse(self, error: PolicyPatchError, request: RequestScope, scope: Scope) -> None:
        """Count and write down a refusal that no handler was asked about."""
        request.error, request.outcome = error, "rejected"
        asked, caller = request.asked_name, request.caller_class
        self._metrics.request_rejected(error.code, None, asked=asked, caller=caller)
        _write_down(self._decider.audit, request, scope, error, error.status)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = RequestScope(RouteKind.ENCODES, Credentials.of(scope))
        exchange_of(scope).request = request
        try:
            self._decider.open_websocket(request, _header_values(scope)[0])
        except PolicyPatchError as error:
            self._refuse(error, request, scope)
            await refuse_websocket(error, scope, send)
            return
        await self._decider.enter(request)
        # What is let in is the base model's, whenever its input comes: the decision is on record from here.
        request.reached_engine = True
        _write_down(self._decider.audit, request, scope, None, HTTPStatus.SWITCHING_PROTOCOLS)
        try:
            await self._pass(request, scope, receive, send)
        finally:
            self._decider.close(request)

    async def _pass(self, request: RequestScope, scope: Scope, receive: Receive, send: Send) -> None:
        """Have the app answer, and claim nothing."""
        token = current_scope.set(request)
        try:
            await self._app(scope, receive, send)
        finally:
            current_scope.reset(token)


class _Exchange:
    """One request and its response."""

    __slots__ = (
        "_decider",
        "_held_start",
        "_is_complete",
        "_is_cut",
        "_is_flowing",
        "_is_started",
        "_metrics",
        "_path",
        "_receive",
        "_rejection",
        "_request",
        "_send",
        "_status",
    )

    def __init__(
        self,
        decider: Decider,
        metrics: PatchMetrics,
        request: RequestScope,
        path: str,
        receive: Receive,
        send: Send,
    ) -> None:
        self._decider = decider
        self._metrics = metrics
        self._request = request
        self._path = path
        self._receive = receive
        self._send = send
        self._status = 0
        #: The start of a stream, kept back until its first chunk shows that the engine took the request.
        self._held_start: Message | None = None
        self._is_started = False
        #: The body has begun: nothing that is known later replaces the rest of it.
        self._is_flowing = False
        self._is_complete = False
        #: The client went away before the answer was complete.
        self._is_cut = False
        #: What was sent in place of the app's answer.
        self._rejection: PolicyPatchError | None = None

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        """Run the app, and send its answer or the error that replaces it."""
        token = current_scope.set(self._request)
        try:
            await app(scope, self.receive, self.send)
        except Exception as error:
            self._request.has_failed = True
            if self._is_started:
                raise
            await self._answer_exception(error, scope)
            if not isinstance(error, PolicyPatchError):
                raise
        finally:
            current_scope.reset(token)
            self._finish(scope)

    async def receive(self) -> Message:
        """Pass on what the client sends; notice that it went away."""
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self._is_complete:
            self._is_cut = True
        return message

    def send(self, message: Message) -> Awaitable[None]:
        """Pass on what the app answers, or send the refusal in its place."""
        # Most of what passes are the chunks of streams, one with each token: no coroutine of ours for them.
        if self._is_flowing and message["type"] == "http.response.body" and message.get("more_body", False):
            return self._send(message)
        return self._send_judged(message)

    async def _send_judged(self, message: Message) -> None:
        if self._rejection is not None:
            return
        kind = message["type"]
        if kind == "http.response.start":
            await self._start(message)
            return
        if self._held_start is not None:
            start, self._held_start = self._held_start, None
            if await self._reject(self._refusal() or self._bypass()):
                return
            await self._send_start(start)
        self._is_flowing = True
        # Before it is sent: a server reports a disconnect once the last byte is out.
        if kind == "http.response.body" and not message.get("more_body", False):
            self._is_complete = True
        await self._send(message)

    async def _start(self, message: Message) -> None:
        self._status = message["status"]
        if await self._reject(self._refusal()):
            return
        if self._is_patched_success() and is_event_stream(message["headers"]):
            self._held_start = message
        elif not await self._reject(self._bypass()):
            await self._send_start(message)

    async def _send_start(self, message: Message) -> None:
        self._is_started = True
        headers = [*message["headers"], *answer_headers(self._request, self._status)]
        await self._send({**message, "headers": headers})

    async def _reject(self, error: PolicyPatchError | None) -> bool:
        if error is None:
            return False
        self._rejection = error
        self._is_started = self._is_complete = True
        await send_refusal(error, self._path, answer_headers(self._request, self._status), self._send)
        return True

    def _refusal(self) -> PolicyPatchError | None:
        """Return the error that replaces the app's answer; decide the request where that was not done yet."""
        request = self._request
        if request.error is None and request.kind.is_generating and 200 <= self._status < 300:
            with contextlib.suppress(PolicyPatchError):
                self._decider.decide(request)
        return request.error

    def _bypass(self) -> PolicyPatchError | None:
        """Return the error that replaces a successful answer in which the engine client had no part."""
        request = self._request
        if (
            not self._is_patched_success()
            or request.reached_engine
            or request.is_mistaken
            or self._request.may_run_later(self._status)
        ):
            return None
        if self._is_cut:
            # A handler that notices the disconnect returns nothing.
            return None
        logger.error("an answer was made without the selected patch, so it is withheld")
        return PatchNotApplied("the answer was not made with the selected patch, so it is withheld")

    def _is_patched_success(self) -> bool:
        selection = self._request.selection
        return 200 <= self._status < 300 and selection is not None and selection.patch is not None

    async def _answer_exception(self, error: Exception, scope: Scope) -> None:
        """Answer what no handler of a route took.

        Starlette would do it outside of this middleware, without the headers that name the patch; it notices
        that the answer is sent, and still passes the exception on to the server's log.
        """
        refusal = error if isinstance(error, PolicyPatchError) else self._request.error
        if refusal is not None:
            self._rejection = refusal
            await send_refusal(refusal, self._path, answer_headers(self._request, self._status), self._send)
            return
        handler = scope["app"].exception_handlers.get(Exception)
        self._held_start = None
        if handler is None:
            self._status = HTTPStatus.INTERNAL_SERVER_ERROR
            internal = PolicyPatchError("internal error")
            await send_refusal(internal, self._path, answer_headers(self._request, self._status), self._send)
            return
        response = await handler(Request(scope), error)
        await response(scope, self.receive, self.send)

    def _finish(self, scope: Scope) -> None:
        request = self._request
        _write_down(self._decider.audit, request, scope, self._rejection, self._status)
        patch = request.selection.patch if request.selection is not None else None
        if self._rejection is not None:
            self._metrics.request_rejected(
                self._rejection.code, patch, asked=request.asked_name, caller=request.caller_class
            )
            request.error, request.outcome = self._rejection, "rejected"
            self._judge("server_error" if self._rejection.status >= 500 else "rejected")
        elif request.reached_engine:
            request.outcome = outcome = self._outcome()
            self._metrics.request_finished(
                patch, outcome, caller=request.caller_class, is_mismatched=request.is_mismatched
            )
            if request.is_unpatched and outcome == "ok":
                self._metrics.callers.answered_unpatched(request.caller_class)
            self._judge(outcome)
        elif patch is not None and self._request.may_run_later(self._status):
            request.judge_later = partial(_judge_later, self._decider, self._metrics, request, patch)
        elif request.kind is not RouteKind.OTHER and (outcome := self._outcome()) != "ok":
            # No patch had a part in it, whatever was decided.
            request.outcome = outcome
            self._metrics.request_finished(None, outcome, caller=request.caller_class)
        # Last: with the patch's last request its series go.
        self._decider.close(request)

    def _judge(self, outcome: str) -> None:
        """Report to the canaries how it went, where the engine was asked."""
        if self._request.reached_engine:
            self._decider.finished(self._request, outcome)

    def _outcome(self) -> str:
        if self._is_cut:
            return "cancelled"
        if 400 <= self._status < 500:
            return "client_error"
        if self._request.has_failed or self._status >= 500:
            return "server_error"
        if self._request.is_mistaken:
            return "client_error"
        return "ok" if self._is_complete else "cancelled"


def _write_down(
    audit: Audit, request: RequestScope, scope: Scope, rejection: PolicyPatchError | None, status: int
) -> None:
    if isinstance(audit, NullAudit):
        return
    event = request_event(request, scope, rejection, status)
    if event is not None:
        audit.record(event)


def _judge_later(
    decider: Decider, metrics: PatchMetrics, request: RequestScope, patch: SelectedPatch, outcome: str
) -> None:
    request.outcome = outcome
    metrics.request_finished(patch, outcome, caller=request.caller_class, is_mismatched=request.is_mismatched)
    decider.finished(request, outcome)
    if request.ended_later is not None:
        request.ended_later()


def _header_values(scope: Scope) -> tuple[list[bytes], list[bytes]]:
    """Return the lines of the header that names a patch, and of the one that names a revision."""
    patches: list[bytes] = []
    revisions: list[bytes] = []
    for name, value in scope["headers"]:
        if name == PATCH_NAME:
            patches.append(value)
        elif name == AS_OF_NAME:
            revisions.append(value)
    return patches, revisions
