"""What is served at one instant: an immutable picture that requests read without a lock.

The catalog swaps the whole view in one assignment, so a request sees either everything of a change or nothing
of it. Each change copies one dictionary of names and rebuilds one name.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from patches.manifest import Manifest
from patches.names import version_key
from server.versions.activation import Canary, Target
from server.versions.revision import FleetRevision


@dataclass(frozen=True, slots=True)
class ServedPatch:
    """One version of one patch that every worker holds. Two are equal where their digests are."""

    name: str = field(compare=False)
    version: str = field(compare=False)
    #: ``sha256:`` and 64 hexadecimal digits; the identity.
    digest: str
    num_tokens: int = field(compare=False)
    manifest: Manifest = field(compare=False, repr=False)
    #: Device bytes, added up over all workers.
    nbytes: int = field(compare=False)

    @classmethod
    def of(cls, manifest: Manifest, digest: str, nbytes: int) -> "ServedPatch":
        """Return the patch that ``manifest`` describes."""
        return cls(manifest.name, manifest.version, digest, manifest.num_virtual_tokens, manifest, nbytes)

    @property
    def kind(self) -> str:
        """The word for its kind."""
        return self.manifest.kind

    @property
    def reference(self) -> str:
        """The exact reference that a client can send back: ``name@version``."""
        return f"{self.name}@{self.version}"

    @property
    def parts(self) -> "tuple[ServedPatch, ...]":
        """What the workers hold of it: a patch is one part, even one that was composed of others."""
        return (self,)

    @property
    def prefixes(self) -> "tuple[ServedPatch, ...]":
        """The parts that lie in front of the prompt, in order."""
        return (self,) if self.num_tokens else ()

    @property
    def vector(self) -> "ServedPatch | None":
        """The part that acts on hidden states, which takes no position."""
        return None if self.num_tokens else self

    @property
    def has_condition(self) -> bool:
        """Whether something about the prompt decides if it acts."""
        return getattr(self.manifest.body, "condition", None) is not None

    @property
    def form(self) -> str | None:
        """How the parts of a composition relate: ``prepared`` where each was computed behind those before it.

        ``None`` for a patch that was not composed.
        """
        return "prepared" if self.manifest.components else None


@dataclass(frozen=True, slots=True)
class FileFailure:
    """Why a file (or the folder itself) is not served."""

    #: File name without its folder, which is not told over HTTP.
    file: str
    #: Label of ``policy_patch_load_failures_total``.
    reason: str
    #: ``code`` of the error in ``server.errors`` that stands for it.
    code: str
    message: str
    #: Unix time in seconds of the first failure for this reason.
    since_s: float
    name: str | None = None
    version: str | None = None


@dataclass(frozen=True, slots=True)
class NamedPatch:
    """All served versions of one name."""

    name: str
    #: Highest semantic version first, never empty.
    versions: tuple[ServedPatch, ...]
    by_version: Mapping[str, ServedPatch]
    #: The version that the bare name means; ``None`` where an operator's call left none.
    active: ServedPatch | None

    @classmethod
    def of(cls, name: str, patches: Iterable[ServedPatch], active: ServedPatch | None) -> "NamedPatch":
        """Order ``patches`` of one name; ``active`` is one of them."""
        ordered = tuple(sorted(patches, key=lambda p: version_key(p.version), reverse=True))
        return cls(name, ordered, MappingProxyType({p.version: p for p in ordered}), active)


def component_digests(manifest: Manifest) -> tuple[str, ...]:
    """Return the digests that a composed patch was made of, in order; empty for every other patch."""
    return tuple(component.digest for component in manifest.components)


@dataclass(frozen=True, slots=True)
class CanaryArm:
    """What a share of the requests gets where they name a bare name."""

    patch: ServedPatch
    canary: Canary


@dataclass(frozen=True, slots=True)
class CatalogView:
    """Everything that selection needs to know."""

    names: Mapping[str, NamedPatch] = field(default_factory=lambda: MappingProxyType({}))
    #: Component digests in order -> the patch composed of exactly these.
    compositions: Mapping[tuple[str, ...], ServedPatch] = field(default_factory=lambda: MappingProxyType({}))
    #: Names that have a canary; what it serves is among their versions.
    canaries: Mapping[str, CanaryArm] = field(default_factory=lambda: MappingProxyType({}))
    #: ``(name, version)`` of what is being put on the workers right now.
    loading: frozenset[tuple[str, str]] = frozenset()
    #: The weight patch that is in force, for every request.
    weights: ServedPatch | None = None
    #: Names of weight patches, which no request chooses.
    weight_names: frozenset[str] = frozenset()
    #: ``(name, version)`` of what is not served since it was made for other weights than those in force.
    mismatched: frozenset[tuple[str, str]] = frozenset()
    #: Digests of what is served although it was made for other weights than those in force.
    kept: frozenset[str] = frozenset()
    #: The catalog that it follows; ``None`` where the folder and operators decide.
    fleet: FleetRevision | None = None
    #: Whether patches may be joined without a prepared composition; see ``server.versions.composition``.
    may_compose: bool = False

    def is_mismatched(self, name: str, version: str | None) -> bool:
        """Return whether this version, or any where it is ``None``, was made for other weights."""
        if version is not None:
            return (name, version) in self.mismatched
        return any(name == of for of, _ in self.mismatched)

    def with_changes(self, added: ServedPatch | None, removed: ServedPatch | None) -> "CatalogView":
        """Return the view in which ``added`` is served and ``removed`` is not, in one step."""
        view = self
        for name in {p.name for p in (added, removed) if p is not None}:
            old = self.names[name].versions if name in self.names else ()
            kept = [p for p in old if p not in (added, removed)]
            if added is not None and added.name == name:
                kept.append(added)
            highest = max(kept, key=lambda p: version_key(p.version), default=None)
            view = view.with_name(name, kept, highest)
        return view

    def with_name(
        self,
        name: str,
        patches: Collection[ServedPatch],
        active: ServedPatch | None,
        canary: CanaryArm | None = None,
    ) -> "CatalogView":
        """Return the view in which ``name`` has these versions and means ``active`` or its canary."""
        return self.with_names([Naming(name, patches, active, canary)])

    def with_names(self, namings: "Iterable[Naming]") -> "CatalogView":
        """Return the view in which all of this holds; one copy, however many names there are."""
        canaries = dict(self.canaries)
        names = dict(self.names)
        compositions = dict(self.compositions)
        changed: set[ServedPatch] = set()
        for naming in namings:
            canaries.pop(naming.name, None)
            if naming.canary is not None:
                canaries[naming.name] = naming.canary
            if naming.name in names:
                changed.update(names.pop(naming.name).versions)
            if naming.patches:
                changed.update(naming.patches)
                names[naming.name] = NamedPatch.of(naming.name, naming.patches, naming.active)
        self._index_compositions(compositions, names, changed)
        return replace(
            self,
            names=MappingProxyType(names),
            compositions=MappingProxyType(compositions),
            canaries=MappingProxyType(canaries),
        )

    @staticmethod
    def _index_compositions(
        compositions: dict[tuple[str, ...], ServedPatch],
        names: Mapping[str, NamedPatch],
        changed: Iterable[ServedPatch],
    ) -> None:
        for patch in changed:
            key = component_digests(patch.manifest)
            if not key:
                continue
            # Several may be composed of the same parts; the first name's highest version stands for them.
            makers = [p for n in names.values() for p in n.versions if component_digests(p.manifest) == key]
            if makers:
                compositions[key] = min(makers, key=lambda p: (p.name, names[p.name].versions.index(p)))
            else:
                compositions.pop(key, None)


@dataclass(frozen=True, slots=True)
class Naming:
    """What a name is to mean."""

    name: str
    patches: Collection[ServedPatch]
    active: ServedPatch | None
    canary: CanaryArm | None = None


def naming_of(
    name: str,
    residents: Iterable[tuple[ServedPatch, bool]],
    wanted: Target | None,
    canary: Canary | None,
) -> Naming:
    """Return what ``name`` means where it serves what of ``residents`` a file or an order wants served.

    Args:
        name: The patch.
        residents: All contents of it that the workers can hold and that may serve; with each, whether a file
            holds it.
        wanted: What the bare name is to mean.
        canary: The canary that is to run beside it.
    """
    tried = canary.target if canary is not None else None
    served = {
        patch.digest: patch
        for patch, has_file in residents
        if has_file or Target(patch.version, patch.digest) in (wanted, tried)
    }
    active = served.get(wanted.digest) if wanted is not None else None
    trial = served.get(tried.digest) if tried is not None else None
    arm = CanaryArm(trial, canary) if trial is not None and canary is not None else None
    return Naming(name, list(served.values()), active, arm)
