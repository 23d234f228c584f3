"""What one worker holds of patches: a store for each kind, asked by the kind's word or by the digest."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

#: Name -> shape and dtype of each tensor of a whole patch, as it travels to the workers and back.
Layout = Mapping[str, tuple[Sequence[int], str]]


class PatchStore(Protocol):
    """Holds the patches of one kind for the steps of one worker."""

    def check(self, digest: str, layout: Layout, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Confirm that a patch could be held here.

        Returns:
            ``digest``, ``layout`` as it came and ``nbytes`` of the part that this rank would hold.

        Raises:
            ValueError: It does not fit this model.
        """
        ...

    def load(self, digest: str, blob: bytes, is_pinned: bool, facts: Mapping[str, Any]) -> None:
        """Begin to hold a patch; what is there already stays as it is.

        Args:
            digest: The patch's digest.
            blob: Safetensors bytes with the tensors of its layout, whole.
            is_pinned: Its device slot is the last to be given up.
            facts: What the manifest says for its kind.
        """
        ...

    def loaded(self, digest: str) -> dict[str, Any] | None:
        """Return what ``check`` says of a patch that is held; ``None`` while it is on its way.

        Raises:
            ValueError: It was never sent, or does not fit this model.
        """
        ...

    def unload(self, digest: str) -> int:
        """Drop a patch and return the bytes of host memory set free; 0 where it was not there."""
        ...

    def resident(self) -> dict[str, int]:
        """Return digest -> bytes for what is held."""
        ...


class Stores:
    """The stores of one worker."""

    def __init__(self, **stores: PatchStore) -> None:
        self._stores = dict(stores)
        self._kinds: dict[str, str] = {}
        self._refused: dict[str, str] = {}

    def refuse(self, kind: str, reason: str) -> None:
        """Hold no patches of ``kind``, and say why."""
        self._refused[kind] = reason

    def add(self, kind: str, store: PatchStore) -> None:
        """Hold patches of ``kind`` from now on."""
        self._stores[kind] = store

    def check(self, digest: str, kind: str, layout: Layout, facts: Mapping[str, Any]) -> dict[str, Any]:
        """See ``PatchStore.check``."""
        return self.of(kind).check(digest, layout, facts)

    def load(self, digest: str, kind: str, blob: bytes, facts: Mapping[str, Any], is_pinned: bool) -> None:
        """See ``PatchStore.load``."""
        self.of(kind).load(digest, blob, is_pinned, facts)
        self._kinds[digest] = kind

    def loaded(self, digest: str) -> dict[str, Any] | None:
        """See ``PatchStore.loaded``."""
        if digest not in self._kinds:
            raise ValueError(f"{digest}: it was not sent")
        return self._stores[self._kinds[digest]].loaded(digest)

    def unload(self, digest: str) -> int:
        """See ``PatchStore.unload``."""
        kind = self._kinds.pop(digest, None)
        return 0 if kind is None else self._stores[kind].unload(digest)

    def resident(self) -> dict[str, int]:
        """See ``PatchStore.resident``; of all kinds."""
        return {digest: size for store in self._stores.values() for digest, size in store.resident().items()}

    def of(self, kind: str) -> PatchStore:
        """Return the store of a kind.

        Raises:
            ValueError: There is none.
        """
        if kind in self._refused:
            raise ValueError(f"{kind} patches cannot be served here: {self._refused[kind]}")
        if kind not in self._stores:
            raise ValueError(f"kind: expected {' or '.join(self._stores)}, got {kind}")
        return self._stores[kind]
