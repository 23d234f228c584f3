"""What workers count, on its way to the exposition."""

from types import SimpleNamespace

from prometheus_client import CollectorRegistry, generate_latest

from server.engine.device_slots import SlotCounts
from server.engine.stats import InjectionLogger, InjectionStats
from server.metrics.patches import PatchMetrics


def test_what_slots_of_several_workers_and_steps_did_adds_up() -> None:
    registry = CollectorRegistry()
    logger = InjectionLogger(PatchMetrics(registry))
    for counts in (SlotCounts(2, 0, 64), SlotCounts(1, 2, -32)):
        one, other = InjectionStats(), InjectionStats()
        one.record_slots(counts)
        other.record_slots(counts)
        stats = SimpleNamespace(kv_connector_stats=one.aggregate(other).data)
        logger.record(stats, None)
    lines = generate_latest(registry).decode().splitlines()
    assert 'policy_patch_tier_loads_total{tier="device"} 6.0' in lines
    assert 'policy_patch_tier_evictions_total{tier="device"} 4.0' in lines
    assert 'policy_patch_tier_bytes{tier="device"} 64.0' in lines


def test_slots_that_did_nothing_are_nothing_to_report() -> None:
    stats = InjectionStats()
    stats.record_slots(SlotCounts())
    assert stats.is_empty()


def test_what_is_pinned_in_several_engines_adds_up() -> None:
    registry = CollectorRegistry()
    logger = InjectionLogger(PatchMetrics(registry))
    for changes in ({"limit": 16}, {"blocks": 5, "limit": 16}, {"blocks": -2}):
        stats = InjectionStats()
        stats.record_pins(**changes)
        logger.record(SimpleNamespace(kv_connector_stats=InjectionStats().aggregate(stats).data), None)
    lines = generate_latest(registry).decode().splitlines()
    assert "policy_patch_pinned_blocks 3.0" in lines
    assert "policy_patch_pinned_blocks_limit 32.0" in lines
