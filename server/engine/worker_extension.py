"""Methods that the launcher adds to vLLM's workers, called over ``collective_rpc``."""

from typing import Any, cast

from vllm.distributed.kv_transfer import get_kv_transfer_group

from server.engine.connector import PolicyPatchConnector
from server.engine.delta_store import DeltaStore
from server.engine.stores import Layout
from server.engine.worker_side import WorkerSide


def _side() -> WorkerSide:
    return cast(PolicyPatchConnector, get_kv_transfer_group()).worker


class PatchWorkerExtension:
    """Residency of patches on one worker."""

    def policy_patch_layout(self) -> dict[str, object]:
        """See ``WorkerSide.layout``; ``steering`` is why vectors can't act here."""
        return {**_side().layout(), "steering": "vLLM runs workers here that cannot be extended"}

    def policy_patch_enable_composition(self) -> str | None:
        """See ``WorkerSide.enable_composition``."""
        return _side().enable_composition(self.get_model())  # type: ignore[attr-defined]

    def policy_patch_check(
        self, digest: str, kind: str, layout: Layout, facts: dict[str, Any]
    ) -> dict[str, Any]:
        """See ``Stores.check``."""
        return _side().stores.check(digest, kind, layout, facts)

    def policy_patch_load(
        self, digest: str, kind: str, blob: bytes, facts: dict[str, Any], is_pinned: bool = False
    ) -> None:
        """See ``Stores.load``."""
        _side().stores.load(digest, kind, blob, facts, is_pinned)

    def policy_patch_loaded(self, digest: str) -> dict[str, Any] | None:
        """See ``Stores.loaded``."""
        return _side().stores.loaded(digest)

    def policy_patch_unload(self, digest: str) -> int:
        """See ``Stores.unload``."""
        return _side().stores.unload(digest)

    def policy_patch_resident(self) -> dict[str, int]:
        """See ``Stores.resident``."""
        return _side().stores.resident()

    def policy_patch_write_weights(self, digest: str | None) -> tuple[str | None, int]:
        """See ``DeltaStore.write``; nothing is scheduled meanwhile."""
        return cast(DeltaStore, _side().stores.of("delta")).write(digest)

    def policy_patch_slots(self) -> list[str]:
        """See ``PrefixStore.in_slots``."""
        return _side().store.in_slots()
