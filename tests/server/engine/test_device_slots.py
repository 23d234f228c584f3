"""Which prefixes keep their place on the device."""

import torch

from server.engine.device_slots import DeviceSlots

NBYTES = 40


def tensors(*digests: str) -> dict[str, torch.Tensor]:
    return {digest: torch.full((10,), float(ord(digest))) for digest in digests}


def slots(num_slots: int) -> DeviceSlots:
    return DeviceSlots(torch.device("cpu"), num_slots * NBYTES)


def bring(held: DeviceSlots, *digests: str) -> list[list[str]]:
    """Bring all and check each tensor; gives which came together."""
    batches = []
    for batch in held.together(tensors(*digests)):
        assert all(bool((tensor == ord(digest)).all()) for digest, tensor in batch.items())
        batches.append(list(batch))
        assert len(held.held()) * NBYTES <= held.max_bytes
    return batches


def test_what_fits_comes_together_and_stays() -> None:
    held = slots(3)
    assert bring(held, "a", "b", "c") == [["a", "b", "c"]]
    assert bring(held, "c", "a") == [["c", "a"]]
    counts = held.take_counts()
    assert (counts.num_loads, counts.num_evictions, counts.num_bytes) == (3, 0, 3 * NBYTES)


def test_the_least_recently_used_goes_first() -> None:
    held = slots(2)
    for digest in "abac":
        bring(held, digest)
    assert held.held() == ["a", "c"]
    assert held.take_counts().num_evictions == 1


def test_more_than_fits_comes_in_parts_that_fit() -> None:
    held = slots(2)
    assert bring(held, "a", "b", "c", "d", "e") == [["a", "b"], ["c", "d"], ["e"]]
    assert len(held.held()) == 2


def test_a_part_never_loses_a_prefix_to_another_of_the_same_part() -> None:
    held = slots(2)
    bring(held, "a", "b")
    # "b" has its slot and "c" needs one: "a" must go, though "b" is about to be needed only now.
    assert bring(held, "b", "c") == [["b", "c"]]
    assert held.held() == ["b", "c"]


def test_a_pin_keeps_a_slot_from_those_without() -> None:
    held = slots(2)
    held.pin("a")
    for digest in "abcd":
        bring(held, digest)
    assert held.held() == ["a", "d"]


def test_the_bound_holds_where_pins_alone_exceed_it() -> None:
    held = slots(2)
    for digest in "abc":
        held.pin(digest)
        bring(held, digest)
    assert held.held() == ["b", "c"]


def test_a_dropped_prefix_loses_slot_and_pin_and_is_no_eviction() -> None:
    held = slots(2)
    held.pin("a")
    bring(held, "a")
    held.drop("a")
    held.drop("never there")
    counts = held.take_counts()
    assert (counts.num_loads, counts.num_evictions, counts.num_bytes) == (1, 0, 0)
    for digest in "abc":
        bring(held, digest)
    assert held.held() == ["b", "c"]


def test_the_callers_mapping_is_emptied_before_others_take_its_memory() -> None:
    held = slots(1)
    batches = held.together(tensors("a", "b"))
    first = next(batches)
    assert list(first) == ["a"]
    next(batches)
    assert "a" not in first
