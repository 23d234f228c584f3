"""Methods that the launcher adds to vLLM's workers, called over ``collective_rpc``."""

from typing import cast

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

    def policy_patch_load(self, digest: str, blob: bytes) -> dict[str, object]:
        """See ``WorkerSide.load``."""
        return _side().load(digest, blob)

    def policy_patch_unload(self, digest: str) -> int:
        """See ``WorkerSide.unload``."""
        return _side().unload(digest)

    def policy_patch_resident(self) -> dict[str, int]:
        """See ``WorkerSide.resident``."""
        return _side().resident()
