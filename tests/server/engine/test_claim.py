"""Claims and the salts that keep patches, and callers, apart in the prefix cache."""

import itertools
from dataclasses import replace

from server.engine.claim import PatchClaim, PrefixPart, VectorClaim, scoped_cache_salt

CLAIMS = [None, PatchClaim("sha256:" + "a" * 64, 48), PatchClaim("sha256:" + "b" * 64, 48)]
PARTITIONS = [None, "", "a", "patch:sha256:" + "a" * 64, "1:a:caller:mine"]
SALTS = [None, "", "mine", "patch:sha256:" + "a" * 64, f"patch:sha256:{'a' * 64}:mine", "caller:mine"]


def test_a_claim_survives_its_journey() -> None:
    claim = PatchClaim("sha256:" + "a" * 64, 48)
    assert PatchClaim.from_params(claim.to_params()) == claim
    pinned = replace(claim, is_pinned=True)
    assert PatchClaim.from_params(pinned.to_params()) == pinned
    assert claim.parts == (PrefixPart(claim.digest, 48),)


def test_a_claim_on_several_parts_keeps_their_order() -> None:
    parts = (PrefixPart("sha256:b", 5), PrefixPart("sha256:a", 43))
    claim = PatchClaim("sha256:" + "c" * 64, 48, parts)
    found = PatchClaim.from_params(claim.to_params())
    assert found is not None
    assert found.parts == parts


def test_a_claim_on_a_vector_survives_its_journey_and_needs_no_prefix() -> None:
    vector = VectorClaim("sha256:" + "d" * 64, from_answer=True, is_conditional=True)
    alone = PatchClaim(vector.digest, 0, vector=vector)
    assert PatchClaim.from_params(alone.to_params()) == alone
    assert alone.parts == ()
    beside = PatchClaim("sha256:" + "c" * 64, 48, (PrefixPart("sha256:b", 48),), vector=vector)
    assert PatchClaim.from_params(beside.to_params()) == beside


def test_a_request_without_our_key_has_no_claim() -> None:
    assert PatchClaim.from_params(None) is None
    assert PatchClaim.from_params({}) is None
    assert PatchClaim.from_params({"do_remote_prefill": True}) is None


def test_no_two_of_patch_caller_salt_and_partition_share_a_salt() -> None:
    salts = [scoped_cache_salt(*parts) for parts in itertools.product(CLAIMS, SALTS, PARTITIONS)]
    assert len(set(salts)) == len(salts)


def test_the_base_model_without_a_salt_stays_unsalted() -> None:
    assert scoped_cache_salt(None, None) is None
