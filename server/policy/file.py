"""From a policy file to a policy: every field known, every value in its place, or every mistake by line.

::

    version: 1                      # of this format
    fallbacks: forbidden            # the only value: a selection that is unavailable is an error
    required: [safety]              # always in front; no request takes it away
    default: tone@1.2.0             # what a request gets that names nothing
    prepared_only: false            # whether `a, b` needs a prepared composition
    require_choice: false           # whether a request has to name something, if only `none`
    share_cache: false              # whether keys and tenants share the prefix cache of their prompts
    alias: all                      # what `model: "<served name>:<patch>"` may name: all, or a list
    others: RULE                    # callers without a listed key and without a tenant; left out: refused
    keys:
      - name: research              # goes into the audit log
        sha256: 9f86d081...         # of the key
        allow: ..., default: ..., allow_none: ...
    tenants:
      header: X-Tenant
      trusted: [10.0.0.0/8, unix]   # addresses of the gateway
      required: false
      rules: {acme: RULE}
      others: RULE                  # tenants without a rule; left out: refused

    RULE: {allow: all | [reference, ...], default: selection | none, allow_none: false}

Where a rule leaves something out, it allows nothing: ``allow`` is empty and ``allow_none`` is false.
"""

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from patches.headers import DIGEST_HEADER, PATCH_HEADER
from server.policy.caller import MAX_TENANT_LENGTH, TENANT_PATTERN
from server.policy.document import MAX_FILE_BYTES, Node, parse_document
from server.policy.errors import Place, PolicyFileError
from server.policy.keys import KeyRing
from server.policy.reader import Reader
from server.policy.rules import ALL, Allowance, Policy, Rule, Tenants
from server.versions.selection import OptOut, Wish

FORMAT_VERSION = "1"

_FIELDS = (
    *("version", "fallbacks", "required", "default", "prepared_only", "require_choice", "share_cache"),
    *("alias", "others", "keys", "tenants"),
)
_RULE_FIELDS = ("allow", "default", "allow_none")
_TENANT_FIELDS = ("header", "trusted", "required", "rules", "others")

