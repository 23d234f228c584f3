"""Arms: the ways of answering that one run compares.

``base`` is the model as it is, ``system`` the policy as an ordinary system message, the others are patches:
one alone, or several in an order. An arm's name is what ``X-Policy-Patch`` would say for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

from patches.errors import EvaluationError
from patches.format import Patch

BASE, SYSTEM = "base", "system"
MAX_COMPOSED = 3


@dataclass(frozen=True, eq=False)
class Arm:
    """One way of answering."""

    name: str
    #: ``base``, ``system``, ``patch``, ``composition`` or ``lora``.
    kind: str
    #: The policy as a system message.
    system_text: str | None = None
    #: The value of ``X-Policy-Patch``.
    selection: str | None = None
    #: What answers offline; ``None`` where a server holds it.
    patch: Patch | None = None
    #: What is joined on the fly, offline, in order; in place of ``patch``.
    parts: tuple[Patch, ...] = ()
    #: The folder of a LoRA adapter, offline.
    lora: str | None = None
    #: Digest of the patch, where it is known.
    digest: str | None = None


def patch_arm(patch: Patch) -> Arm:
    """Make the arm of a patch file; a server is asked for exactly this content."""
    name = patch.manifest.name
    return Arm(name, "patch", selection=f"{name}@{patch.digest}", patch=patch, digest=patch.digest)


def composition_orders(names: Sequence[str]) -> list[tuple[int, ...]]:
    """List every order of every two and of every three patches, as indices."""
    indices = range(len(names))
    return [
        order for size in range(2, min(len(names), MAX_COMPOSED) + 1) for order in permutations(indices, size)
    ]


def require_distinct(arms: Sequence[Arm]) -> None:
    """Check that reports can tell the arms apart.

    Raises:
        EvaluationError: Two arms have one name.
    """
    names = [arm.name for arm in arms]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise EvaluationError(
            f"arms: expected names that differ, got twice: {', '.join(doubled)}; versions of one patch are "
            "compared in two runs"
        )
