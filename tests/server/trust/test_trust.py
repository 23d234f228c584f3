"""Which files are accepted, file by file, and how that changes while the server runs."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from patches.format import read_patch
from patches.signing.signature import signature_path
from server.errors import FileRefused
from server.trust.trust import SETTLE_S, Trust, TrustError, TrustSources
from server.versions.view import ServedPatch
from tests.server.stand import Stand

Publish = Callable[..., Path]


def check(trust: Trust, path: Path) -> str | None:
    """The reason of a refusal; ``None`` where the file passes."""
    try:
        trust.check(path, read_patch(path))
    except FileRefused as refusal:
        return refusal.reason
    return None


def serve(trust: Trust, path: Path) -> ServedPatch:
    """What the catalog does with a file that passes."""
    patch = read_patch(path)
    manifest = patch.manifest
    served = ServedPatch(
        manifest.name, manifest.version, patch.digest, manifest.num_virtual_tokens, manifest, 0
    )
    trust.adopt(served, trust.check(path, patch))
    return served


def refusal(trust: Trust, patch: ServedPatch) -> str | None:
    found = trust.refusal(patch)
    return found.reason if found is not None else None


def test_without_sources_everything_is_believed(stand: Stand) -> None:
    trust = Trust()
    path = stand.put()
    assert check(trust, path) is None
    assert refusal(trust, serve(trust, path)) is None
    assert not trust.is_signature_required


def test_only_trusted_signatures_pass(notary: Any, stand: Stand, publish: Publish) -> None:
    trust = notary.trust()
    assert check(trust, publish()) is None
    assert check(trust, stand.put("naked")) == "unsigned"
    assert check(trust, publish("odd", by="mallory")) == "untrusted_signer"
    empty = stand.put("empty")
    signature_path(empty).write_bytes(b"")
    assert check(trust, empty) == "bad_signature"


def test_a_signature_of_another_file_does_not_pass(notary: Any, publish: Publish) -> None:
    one, other = publish("one"), publish("other")
    shutil.copy(signature_path(one), signature_path(other))
    assert check(notary.trust(), other) == "signature_mismatch"


def test_who_signed_and_when_is_known_of_what_is_served(notary: Any, publish: Publish) -> None:
    trust = notary.trust()
    signature = trust.signature_of(serve(trust, publish()).digest)
    assert signature is not None
    assert signature.key.signer == "alice"


def test_a_signed_bound_outlives_its_file_and_the_process(notary: Any, publish: Publish) -> None:
    trust = notary.trust()
    old, new = publish(version="1.0.0"), publish(version="2.0.0", minimum_version="2.0.0")
    assert check(trust, old) is None
    serve(trust, new)
    assert trust.save()
    new.unlink()
    assert check(trust, old) == "below_minimum_version"
    assert check(notary.trust(), old) == "below_minimum_version"
    assert notary.trust().minimum_versions == {"pirate": "2.0.0"}


def test_a_bound_of_a_patch_that_never_served_binds_nobody(notary: Any, publish: Publish) -> None:
    trust = notary.trust()
    old, new = publish(version="1.0.0"), publish(version="2.0.0", minimum_version="2.0.0")
    assert check(trust, new) is None
    assert check(trust, old) is None


def test_a_permitted_version_passes_until_the_bound_rises(notary: Any, publish: Publish) -> None:
    trust = notary.trust()
    old = publish(version="1.0.0")
    serve(trust, publish(version="2.0.0", minimum_version="2.0.0"))
    trust.permit("pirate", "1.0.0")
    assert check(trust, old) is None
    assert check(notary.trust(), old) is None
    serve(trust, publish(version="3.0.0", minimum_version="2.1.0"))
    assert check(trust, old) == "below_minimum_version"


def test_a_composition_is_judged_by_its_parts(notary: Any, publish: Publish) -> None:
    trust = notary.trust()
    part = serve(trust, publish("pirate", "1.0.0"))
    components = [
        {"name": part.name, "version": part.version, "digest": part.digest},
        {"name": "other", "version": "1.0.0", "digest": "sha256:" + "9" * 64},
    ]
    both = publish("both", origin={"method": "compose", "components": components})
    assert check(trust, both) is None
    notary.revoke(part.digest)
    trust.refresh()
    assert check(trust, both) == "revoked"
    notary.revoke()
    serve(trust := notary.trust(), publish("pirate", "2.0.0", minimum_version="2.0.0"))
    assert check(trust, both) == "below_minimum_version"


def test_a_revocation_takes_effect_on_what_is_served(notary: Any, publish: Publish) -> None:
    trust = notary.trust()
    path = publish()
    patch = serve(trust, path)
    assert refusal(trust, patch) is None
    notary.revoke(patch.digest)
    assert trust.refresh()
    assert refusal(trust, patch) == check(trust, path) == "revoked"


def test_a_revocation_works_without_keys(notary: Any, stand: Stand) -> None:
    path = stand.put()
    notary.revoke(read_patch(path).digest)
    assert check(Trust(TrustSources(revoked=notary.revoked)), path) == "revoked"


def test_a_key_that_is_not_trusted_any_more_takes_its_patches_along(notary: Any, publish: Publish) -> None:
    trust = notary.trust()
    path = publish()
    patch = serve(trust, path)
    notary.trust_key("bob")
    notary.distrust_key("alice")
    assert trust.refresh()
    assert refusal(trust, patch) == check(trust, path) == "untrusted_signer"
    notary.sign(path, by="bob")
    assert refusal(trust, serve(trust, path)) is None


@pytest.mark.parametrize("damage", ["gone", "no digest", "binary", "a folder"])
def test_a_list_that_cannot_be_read_leaves_the_last_one_in_force(
    damage: str, notary: Any, publish: Publish, caplog: pytest.LogCaptureFixture
) -> None:
    path = publish()
    notary.revoke(read_patch(path).digest)
    trust = notary.trust()
    notary.revoked.unlink()
    match damage:
        case "no digest":
            notary.revoked.write_text("pirate@1.0.0\n")
        case "binary":
            notary.revoked.write_bytes(b"\xff")
        case "a folder":
            notary.revoked.mkdir()
    with caplog.at_level(logging.ERROR, "server.trust.trust"):
        for _ in range(3):
            assert not trust.refresh()
    assert check(trust, path) == "revoked"
    assert len(trust.problems) == 1
    assert str(notary.folder) not in trust.problems[0]
    assert len(caplog.records) == 1
    if damage == "a folder":
        notary.revoked.rmdir()
    notary.revoke(read_patch(path).digest)
    trust.refresh()
    assert trust.problems == ()


def test_a_list_that_got_shorter_counts_only_when_it_stays_so(notary: Any, publish: Publish) -> None:
    """A list that is rewritten in place is empty for a moment."""
    path = publish()
    notary.revoke(read_patch(path).digest)
    trust = notary.trust()
    notary.revoke()
    assert not trust.refresh()
    notary.clock.now_s += SETTLE_S / 2
    assert not trust.refresh()
    assert check(trust, path) == "revoked"
    notary.clock.now_s += SETTLE_S / 2
    assert trust.refresh()
    assert check(trust, path) is None


def test_what_is_new_on_a_shorter_list_counts_at_once(notary: Any, publish: Publish) -> None:
    one, other = publish("one"), publish("other")
    notary.revoke(read_patch(one).digest)
    trust = notary.trust()
    notary.revoke(read_patch(other).digest)
    assert trust.refresh()
    assert check(trust, one) == check(trust, other) == "revoked"


@pytest.mark.parametrize("damage", ["empty", "gone", "bad"])
def test_keys_that_cannot_be_read_leave_the_last_ones_in_force(
    damage: str, notary: Any, publish: Publish
) -> None:
    trust = notary.trust()
    path = publish()
    notary.distrust_key("alice")
    if damage == "gone":
        notary.trusted.rmdir()
    elif damage == "bad":
        (notary.trusted / "bob.pub").write_text("no key")
    assert not trust.refresh()
    assert check(trust, path) is None
    assert len(trust.problems) == 1


@pytest.mark.parametrize("damage", ["keys", "revoked", "state"])
def test_a_server_that_cannot_tell_whom_to_trust_does_not_start(damage: str, notary: Any) -> None:
    match damage:
        case "keys":
            notary.distrust_key("alice")
        case "revoked":
            notary.revoked.write_text("all of them\n")
        case "state":
            notary.state.mkdir()
            (notary.state / "minimum-versions.json").write_text("{")
    with pytest.raises(TrustError, match={"keys": "--trusted-keys"}.get(damage, f"--{damage}")):
        notary.trust()


def test_private_keys_on_the_server_are_warned_about(notary: Any, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copy(notary.folder / "keys" / "alice.key", notary.trusted)
    notary.trust()
    assert "private keys lie beside" in caplog.text
