"""Reads values out of a parsed policy file, and notes every mistake with its place instead of stopping."""

import ipaddress
import re
from collections.abc import Sequence

from server.errors import MalformedPatchName
from server.policy.connection import UNIX_PEER, Network, TrustedPeers
from server.policy.document import Fields, Items, Node, Text
from server.policy.errors import Place, Problem
from server.policy.rules import ALL, Allowance
from server.versions.selection import OptOut, PatchRef, Wish, parse_wish

_FULL_DIGEST_LENGTH = len("sha256:") + 64

_KINDS = {Text: "a text", Items: "a list", Fields: "a mapping"}


class Reader:
    """One reading of one file. A method that notes a problem returns the value that allows least."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def note(self, place: Place, message: str) -> None:
        """Note a mistake."""
        self.problems.append(Problem(place, message))

    def fields(self, node: Node, label: str, known: Sequence[str]) -> dict[str, Node] | None:
        """Read a mapping whose keys are all among ``known``."""
        if not isinstance(node, Fields):
            self._expected(node, label, f"a mapping of {', '.join(known)}")
            return None
        for key, _ in node.fields:
            if key.text not in known:
                self.note(key.place, f"{label}: unknown field {key.text[:64]!r}; expected {', '.join(known)}")
        return {key.text: value for key, value in node.fields}

    def entries(self, node: Node | None, label: str) -> tuple[tuple[Text, Node], ...]:
        """Read a mapping with keys of any kind."""
        if node is None:
            return ()
        if not isinstance(node, Fields):
            self._expected(node, label, "a mapping")
            return ()
        return node.fields

    def items(self, node: Node, label: str) -> tuple[Node, ...]:
        """Read a list."""
        if not isinstance(node, Items):
            self._expected(node, label, "a list")
            return ()
        return node.items

    def text(self, node: Node, label: str) -> str | None:
        """Read a text that is not empty."""
        if not isinstance(node, Text):
            self._expected(node, label, "a text")
            return None
        if not node.text or (node.text in ("~", "null") and not node.is_quoted):
            self.note(node.place, f"{label}: expected a text, got nothing; leave the field out instead")
            return None
        return node.text

    def matching(
        self, node: Node | None, label: str, pattern: re.Pattern[str], characters: str
    ) -> str | None:
        """Read a text of up to 64 ``characters``."""
        text = self.text(node, label) if node is not None else None
        if text is None or node is None:
            return None
        if not pattern.fullmatch(text):
            self.note(node.place, f"{label}: expected 1 to 64 of {characters}, got {text[:80]!r}")
            return None
        return text

    def boolean(self, node: Node | None, label: str, *, default: bool) -> bool:
        """Read ``true`` or ``false``; no other spelling counts."""
        if node is None:
            return default
        if isinstance(node, Text) and node.text in ("true", "false") and not node.is_quoted:
            return node.text == "true"
        got = repr(node.text[:80]) if isinstance(node, Text) else _KINDS[type(node)]
        self.note(node.place, f"{label}: expected true or false, got {got}")
        return False

    def selection(self, node: Node | None, label: str) -> Wish | None:
        """Read a selection as a header has it, or a list of references."""
        if node is None:
            return None
        if isinstance(node, Items):
            return self.references(node, label) or None
        text = self.text(node, label)
        return self._wish(node.place, text, label) if text is not None else None

    def references(self, node: Node | None, label: str) -> tuple[PatchRef, ...]:
        """Read a list of references, each at most once."""
        found: dict[PatchRef, Place] = {}
        for item in self.items(node, label) if node is not None else ():
            ref = self._reference(item, label)
            if ref in found:
                self.note(item.place, f"{label}: '{ref}' stands in {found[ref]} already")
            elif ref is not None:
                found[ref] = item.place
        return tuple(found)

    def allowance(self, node: Node, label: str, *, may_hold_none: bool = False) -> tuple[Allowance, bool]:
        """Read ``all`` or a list of references, and whether ``none`` is among them (with ``all`` it is)."""
        if isinstance(node, Text):
            if node.text == "all" and not node.is_quoted:
                return ALL, True
            self.note(node.place, f"{label}: expected `all` or a list, got {node.text[:80]!r}")
            return Allowance(), False
        has_none = may_hold_none and isinstance(node, Items) and any(_is_none(item) for item in node.items)
        if has_none and isinstance(node, Items):
            node = Items(node.place, tuple(item for item in node.items if not _is_none(item)))
        return Allowance(entries=self.references(node, label)), has_none

    def peers(self, node: Node | None, label: str) -> TrustedPeers:
        """Read addresses, networks and ``unix``."""
        networks: list[Network] = []
        has_unix = False
        items = self.items(node, label) if node is not None else ()
        if node is not None and not items:
            self.note(
                node.place, f"{label}: expected at least one address; without one no tenant is accepted"
            )
        for item in items:
            text = self.text(item, label)
            if text == UNIX_PEER:
                has_unix = True
            elif text is not None:
                networks += self._network(item.place, text, label)
        return TrustedPeers(tuple(networks), has_unix)

    def _network(self, place: Place, text: str, label: str) -> list[Network]:
        try:
            network = ipaddress.ip_network(text, strict=True)
        except ValueError as error:
            self.note(place, f"{label}: expected an address, a network such as 10.0.0.0/8, or unix: {error}")
            return []
        if network.prefixlen == 0:
            self.note(place, f"{label}: {text} lets any caller name a tenant; name the gateway's addresses")
            return []
        return [network]

    def _reference(self, node: Node, label: str) -> PatchRef | None:
        text = self.text(node, label)
        if text is None:
            return None
        if "," in text:
            self.note(node.place, f"{label}: expected one reference for each item, got {text[:80]!r}")
            return None
        wish = self._wish(node.place, text, label)
        if isinstance(wish, OptOut):
            self.note(node.place, f"{label}: expected a patch, got 'none'")
            return None
        return wish[0] if wish is not None else None

    def _wish(self, place: Place, text: str, label: str) -> Wish | None:
        try:
            wish = parse_wish(text, label)
        except MalformedPatchName as error:
            self.note(place, error.message)
            return None
        for ref in wish if isinstance(wish, tuple) else ():
            if ref.digest is not None and len(ref.digest) != _FULL_DIGEST_LENGTH:
                self.note(place, f"{label}: expected the whole digest (64 digits), got {ref.digest}")
                return None
        return wish

    def _expected(self, node: Node, label: str, what: str) -> None:
        self.note(node.place, f"{label}: expected {what}, got {_KINDS[type(node)]}")


def _is_none(node: Node) -> bool:
    return isinstance(node, Text) and node.text == OptOut.NONE.value
