"""Several patches that answer one request together, without having been made for one another.

Prefixes are joined side by side, in the order in which the request names them. Each part keeps the K/V that
it was made with, which never read the other parts; only its keys are moved to where it now lies. So a joined
composition answers differently from the one that `policypatch compose` makes of the same parts, where each
part reads those before it. It is served only where the operator allows it.

A steering vector acts on the hidden states behind whatever lies in front, so it needs no preparing.
"""

import hashlib
from dataclasses import dataclass, field

from server.versions.view import ServedPatch

#: What the digest of a composition is taken over begins with it, so it never equals that of a patch file.
_DIGEST_DOMAIN = b"policypatch composition on the fly\n"
_STEERED_DOMAIN = b"policypatch prefix and vector\n"

#: How the parts of a composition can relate: each computed behind those before it, or moved there as it was.
FORMS = ("prepared", "joined")

#: ``patch`` label of requests that a joined composition answered. No patch can have this name.
COMPOSED_LABEL = "composed:joined"

#: ``patch`` label of requests that a prefix and a vector answered together.
STEERED_LABEL = "composed:steered"

#: Names that stand for many compositions.
COMPOSED_LABELS = frozenset({COMPOSED_LABEL, STEERED_LABEL})


@dataclass(frozen=True, slots=True)
class JoinedComposition:
    """Patches in order, each with its own K/V. Two are equal where digests and order of the parts are."""

    #: At least two.
    parts: tuple[ServedPatch, ...] = field(compare=False)
    #: ``sha256:`` and 64 hexadecimal digits: stands for the ordered digests of the parts.
    digest: str

    @classmethod
    def of(cls, parts: tuple[ServedPatch, ...]) -> "JoinedComposition":
        """Join ``parts`` in order."""
        return cls(parts, _digest_of(_DIGEST_DOMAIN, *(part.digest for part in parts)))

    @property
    def prefixes(self) -> tuple[ServedPatch, ...]:
        """See ``ServedPatch.prefixes``."""
        return self.parts

    @property
    def vector(self) -> ServedPatch | None:
        """See ``ServedPatch.vector``."""
        return None

    @property
    def name(self) -> str:
        """The name under which metrics count it: one for all, or clients would choose the label values."""
        return COMPOSED_LABEL

    @property
    def reference(self) -> str:
        """What a client can send back to get the same: the exact references of the parts."""
        return ", ".join(part.reference for part in self.parts)

    @property
    def num_tokens(self) -> int:
        """Length of the whole prefix."""
        return sum(part.num_tokens for part in self.parts)

    @property
    def form(self) -> str:
        """How its parts relate; see ``ServedPatch.form``."""
        return "joined"


@dataclass(frozen=True, slots=True)
class SteeredComposition:
    """A prefix in front of the request, and a vector that acts behind it."""

    prefix: ServedPatch | JoinedComposition = field(compare=False)
    vector: ServedPatch = field(compare=False)
    #: ``sha256:`` and 64 hexadecimal digits: stands for both digests.
    digest: str

    @classmethod
    def of(cls, prefix: ServedPatch | JoinedComposition, vector: ServedPatch) -> "SteeredComposition":
        """Return the composition in which ``vector`` acts behind ``prefix``."""
        return cls(prefix, vector, _digest_of(_STEERED_DOMAIN, prefix.digest, vector.digest))

    @property
    def name(self) -> str:
        """See ``JoinedComposition.name``."""
        return STEERED_LABEL

    @property
    def reference(self) -> str:
        """See ``JoinedComposition.reference``; the vector comes last."""
        return f"{self.prefix.reference}, {self.vector.reference}"

    @property
    def parts(self) -> tuple[ServedPatch, ...]:
        """What the workers hold of it."""
        return (*self.prefix.parts, self.vector)

    @property
    def prefixes(self) -> tuple[ServedPatch, ...]:
        """See ``ServedPatch.prefixes``."""
        return self.prefix.parts

    @property
    def num_tokens(self) -> int:
        """Length of the prefix."""
        return self.prefix.num_tokens

    @property
    def form(self) -> str | None:
        """How the parts of the prefix relate; see ``ServedPatch.form``."""
        return self.prefix.form


def _digest_of(domain: bytes, *digests: str) -> str:
    content = domain + "\n".join(digests).encode("ascii")
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


#: What can answer a request in place of the base model.
SelectedPatch = ServedPatch | JoinedComposition | SteeredComposition
