"""Several patches side by side, joined as a request names them: a composition that was not prepared.

Each part keeps the K/V that it was made with, which never read the other parts; only its keys are moved to
where it now lies. So it answers differently from the composition that `policypatch compose` makes of the same
parts, where each part reads those before it. It is served only where the operator allows it.
"""

import hashlib
from dataclasses import dataclass, field

from server.versions.view import ServedPatch

#: What the digest of a composition is taken over begins with it, so it never equals that of a patch file.
_DIGEST_DOMAIN = b"policypatch composition on the fly\n"

#: How the parts of a composition can relate: each computed behind those before it, or moved there as it was.
FORMS = ("prepared", "joined")

#: ``patch`` label of requests that a joined composition answered. No patch can have this name.
COMPOSED_LABEL = "composed:joined"


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
        content = _DIGEST_DOMAIN + "\n".join(part.digest for part in parts).encode("ascii")
        return cls(parts, f"sha256:{hashlib.sha256(content).hexdigest()}")

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


#: What can answer a request in place of the base model.
SelectedPatch = ServedPatch | JoinedComposition
