"""What a patched request carries from the engine client to the scheduler: its claim on a prefix and a vector.

The claim travels in ``SamplingParams.extra_args["kv_transfer_params"]``. The engine client refuses every
request whose caller put something there, so a claim on the scheduler's side was always made by us.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

#: Key of the claim inside ``kv_transfer_params``.
CLAIM_KEY = "policy_patch"


class PrefixPart(NamedTuple):
    """A resident prefix that lies behind the parts before it."""

    digest: str
    num_tokens: int


class VectorClaim(NamedTuple):
    """A steering patch that acts on the request, behind any prefix."""

    digest: str
    #: It acts from the last prompt token on, not from the first: ``Steering.tokens`` is ``answer``.
    from_answer: bool = False
    #: Whether a condition decides at the last prompt token if it acts.
    is_conditional: bool = False


@dataclass(frozen=True, slots=True)
class PatchClaim:
    """The first ``num_tokens`` positions of a request are a prefix, and ``vector`` acts behind them."""

    #: The identity of all that acts on the request: its blocks are salted by it.
    digest: str
    #: 0 where only a vector acts.
    num_tokens: int
    #: The resident prefixes that lie in front, in order: by default the one of ``digest``.
    parts: tuple[PrefixPart, ...] = ()
    #: Its blocks are to stay in the KV cache, as far as there is room for such.
    is_pinned: bool = False
    vector: VectorClaim | None = None

    def __post_init__(self) -> None:
        if not self.parts and self.num_tokens:
            object.__setattr__(self, "parts", (PrefixPart(self.digest, self.num_tokens),))

    def to_params(self) -> dict[str, Any]:
        """Return the ``kv_transfer_params`` of the request; ``from_params`` is its inverse."""
        parts = [list(part) for part in self.parts]
        vector = list(self.vector) if self.vector is not None else None
        return {CLAIM_KEY: [self.digest, self.num_tokens, parts, self.is_pinned, vector]}

    @classmethod
    def from_params(cls, params: Mapping[str, Any] | None) -> "PatchClaim | None":
        """Read the claim out of ``Request.kv_transfer_params``; None for a request without a patch."""
        if not params or CLAIM_KEY not in params:
            return None
        digest, num_tokens, parts, is_pinned, vector = params[CLAIM_KEY]
        of_parts = tuple(PrefixPart(str(d), int(n)) for d, n in parts)
        of_vector = None
        if vector is not None:
            vector_digest, from_answer, is_conditional = vector
            of_vector = VectorClaim(str(vector_digest), bool(from_answer), bool(is_conditional))
        return cls(str(digest), int(num_tokens), of_parts, bool(is_pinned), of_vector)


def scoped_cache_salt(
    claim: PatchClaim | None, caller_salt: str | None, partition: str | None = None
) -> str | None:
    """Return the prefix-cache salt under which a request's blocks are hashed.

    Callers' salts live in a name space of their own: without that, a request to the base model whose
    ``cache_salt`` imitates ours could reach K/V that was written under a patch.

    Args:
        claim: The patch that the blocks are written under.
        caller_salt: ``cache_salt`` as it was sent.
        partition: What the policy keeps this caller's blocks apart by.

    Semantics: injective in (claim.digest, caller_salt, partition); None only for (None, None, None).
    """
    salt = _salt(claim, caller_salt)
    # The length says where the partition ends, whatever characters it has.
    return salt if partition is None else f"of:{len(partition)}:{partition}:{salt or ''}"


def _salt(claim: PatchClaim | None, caller_salt: str | None) -> str | None:
    if claim is not None:
        return f"patch:{claim.digest}:{caller_salt}" if caller_salt is not None else f"patch:{claim.digest}"
    return None if caller_salt is None else f"caller:{caller_salt}"