_KEY_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_HEADER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,63}")
#: Headers that mean something else already.
_TAKEN_HEADERS = frozenset(
    (PATCH_HEADER.lower(), DIGEST_HEADER.lower(), "authorization", "x-api-key", "x-request-id", "host",
     "cookie", "content-type", "content-length", "transfer-encoding", "connection", "forwarded",
     "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-real-ip")
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class PolicyFile:
    """A policy and the file that it was read from."""

    policy: Policy
    #: SHA-256 of the file's bytes.
    digest: str
    data: bytes = field(default=b"", repr=False)


def load_policy(path: Path) -> PolicyFile:
    """Read a policy file.

    Raises:
        OSError: It can't be read.
        PolicyFileError: It is no policy; names every mistake.
    """
    with path.open("rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    return PolicyFile(parse_policy(data), f"sha256:{hashlib.sha256(data).hexdigest()}", data)


def parse_policy(data: bytes) -> Policy:
    """Parse the bytes of a policy file.

    Raises:
        PolicyFileError: They are no policy; names every mistake.
    """
    root = parse_document(data)
    reader = Reader()
    policy = _policy(reader, root)
    if reader.problems or policy is None:
        raise PolicyFileError(sorted(reader.problems))
    return policy


def _policy(reader: Reader, root: Node) -> Policy | None:
    fields = reader.fields(root, "the policy", _FIELDS)
    if fields is None:
        return None
    _check_format(reader, fields, root.place)
    required = reader.references(fields.get("required"), "required")
    default = reader.selection(fields.get("default"), "default")
    if isinstance(default, OptOut):
        reader.note(fields["default"].place, "default: 'none' goes into a rule; leave the field out here")
        default = None
    rules = _Rules(reader, is_none_possible=not required)
    alias, allows_none = ALL, True
    if "alias" in fields:
        alias, allows_none = reader.allowance(fields["alias"], "alias", may_hold_none=True)
    others = rules.rule(fields.get("others"), "others")
    ring, key_rules = rules.keys(fields.get("keys"))
    tenants = rules.tenants(fields.get("tenants"))
    return Policy(
        required=required,
        default=default,
        alias=Rule("alias", alias, allow_none=allows_none),
        others=others,
        key_ring=ring,
        key_rules=MappingProxyType(key_rules),
        tenants=tenants,
        prepared_only=reader.boolean(fields.get("prepared_only"), "prepared_only", default=False),
        require_choice=reader.boolean(fields.get("require_choice"), "require_choice", default=False),
        share_cache=reader.boolean(fields.get("share_cache"), "share_cache", default=False),
    )


def _check_format(reader: Reader, fields: dict[str, Node], place: Place) -> None:
    if "version" not in fields:
        reader.note(place, f"version: missing; this release reads `version: {FORMAT_VERSION}`")
    elif reader.text(fields["version"], "version") not in (FORMAT_VERSION, None):
        reader.note(fields["version"].place, f"version: this release reads only version {FORMAT_VERSION}")
    if "fallbacks" in fields and reader.text(fields["fallbacks"], "fallbacks") not in ("forbidden", None):
        reader.note(
            fields["fallbacks"].place,
            "fallbacks: the only value is `forbidden`: a selection that is unavailable is always an error",
        )


class _Rules:
    """Reads the parts of a file that say who may have what."""

    def __init__(self, reader: Reader, *, is_none_possible: bool) -> None:
        self._reader = reader
        #: Whether the base model can ever answer.
        self._is_none_possible = is_none_possible

    def rule(self, node: Node | None, label: str) -> Rule | None:
        """Read a rule; ``None`` where there is none."""
        if node is None:
            return None
        fields = self._reader.fields(node, label, _RULE_FIELDS)
        return self._rule_of(fields, label) if fields is not None else None

    def _rule_of(self, fields: dict[str, Node], label: str) -> Rule:
        reader = self._reader
        allow = Allowance()
        if "allow" in fields:
            allow, _ = reader.allowance(fields["allow"], f"{label}.allow")
        default: Wish | None = reader.selection(fields.get("default"), f"{label}.default")
        allow_none = reader.boolean(fields.get("allow_none"), f"{label}.allow_none", default=False)
        if allow_none and not self._is_none_possible:
            reader.note(
                fields["allow_none"].place,
                f"{label}.allow_none: `none` is unavailable where patches are required; leave it out",
            )
        if isinstance(default, OptOut) and not allow_none:
            reader.note(
                fields["default"].place, f"{label}.default: 'none' needs `allow_none: true` beside it"
            )
        return Rule(label, allow, default, allow_none)

    def keys(self, node: Node | None) -> tuple[KeyRing, dict[str, Rule]]:
        """Read the listed keys: their hashes, and a rule for each."""
        reader = self._reader
        hashes: dict[str, bytes] = {}
        rules: dict[str, Rule] = {}
        for index, item in enumerate(reader.items(node, "keys") if node is not None else ()):
            fields = reader.fields(item, f"keys[{index}]", ("name", "sha256", *_RULE_FIELDS))
            if fields is None:
                continue
            for missing in {"name", "sha256"} - fields.keys():
                reader.note(item.place, f"keys[{index}].{missing}: missing")
            name = reader.matching(fields.get("name"), f"keys[{index}].name", _KEY_NAME, "a-z, 0-9 and ._-")
            label = f"keys.{name or index}"
            digest = self._hash(fields.get("sha256"), f"{label}.sha256")
            rule = self._rule_of(fields, label)
            if name is None or digest is None:
                continue
            if name in rules:
                reader.note(fields["name"].place, f"{label}: another key has this name already")
            if digest in hashes.values():
                reader.note(fields["sha256"].place, f"{label}.sha256: another key has this hash already")
            hashes[name], rules[name] = digest, rule
        return KeyRing(hashes), rules

    def _hash(self, node: Node | None, label: str) -> bytes | None:
        # The value is not repeated in the message: someone may have pasted the key itself.
        text = self._reader.text(node, label) if node is not None else None
        if text is None or node is None:
            return None
        if not re.fullmatch(r"[0-9a-f]{64}", text):
            self._reader.note(
                node.place, f"{label}: expected the key's SHA-256 as 64 of 0-9, a-f; never the key itself"
            )
            return None
        return bytes.fromhex(text)

    def tenants(self, node: Node | None) -> Tenants | None:
        """Read what a gateway's header can name."""
        reader = self._reader
        fields = reader.fields(node, "tenants", _TENANT_FIELDS) if node is not None else None
        if fields is None or node is None:
            return None
        for missing in {"header", "trusted"} - fields.keys():
            reader.note(node.place, f"tenants.{missing}: missing")
        header = reader.matching(fields.get("header"), "tenants.header", _HEADER_NAME, "letters, digits, '-'")
        if header is not None and header.lower() in _TAKEN_HEADERS:
            reader.note(fields["header"].place, f"tenants.header: {header} means something else already")
        trusted = reader.peers(fields.get("trusted"), "tenants.trusted")
        is_required = reader.boolean(fields.get("required"), "tenants.required", default=False)
        rules = {}
        for key, rule in reader.entries(fields.get("rules"), "tenants.rules"):
            if not TENANT_PATTERN.fullmatch(key.text):
                reader.note(
                    key.place,
                    f"tenants.rules: expected a tenant of 1 to {MAX_TENANT_LENGTH} of A-Z, a-z, 0-9 and "
                    f"._:@/+=-, got {key.text[:80]!r}",
                )
            read = self.rule(rule, f"tenants.{key.text[:64]}")
            if read is not None:
                rules[key.text] = read
        others = self.rule(fields.get("others"), "tenants.others")
        return Tenants(
            (header or "").lower().encode("ascii"), trusted, MappingProxyType(rules), others, is_required
        )
