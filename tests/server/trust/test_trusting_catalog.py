"""What a catalog serves when it demands signatures: only what is trusted, and only as long as it is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from patches.signing.signature import signature_path
from server.catalog.trust_watch import TrustWatch
from server.versions.view import FileFailure, ServedPatch
from tests.server.stand import Stand

Publish = Callable[..., Path]


@pytest.fixture
def watch(strict: Any) -> TrustWatch:
    """Looks when a test says so."""
    return TrustWatch(strict.catalog.trust, strict.catalog, strict.metrics)


def served(stand: Stand) -> dict[str, str]:
    """Reference -> digest of everything that a request can get."""
    return {
        patch.reference: patch.digest
        for named in stand.catalog.view.names.values()
        for patch in named.versions
    }


def reasons(stand: Stand) -> dict[str, str]:
    return {failure.file: failure.reason for failure in stand.catalog.failures()}


async def test_a_signed_file_is_served(strict: Any, publish: Publish) -> None:
    patch = await strict.catalog.load_file(publish())
    assert isinstance(patch, ServedPatch)
    assert served(strict) == {"pirate@1.0.0": patch.digest}


@pytest.mark.parametrize(
    ("by", "code", "reason"),
    [(None, "patch_unsigned", "unsigned"), ("mallory", "signer_untrusted", "untrusted_signer")],
)
async def test_a_file_that_nobody_trusted_signed_is_refused(
    by: str | None, code: str, reason: str, strict: Any, publish: Publish
) -> None:
    path = publish(by=by) if by is not None else strict.put()
    failure = await strict.catalog.load_file(path)
    assert isinstance(failure, FileFailure)
    assert (failure.code, failure.reason, failure.name) == (code, reason, "pirate")
    assert served(strict) == {}
    assert strict.residency.calls == []
    assert f'policy_patch_load_failures_total{{reason="{reason}"}} 1.0' in strict.exposition()


async def test_a_bad_signature_changes_nothing_that_serves(strict: Any, publish: Publish) -> None:
    path = publish(fill=1.0)
    old = await strict.catalog.load_file(path)
    strict.put(fill=2.0)
    assert (await strict.catalog.load_file(path)).reason == "signature_mismatch"
    assert served(strict) == {"pirate@1.0.0": old.digest}


async def test_a_signed_bound_takes_lower_versions_out_of_service(strict: Any, publish: Publish) -> None:
    old_path = publish(version="1.0.0")
    old = await strict.catalog.load_file(old_path)
    strict.catalog.residents.acquire(old)
    await strict.catalog.load_file(publish(version="2.0.0", minimum_version="1.5.0"))
    assert list(served(strict)) == ["pirate@2.0.0"]
    assert reasons(strict) == {"pirate-1.0.0.safetensors": "below_minimum_version"}
    assert old.digest in strict.residency.resident
    strict.catalog.residents.release(old)
    await strict.catalog.residents.drained()
    assert old.digest not in strict.residency.resident


@pytest.mark.parametrize("order", [("1.0.0", "2.0.0"), ("2.0.0", "1.0.0")])
async def test_the_order_of_files_does_not_matter_to_a_bound(
    order: tuple[str, str], strict: Any, publish: Publish
) -> None:
    for version in order:
        await strict.catalog.load_file(
            publish(version=version, minimum_version="2.0.0" if version == "2.0.0" else None)
        )
    assert list(served(strict)) == ["pirate@2.0.0"]


async def test_removing_a_patch_does_not_bring_back_what_it_forbade(strict: Any, publish: Publish) -> None:
    """The attack: whoever can write to the folder, but not sign, goes back to a version with a known hole."""
    await strict.catalog.load_file(publish(version="1.0.0"))
    new = publish(version="2.0.0", minimum_version="2.0.0")
    await strict.catalog.load_file(new)
    new.unlink()
    await strict.catalog.forget_file(new)
    assert (await strict.catalog.load_file(publish(version="1.0.0"))).reason == "below_minimum_version"
    assert served(strict) == {}


async def test_a_bound_is_remembered_by_the_next_start(strict: Any, notary: Any, publish: Publish) -> None:
    path = publish(version="2.0.0", minimum_version="2.0.0")
    await strict.catalog.load_file(path)
    await strict.catalog.forget_file(path)
    strict.catalog.intake.trust = notary.trust()
    assert (await strict.catalog.load_file(publish(version="1.0.0"))).reason == "below_minimum_version"


async def test_a_permitted_downgrade_is_served_and_a_withdrawn_one_goes(
    strict: Any, publish: Publish
) -> None:
    await strict.catalog.load_file(publish(version="1.0.0"))
    await strict.catalog.load_file(publish(version="2.0.0", minimum_version="2.0.0"))
    strict.catalog.trust.permit("pirate", "1.0.0")
    await strict.catalog.recheck()
    assert sorted(served(strict)) == ["pirate@1.0.0", "pirate@2.0.0"]
    assert reasons(strict) == {}
    strict.catalog.trust.forbid("pirate", "1.0.0")
    await strict.catalog.recheck()
    assert list(served(strict)) == ["pirate@2.0.0"]


async def test_a_revoked_patch_goes_at_once_and_its_requests_end_in_peace(
    strict: Any, notary: Any, publish: Publish, watch: TrustWatch
) -> None:
    patch = await strict.catalog.load_file(publish())
    strict.catalog.residents.acquire(patch)
    notary.revoke(patch.digest)
    await watch.look()
    assert served(strict) == {}
    assert reasons(strict) == {"pirate-1.0.0.safetensors": "revoked"}
    assert patch.digest in strict.residency.resident
    strict.catalog.residents.release(patch)
    await strict.catalog.residents.drained()
    assert strict.residency.resident == {}


async def test_a_revoked_patch_stays_away_under_another_name_of_its_file(
    strict: Any, notary: Any, publish: Publish, watch: TrustWatch
) -> None:
    path = publish()
    patch = await strict.catalog.load_file(path)
    notary.revoke(patch.digest)
    await watch.look()
    copy = path.with_name("innocent.safetensors")
    copy.write_bytes(path.read_bytes())
    signature_path(copy).write_bytes(signature_path(path).read_bytes())
    assert (await strict.catalog.load_file(copy)).reason == "revoked"
    assert (await strict.catalog.load_file(path)).reason == "revoked"


async def test_a_revoked_active_version_gives_way_to_the_one_below(
    strict: Any, notary: Any, publish: Publish, watch: TrustWatch
) -> None:
    await strict.catalog.load_file(publish(version="1.0.0"))
    bad = await strict.catalog.load_file(publish(version="1.1.0"))
    notary.revoke(bad.digest)
    await watch.look()
    active = strict.catalog.view.names["pirate"].active
    assert active is not None
    assert active.version == "1.0.0"


async def test_what_is_taken_off_the_list_is_served_again(
    strict: Any, notary: Any, publish: Publish, watch: TrustWatch
) -> None:
    patch = await strict.catalog.load_file(publish())
    notary.revoke(patch.digest)
    await watch.look()
    notary.revoke()
    await watch.look()
    assert served(strict) == {}
    notary.clock.now_s += 60
    await watch.look()
    assert served(strict) == {"pirate@1.0.0": patch.digest}
    assert reasons(strict) == {}


async def test_a_key_is_replaced_without_a_gap(
    strict: Any, notary: Any, publish: Publish, watch: TrustWatch
) -> None:
    path = publish()
    patch = await strict.catalog.load_file(path)
    notary.trust_key("bob")
    await watch.look()
    notary.sign(path, by="bob")
    await strict.catalog.load_file(path)
    notary.distrust_key("alice")
    await watch.look()
    assert served(strict) == {"pirate@1.0.0": patch.digest}
    assert strict.residency.calls == [("load", patch.digest)]
    assert strict.catalog.trust.signature_of(patch.digest).key.signer == "bob"


async def test_a_removed_key_takes_its_patches_along(
    strict: Any, notary: Any, publish: Publish, watch: TrustWatch
) -> None:
    await strict.catalog.load_file(publish("old"))
    kept = publish("kept", by="bob")
    notary.trust_key("bob")
    await watch.look()
    await strict.catalog.load_file(kept)
    notary.distrust_key("alice")
    await watch.look()
    assert list(served(strict)) == ["kept@1.0.0"]
    assert reasons(strict) == {"old-1.0.0.safetensors": "untrusted_signer"}


async def test_a_trusted_key_brings_in_what_waited_for_it(
    strict: Any, notary: Any, publish: Publish, watch: TrustWatch
) -> None:
    assert (await strict.catalog.load_file(publish(by="bob"))).reason == "untrusted_signer"
    notary.trust_key("bob")
    await watch.look()
    assert list(served(strict)) == ["pirate@1.0.0"]


async def test_the_metric_says_when_keys_or_list_cannot_be_read(
    strict: Any, notary: Any, watch: TrustWatch
) -> None:
    await watch.look()
    assert "policy_patch_trust_readable 1.0" in strict.exposition()
    notary.revoked.write_text("everything\n")
    await watch.look()
    assert "policy_patch_trust_readable 0.0" in strict.exposition()


async def test_the_watch_looks_by_itself(strict: Any, notary: Any, publish: Publish) -> None:
    patch = await strict.catalog.load_file(publish())
    async with TrustWatch(strict.catalog.trust, strict.catalog, strict.metrics, check_s=0.01):
        notary.revoke(patch.digest)
        await strict.until(lambda: not served(strict))
    assert reasons(strict) == {"pirate-1.0.0.safetensors": "revoked"}


async def test_nothing_ends_the_watch(
    strict: Any, notary: Any, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch = await strict.catalog.load_file(publish())
    refresh, calls = strict.catalog.trust.refresh, []

    def fail_once() -> bool:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("a bug")
        return bool(refresh())

    monkeypatch.setattr(strict.catalog.trust, "refresh", fail_once)
    async with TrustWatch(strict.catalog.trust, strict.catalog, strict.metrics, check_s=0.01):
        notary.revoke(patch.digest)
        await strict.until(lambda: not served(strict))
