"""What is known about the HTTP request that the current task works for.

The middleware makes one per request; ``Decider`` fills it in. Tasks that a handler starts copy the context,
so a background response that outlives its HTTP exchange still finds its own.
"""

import uuid
from collections.abc import Callable
from contextvars import ContextVar
from typing import TypeVar

from patches.headers import PATCH_HEADER
from server.catalog.door import Passage
from server.errors import PolicyPatchError
from server.metrics.steering import OUTCOMES
from server.policy.caller import NO_CREDENTIALS, Caller, Credentials
from server.policy.rules import Policy
from server.request.prompt_routes import RouteKind
from server.request.trace import NO_TRACE, Trace
from server.versions.selection import Selection, Wish

AnyPolicyPatchError = TypeVar("AnyPolicyPatchError", bound=PolicyPatchError)


class RequestScope:
    """State of one request; used by the event loop's thread only."""

    __slots__ = (
        "_own_id",
        "alias",
        "alias_text",
        "arm",
        "as_of",
        "cache_partition",
        "caller",
        "caller_class",
        "conditions",
        "credentials",
        "ended_later",
        "error",
        "first_token_s",
        "has_failed",
        "header",
        "holds_patch",
        "identified_by",
        "is_closed",
        "is_counted_as_base",
        "is_mismatched",
        "is_mistaken",
        "is_unpatched",
        "judge_later",
        "kind",
        "num_generated_tokens",
        "num_generations",
        "num_leases",
        "num_prompt_tokens",
        "outcome",
        "passage",
        "reached_engine",
        "revision",
        "rule",
        "selection",
        "trace",
        "user",
        "was_sent",
    )

    def __init__(
        self, kind: RouteKind, credentials: Credentials = NO_CREDENTIALS, trace: Trace = NO_TRACE
    ) -> None:
        self.kind = kind
        #: The trace that it is told of in.
        self.trace = trace
        #: Judged by the policy that holds when the request is decided.
        self.credentials = credentials
        #: The caller, as the policy identified it; ``None`` where it was not asked, or could not.
        self.caller: Caller | None = None
        self.identified_by: Policy | None = None
        #: The place in the policy of the rule that stands for the caller; ``None`` where none does.
        self.caller_class: str | None = None
        self.header: Wish | None = None
        self.alias: Wish | None = None
        #: The ``model`` as it was sent, where it is no served name.
        self.alias_text: str | None = None
        #: The revision of the fleet's catalog that it wants to be decided by, and the one that it was.
        self.as_of: int | None = None
        self.revision: int | None = None
        #: Set once, never changed: one version per request.
        self.selection: Selection | None = None
        #: Which part of the prefix cache its prompt lives in; decided together with the selection.
        self.cache_partition: str | None = None
        #: What in the policy decided.
        self.rule: str | None = None
        #: The first refusal; it replaces whatever answer the route makes of it.
        self.error: PolicyPatchError | None = None
        #: A generation ended with an exception that is not the client's going away; or before its first
        #: token because of what the client sent.
        self.has_failed = self.is_mistaken = False
        #: It is counted in the catalog's in-flight number of ``selection.patch``, or as running on the base.
        self.holds_patch = self.is_counted_as_base = False
        #: The name with a canary that takes part, and ``canary`` or ``stable``.
        self.arm: tuple[str, str] | None = None
        #: The ``user`` of the body, where a canary wants to know it.
        self.user: str | None = None
        self._own_id: str | None = None
        self.first_token_s: float | None = None  # from admission, of the first generation
        #: Of all its generations; the prefix is not among them.
        self.num_prompt_tokens = self.num_generated_tokens = 0
        #: The base model answers, although a patch that the caller may choose is served; its patch was made
        #: for other weights than those in force.
        self.is_unpatched = self.is_mismatched = False
        #: Whether the condition of its patch was met, and by how much; one for each answer that has ended.
        self.conditions: list[tuple[bool, float]] = []
        self.num_leases = self.num_generations = 0
        self.passage: Passage | None = None
        #: The engine was asked, under a lease or for the base model. What was not is nobody's answer.
        self.reached_engine = False
        #: A generation of it was handed to the engine.
        self.was_sent = False
        #: Counts a generation that outlives its HTTP exchange, by its outcome; set when the exchange ends.
        self.judge_later: Callable[[str], None] | None = None
        #: Called after that: tells of the request as a whole.
        self.ended_later: Callable[[], None] | None = None
        #: How it ended, once that is known; one of ``server.metrics.patches.OUTCOMES``.
        self.outcome: str | None = None
        #: The HTTP exchange is over; generations in the background may still run.
        self.is_closed = False

    def known(self) -> dict[str, str]:
        """Return what logs and traces say of it once it is decided: who asked, and what answers."""
        known: dict[str, str] = {}
        patch = self.selection.patch if self.selection is not None else None
        if patch is not None:
            # Of a joined composition the exact references of all parts.
            version = patch.parts[0].version if len(patch.parts) == 1 else patch.reference
            known |= {"patch": patch.name, "version": version, "digest": patch.digest}
        elif self.selection is not None:
            known["patch"] = "none"
        if self.arm is not None:
            known["arm"] = self.arm[1]
        if self.caller_class is not None:
            known["caller"] = self.caller_class
        return known

    @property
    def weights(self) -> str | None:
        """The weight patch in force as ``name@version``, or ``none``; ``None`` where weights never change."""
        if self.passage is None:
            return None
        return self.passage.weights.reference if self.passage.weights is not None else "none"

    def note_mistake(self) -> None:
        """Note that a generation ended because of what the client sent, perhaps before the engine saw it."""
        self.is_mistaken = True
        self.reached_engine = self.was_sent

    def may_run_later(self, status: int) -> bool:
        """Return whether an answer of this status may have been sent before the engine is asked."""
        return self.kind is RouteKind.GENERATES_LATER and 200 <= status < 300

    @property
    def asked_name(self) -> str | None:
        """The first name that it asks for; empty where what it asks for is no name, ``None`` for nothing."""
        wish = self.header if self.header is not None else self.alias
        if isinstance(wish, tuple):
            return wish[0].name
        has_wish = wish is None and (self.header_value(PATCH_HEADER) or self.alias_text) is not None
        return "" if has_wish else None

    @property
    def condition(self) -> str | None:
        """``met``, ``not_met`` or ``mixed``, of the answers that have ended; ``None`` without a condition."""
        if not self.conditions:
            return None
        words = {OUTCOMES[is_met] for is_met, _ in self.conditions}
        return words.pop() if len(words) == 1 else "mixed"

    def is_met(self, name: str) -> bool | None:
        """Return whether the condition of the patch ``name`` was met for any of the answers.

        ``None`` where none was decided, or it is that of another patch in the request.
        """
        patch = self.selection.patch if self.selection is not None else None
        is_own = patch is not None and patch.vector is not None and patch.vector.name == name
        return any(is_met for is_met, _ in self.conditions) if is_own and self.conditions else None

    @property
    def decided(self) -> dict[str, str | float]:
        """What logs say beside the patch: the weights in force, and how its condition was decided."""
        decided: dict[str, str | float] = {}
        if self.revision is not None:
            decided["revision"] = self.revision
        if self.weights is not None:
            decided["delta"] = self.weights
        if self.is_mismatched:
            decided["weights"] = "other"
        if self.condition is not None:
            # Of several answers, the one that came closest to being decided otherwise says most.
            decided |= {"condition": self.condition, "margin": min((m for _, m in self.conditions), key=abs)}
        return decided

    def header_value(self, name: str) -> str | None:
        """Return the first value of a header; see ``server.versions.sticky.Shown``."""
        sent = self.credentials.values(name.lower().encode("ascii"))
        return sent[0].decode("latin-1") if sent else None

    @property
    def own_id(self) -> str:
        """An id of this request alone, made up where someone asks."""
        if self._own_id is None:
            self._own_id = uuid.uuid4().hex
        return self._own_id


#: ``None`` outside an HTTP request that could run the model.
current_scope: ContextVar[RequestScope | None] = ContextVar("request_scope", default=None)

#: Of the request for a list of models or patches that the current task answers.
current_credentials: ContextVar[Credentials] = ContextVar("request_credentials", default=NO_CREDENTIALS)


def reject(error: AnyPolicyPatchError) -> AnyPolicyPatchError:
    """Record ``error`` as the answer to the current request, and return it to be raised.

    vLLM's handlers turn exceptions into answers of their own, on streams with status 200. As long as nothing
    of the body is sent, the middleware replaces such an answer by the recorded error.
    """
    scope = current_scope.get()
    if scope is not None and scope.error is None:
        scope.error = error
    return error
