"""The scheduler's half of steering: who is steered in a step, and under which keys its blocks are kept.

A vector that acts from the last prompt token on makes the K/V of a token depend on where the prompt ends: the
same tokens inside a longer prompt are not steered. So every block that holds such a token is hashed with the
length of the prompt beside its tokens, and found by requests of the same prompt only.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_utils import BlockHash, generate_block_hash_extra_keys, hash_block_tokens

from server.engine.claim import PatchClaim
from server.engine.plan import SteeredRequest
from server.engine.steering_report import Outcome

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.request import Request

#: Key of the connector's extra configuration: vectors that may be in flight at a time; 0: the kind is off.
SLOTS_KEY = "steering_slots"

#: Where the configuration does not say it, as in tests that start an engine without the launcher.
DEFAULT_SLOTS = 32

#: Seconds that a request may be passed by others whose vectors have a row.
PATIENCE_S = 1.0

#: Of the hash of a block: among whose tokens the answer begins, or has begun.
ANSWER_KEY = "policy_patch_answer"


class SteeringPlan:
    """Keeps the live requests on which a vector acts. Constant work a steered request and step.

    A step can't be cut in two, so it must not need more vectors than the workers' tables have rows: a request
    whose vector would be one too many waits until another vector's last request has ended. Those whose vector
    has a row pass it meanwhile, until it has waited for ``PATIENCE_S``.
    """

    def __init__(
        self,
        config: "VllmConfig",
        kv_cache_config: "KVCacheConfig",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._num_slots = num_slots(config)
        self._clock = clock
        self._hash = get_hash_fn_by_name(config.cache_config.prefix_caching_hash_algo)
        self._hash_block_size = kv_cache_config.hash_block_size
        self._requests: dict[str, SteeredRequest] = {}
        self._first_blocks: dict[str, int] = {}
        self._outcomes: dict[str, Outcome] = {}
        #: Digest -> requests that were admitted and have not ended; those that were preempted among them.
        self._admitted: dict[str, set[str]] = {}
        #: Request that waits for a row -> since when; the longest first.
        self._waiting: dict[str, float] = {}

    def add(self, request: "Request", claim: PatchClaim) -> None:
        """Note a request, before the scheduler looks at it for the first time."""
        vector = claim.vector
        if vector is None:
            return
        self._requests[request.request_id] = SteeredRequest(
            digest=vector.digest,
            num_prefix=claim.num_tokens,
            num_prompt=request.num_prompt_tokens,
            start=0,
            from_answer=vector.from_answer,
            is_conditional=vector.is_conditional,
        )
        if vector.from_answer and request._block_hasher is not None:
            assert self._hash_block_size is not None, "vLLM resolves it before it makes connectors"
            set_answer_hashes(request, self._hash_block_size, self._hash)

    def has_room(self, req_id: str) -> bool:
        """Return whether a request may be admitted now; one that may not waits from now on."""
        request = self._requests.get(req_id)
        if request is None or req_id in self._admitted.get(request.digest, ()):
            return True
        has_row = request.digest in self._admitted
        is_free = len(self._admitted) < self._num_slots
        if (has_row or is_free) and not self._is_somebody_overdue(req_id):
            return True
        self._waiting.setdefault(req_id, self._clock())
        return False

    def _is_somebody_overdue(self, req_id: str) -> bool:
        """Return whether another request has waited for too long to be passed by this one."""
        longest = next(iter(self._waiting), req_id)
        return longest != req_id and self._clock() - self._waiting[longest] > PATIENCE_S

    def admit(self, req_id: str) -> None:
        """Note that a request is going to run; again after each preemption."""
        request = self._requests.get(req_id)
        if request is not None:
            self._admitted.setdefault(request.digest, set()).add(req_id)
            self._waiting.pop(req_id, None)

    def of_step(self, scheduler_output: "SchedulerOutput") -> dict[str, SteeredRequest]:
        """Return the steered requests of a step."""
        if not self._requests:
            return {}
        cached = scheduler_output.scheduled_cached_reqs
        admitted = [(new.req_id, new.block_ids) for new in scheduler_output.scheduled_new_reqs]
        if cached.resumed_req_ids:
            blocks = zip(cached.req_ids, cached.new_block_ids, strict=True)
            admitted += [(r, b) for r, b in blocks if r in cached.resumed_req_ids and b is not None]
        self._first_blocks.update((r, b[0][0]) for r, b in admitted if r in self._requests)
        starts = [(new.req_id, new.num_computed_tokens) for new in scheduler_output.scheduled_new_reqs]
        starts += zip(cached.req_ids, cached.num_computed_tokens, strict=True)
        planned = ((req_id, self._planned(req_id, start)) for req_id, start in starts)
        return {req_id: request for req_id, request in planned if request is not None}

    def _planned(self, req_id: str, start: int) -> SteeredRequest | None:
        request = self._requests.get(req_id)
        if request is None:
            return None
        outcome = self._outcomes.get(req_id)
        if outcome is None or start < request.num_prompt:
            # Who computes a part of the prompt scores it, also where it is computed again: others may find
            # its blocks in the prefix cache, and the scores with them.
            return request._replace(start=start)
        return request._replace(start=start, is_conditional=False) if outcome.acts else None

    def first_block(self, req_id: str) -> int | None:
        """Return the first block of a live request. Who shares it is steered by the same vector."""
        return self._first_blocks.get(req_id)

    def decide(self, req_id: str, outcome: Outcome) -> str | None:
        """Take the outcome of a condition; of a prompt that was computed again, the same once more.

        Returns:
            The digest of the vector, where the request had no outcome before.
        """
        request = self._requests.get(req_id)
        if request is None:
            return None
        is_first = req_id not in self._outcomes
        self._outcomes[req_id] = outcome
        return request.digest if is_first else None

    def forget(self, request: "Request") -> Outcome | None:
        """Drop what is kept of a finished request, and return the outcome of its condition, if it has one."""
        steered = self._requests.pop(request.request_id, None)
        self._waiting.pop(request.request_id, None)
        if steered is not None and steered.digest in self._admitted:
            self._admitted[steered.digest].discard(request.request_id)
            if not self._admitted[steered.digest]:
                del self._admitted[steered.digest]
        self._first_blocks.pop(request.request_id, None)
        return self._outcomes.pop(request.request_id, None)


def num_slots(config: "VllmConfig") -> int:
    """Return how many vectors may be in flight at a time."""
    transfer = config.kv_transfer_config
    assert transfer is not None, "the launcher configures the connector"
    return int(transfer.get_from_extra_config(SLOTS_KEY, DEFAULT_SLOTS))


def set_answer_hashes(request: "Request", block_size: int, hash_tokens: Callable[[object], bytes]) -> None:
    """Hash the blocks in which the answer begins and goes on as blocks of prompts of this length.

    Args:
        request: A new request, whose prompt is hashed as any other.
        block_size: Tokens of a hashed block.
        hash_tokens: vLLM's hash function.
    """
    num_prompt = request.num_prompt_tokens

    def hash_new_blocks(request: "Request") -> list[BlockHash]:
        hashes: list[BlockHash] = []
        parent = request.block_hashes[-1] if request.block_hashes else None
        for block_idx in range(len(request.block_hashes), request.num_tokens // block_size):
            start, stop = block_idx * block_size, (block_idx + 1) * block_size
            keys, _ = generate_block_hash_extra_keys(request, start, stop, 0)
            if stop >= num_prompt:
                keys = (*(keys or ()), (ANSWER_KEY, num_prompt))
            parent = hash_block_tokens(hash_tokens, parent, request.all_token_ids[start:stop], keys)
            hashes.append(parent)
        return hashes

    del request.block_hashes[(num_prompt - 1) // block_size :]
    request._block_hasher = hash_new_blocks
    request.update_block_hashes()
