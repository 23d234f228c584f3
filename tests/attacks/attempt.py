"""One try to get past a policy, and the policy and the patches that all of them are made for."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

HERE = "127.0.0.1"
#: Connections from here, and from nowhere else, may name a tenant. On Linux all of 127/8 can be bound.
GATEWAY = "127.0.0.2"
RESEARCH_KEY = "research-key"
KEY_HASH = hashlib.sha256(RESEARCH_KEY.encode()).hexdigest()

POLICY = f"""\
version: 1
required: [safety]
alias: [pirate]
others: {{allow: [pirate, "pinned@1.0.0"]}}
keys:
  - {{name: research, sha256: {KEY_HASH}, allow: [pirate, sailor]}}
tenants:
  header: X-Tenant
  trusted: [{GATEWAY}]
  rules:
    acme: {{allow: [sailor]}}
    small: {{allow: []}}
"""

#: Name@version of each plain patch.
PLAIN = (
    "safety@1.0.0",
    "safety@0.9.0",
    "pirate@1.0.0",
    "sailor@1.0.0",
    "secret@1.0.0",
    "pinned@1.0.0",
    "pinned@2.0.0",
)
#: Name of each composition -> its components in order. Many of them are baits.
COMPOSED = {
    "safety.pirate": ("safety@1.0.0", "pirate@1.0.0"),
    "safety.sailor": ("safety@1.0.0", "sailor@1.0.0"),
    "safety.secret": ("safety@1.0.0", "secret@1.0.0"),
    "safety.pinned2": ("safety@1.0.0", "pinned@2.0.0"),
    "old-pirate": ("safety@0.9.0", "pirate@1.0.0"),
    "safety.old": ("safety@1.0.0", "safety@0.9.0"),
    "pirate-safety": ("pirate@1.0.0", "safety@1.0.0"),
    "secret.pirate": ("secret@1.0.0", "pirate@1.0.0"),
    "pirate.secret": ("pirate@1.0.0", "secret@1.0.0"),
    "safety.pirate.secret": ("safety@1.0.0", "pirate@1.0.0", "secret@1.0.0"),
    "safety.secret.pirate": ("safety@1.0.0", "secret@1.0.0", "pirate@1.0.0"),
}

CHAT = "/v1/chat/completions"
SAFE_PIRATE = "safety.pirate"


@dataclass(frozen=True)
class Attempt:
    """One try, and the only patch that may answer it; ``None`` where nothing may."""

    what: str
    answer: str | None = None
    #: Value of X-Policy-Patch; ``{secret}`` and the like stand for digests.
    header: bytes | str | None = None
    #: ``demo`` stands for the served name.
    model: str = "demo"
    headers: tuple[tuple[str | bytes, str | bytes], ...] = ()
    path: str = CHAT
    peer: str = HERE
    body: dict[str, Any] = field(default_factory=dict)
    method: str = "POST"

    @staticmethod
    def with_digests(text: Any, digests: Mapping[str, str]) -> Any:
        """Put digests in place of ``{name@version}``; ``{name@version:19}`` is the beginning of one."""
        if not isinstance(text, str):
            return text

        def digest_of(match: re.Match[str]) -> str:
            return digests[match[1]][: int(match[2]) if match[2] else None]

        return re.sub(r"\{([a-z]+@[0-9.]+)(?::([0-9]+))?\}", digest_of, text)


def bearer(text: str) -> tuple[str, str]:
    return ("Authorization", f"Bearer {text}")


KEY = bearer(RESEARCH_KEY)
OPT_OUT = ("x-policy-patch", "none")
