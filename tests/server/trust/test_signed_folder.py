"""The watched folder, real events, and signatures that come before or after their patches."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from patches.signing.signature import signature_path
from server.catalog.folder import PatchFolder
from tests.server.stand import Stand

Publish = Callable[..., Path]


@pytest.fixture
async def watching(strict: Any) -> AsyncIterator[PatchFolder]:
    async with PatchFolder(strict.folder, strict.catalog, rescan_s=0.2) as folder:
        yield folder


def reasons(stand: Stand) -> list[str]:
    return [failure.reason for failure in stand.catalog.failures()]


async def test_a_signature_that_comes_after_its_patch_leads_to_a_load(
    strict: Any, notary: Any, watching: PatchFolder
) -> None:
    path = strict.put()
    await strict.until(lambda: reasons(strict) == ["unsigned"])
    notary.sign(path)
    await strict.until(lambda: "pirate" in strict.catalog.view.names)
    assert reasons(strict) == []


async def test_a_signature_that_is_replaced_by_a_good_one_leads_to_a_load(
    strict: Any, notary: Any, publish: Publish, watching: PatchFolder
) -> None:
    path = publish(by="mallory")
    await strict.until(lambda: reasons(strict) in (["untrusted_signer"], ["unsigned"]))
    notary.sign(path)
    await strict.until(lambda: "pirate" in strict.catalog.view.names)


async def test_a_removed_signature_is_noticed_and_stops_nothing(
    strict: Any, publish: Publish, watching: PatchFolder
) -> None:
    path = publish()
    await strict.until(lambda: "pirate" in strict.catalog.view.names)
    signature_path(path).unlink()
    await strict.until(lambda: reasons(strict) == ["unsigned"])
    assert "pirate" in strict.catalog.view.names


async def test_a_new_version_in_place_serves_when_both_files_are_there(
    strict: Any, notary: Any, publish: Publish, watching: PatchFolder
) -> None:
    path = publish(fill=1.0)
    await strict.until(lambda: "pirate" in strict.catalog.view.names)
    old = strict.catalog.view.names["pirate"].active
    strict.put(fill=2.0)
    await strict.until(lambda: reasons(strict) == ["signature_mismatch"])
    assert strict.catalog.view.names["pirate"].active == old
    notary.sign(path)
    await strict.until(lambda: strict.catalog.view.names["pirate"].active != old)
