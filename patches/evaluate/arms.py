"""Arms: the ways of answering that one run compares.

``base`` is the model as it is, ``system`` the policy as an ordinary system message, the others are patches:
one alone, or several in an order, one of which may steer. An arm's name is what ``X-Policy-Patch`` would say
for it: a patch's name, with version or digest where several patches of that name are compared.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import permutations

from patches.errors import EvaluationError
from patches.format import Patch
from patches.kinds.delta import DeltaBody
from patches.kinds.steering import SteeringBody

BASE, SYSTEM = "base", "system"
#: As much of a digest as a selection of three patches has room for.
NUM_DIGEST_CHARS = len("sha256:") + 16
MAX_COMPOSED = 3


@dataclass(frozen=True, eq=False)
class Arm:
    """One way of answering."""

    name: str
    #: ``base``, ``system``, ``patch``, ``composition`` or the name of a baseline.
    kind: str
    #: The policy as a system message.
    system_text: str | None = None
    #: The value of ``X-Policy-Patch``.
    selection: str | None = None
    #: What answers offline; ``None`` where a server holds it.
    patch: Patch | None = None
    #: What is joined, offline, in order; in place of ``patch``.
    parts: tuple[Patch, ...] = ()
    #: What steers, offline, behind the prefix if there is one; a steering patch.
    vector: Patch | None = None
    #: Which weights the model has, offline; a weight patch.
    weights: Patch | None = None
    #: Digest of the patch, where it is known.
    digest: str | None = None
    #: ``prepared`` or ``joined``: how a server has to have composed it.
    form: str | None = None


def patch_arm(patch: Patch, name: str | None = None) -> Arm:
    """Make the arm of a patch file; a server is asked for exactly this content."""
    own = patch.manifest.name
    arm = Arm(name or own, "patch", selection=f"{own}@{patch.digest}", digest=patch.digest)
    if changes_weights(patch):
        return replace(arm, weights=patch, selection=None)
    return replace(arm, vector=patch) if steers(patch) else replace(arm, patch=patch)


def steers(patch: Patch) -> bool:
    """Return whether a patch steers, and has no tokens in front of a prompt."""
    return isinstance(patch.manifest.body, SteeringBody)


def changes_weights(patch: Patch) -> bool:
    """Return whether a patch changes weights, and so has no place in a request."""
    return isinstance(patch.manifest.body, DeltaBody)


def patch_arms(patches: Sequence[Patch]) -> list[Arm]:
    """Make the arms of patch files, each named as briefly as tells it from the others.

    Raises:
        EvaluationError: Two have one digest.
    """
    digests = [patch.digest for patch in patches]
    if doubled := sorted({digest for digest in digests if digests.count(digest) > 1}):
        raise EvaluationError(f"patches: expected files that differ, got twice: {', '.join(doubled)}")
    by_length = list(zip(*(_references(patch) for patch in patches), strict=True))
    names = [next(level[i] for level in by_length if level.count(level[i]) == 1) for i in range(len(patches))]
    return [patch_arm(patch, name) for patch, name in zip(patches, names, strict=True)]


def _references(patch: Patch) -> tuple[str, str, str]:
    name, version = patch.manifest.name, patch.manifest.version
    return name, f"{name}@{version}", f"{name}@{patch.digest[:NUM_DIGEST_CHARS]}"


def composition_orders(names: Sequence[str], vectors: Collection[int] = ()) -> list[tuple[int, ...]]:
    """List every order of every two and of every three patches of different names, as indices.

    Args:
        names: Of the patches.
        vectors: Which of them steer: a request has one of them at most, and its place means nothing: it is
            listed last.
    """
    sizes = range(2, min(len(names), MAX_COMPOSED) + 1)
    return [
        order
        for size in sizes
        for order in permutations(range(len(names)), size)
        # A selection names a patch once.
        if len({names[i] for i in order}) == size and not any(i in vectors for i in order[:-1])
    ]


def require_distinct(arms: Sequence[Arm]) -> None:
    """Check that reports can tell the arms apart.

    Raises:
        EvaluationError: Two arms have one name.
    """
    names = [arm.name for arm in arms]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise EvaluationError(f"arms: expected names that differ, got twice: {', '.join(doubled)}")
