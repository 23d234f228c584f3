"""Methods that the launcher adds to vLLM's workers, called over ``collective_rpc``."""

from typing import Any, cast

from vllm.distributed.kv_transfer import get_kv_transfer_group

from server.engine.connector import PolicyPatchConnector
from server.engine.worker_side import WorkerSide


def _side() -> WorkerSide:
    return cast(PolicyPatchConnector, get_kv_transfer_group()).worker


class PatchWorkerExtension:
    """Residency of prefixes on one worker."""

    def policy_patch_layout(self) -> dict[str, object]:
        """See ``WorkerSide.layout``."""
        return _side().layout()

    def policy_patch_enable_composition(self) -> str | None:
        """See ``WorkerSide.enable_composition``."""
        return _side().enable_composition(self.get_model())  # type: ignore[attr-defined]

    def policy_patch_check(self, digest: str, shape: list[int], dtype: str) -> dict[str, Any]:
        """See ``PrefixStore.check``."""
        return _side().store.check(digest, shape, dtype)

    def policy_patch_load(self, digest: str, blob: bytes, is_pinned: bool = False) -> None:
        """See ``PrefixStore.load``."""
        _side().store.load(digest, blob, is_pinned)

    def policy_patch_loaded(self, digest: str) -> dict[str, Any] | None:
        """See ``PrefixStore.loaded``."""
        return _side().store.loaded(digest)

    def policy_patch_unload(self, digest: str) -> int:
        """See ``PrefixStore.unload``."""
        return _side().store.unload(digest)

    def policy_patch_resident(self) -> dict[str, int]:
        """See ``PrefixStore.resident``."""
        return _side().store.resident()

    def policy_patch_slots(self) -> list[str]:
        """See ``PrefixStore.in_slots``."""
        return _side().store.in_slots()
