"""One worker's stores: each kind has its own, and a digest finds the one that took it."""

from collections.abc import Mapping
from typing import Any

import pytest

from server.engine.stores import Layout, Stores


class Shelf:
    """Holds blobs."""

    def __init__(self) -> None:
        self.held: dict[str, bytes] = {}

    def check(self, digest: str, layout: Layout, facts: Mapping[str, Any]) -> dict[str, Any]:
        return {"digest": digest, "layout": dict(layout), "nbytes": facts["size"]}

    def load(self, digest: str, blob: bytes, is_pinned: bool, facts: Mapping[str, Any]) -> None:
        self.held[digest] = blob

    def loaded(self, digest: str) -> dict[str, Any] | None:
        return {"digest": digest, "layout": {}, "nbytes": len(self.held[digest])}

    def unload(self, digest: str) -> int:
        return len(self.held.pop(digest))

    def resident(self) -> dict[str, int]:
        return {digest: len(blob) for digest, blob in self.held.items()}


def test_a_patch_goes_to_the_store_of_its_kind_and_is_found_by_its_digest() -> None:
    prefixes, vectors = Shelf(), Shelf()
    stores = Stores(prefix=prefixes)
    stores.add("steering", vectors)
    stores.load("p", "prefix", b"12", {}, False)
    stores.load("v", "steering", b"123", {}, False)
    assert (prefixes.held, vectors.held) == ({"p": b"12"}, {"v": b"123"})
    assert stores.check("v", "steering", {}, {"size": 7})["nbytes"] == 7
    assert stores.loaded("v") == {"digest": "v", "layout": {}, "nbytes": 3}
    assert stores.resident() == {"p": 2, "v": 3}
    assert (stores.unload("v"), stores.unload("v"), stores.resident()) == (3, 0, {"p": 2})


def test_a_kind_without_a_store_and_a_digest_that_was_never_sent_are_refused() -> None:
    stores = Stores(prefix=Shelf())
    with pytest.raises(ValueError, match="kind: expected prefix, got steering"):
        stores.load("v", "steering", b"", {}, False)
    with pytest.raises(ValueError, match="v: it was not sent"):
        stores.loaded("v")
