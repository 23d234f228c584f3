"""Which listed key a request holds: found without the keys themselves, and in constant time.

The file holds SHA-256 hashes. A presented key is hashed, and the hash is looked up under an HMAC with a
secret of this process: how long the look-up takes depends on bytes that no outsider can predict, and the
match itself is compared in constant time. So the cost does not grow with the number of keys either.
"""

import hashlib
import hmac
import os
from collections.abc import Mapping
from types import MappingProxyType


class KeyRing:
    """Hashes of keys, by name. Two are equal where they hold the same."""

    __slots__ = ("_blind", "_index", "hashes")

    def __init__(self, hashes: Mapping[str, bytes] | None = None) -> None:
        """Make a ring.

        Args:
            hashes: Name of a key -> SHA-256 of it; no two alike.
        """
        self.hashes = MappingProxyType(dict(hashes or {}))
        self._blind = os.urandom(32)
        self._index = {self._blinded(digest): (name, digest) for name, digest in self.hashes.items()}

    def __bool__(self) -> bool:
        return bool(self.hashes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KeyRing) and self.hashes == other.hashes

    def __hash__(self) -> int:
        return hash(frozenset(self.hashes))

    def name_of(self, key: bytes) -> str | None:
        """Return the name of ``key``; ``None`` where it is not listed."""
        digest = hashlib.sha256(key).digest()
        name, listed = self._index.get(self._blinded(digest), (None, b"\0" * 32))
        return name if hmac.compare_digest(listed, digest) else None

    def _blinded(self, digest: bytes) -> bytes:
        return hmac.digest(self._blind, digest, "sha256")
