"""From bytes to a policy: what is understood, and for every mistake its line and column."""

import hashlib
import ipaddress
import time
from pathlib import Path

import pytest

from server.policy.errors import PolicyFileError
from server.policy.file import load_policy, parse_policy
from server.policy.rules import ALL, Allowance, Policy, Rule
from server.versions.selection import OptOut, PatchRef

HASH = hashlib.sha256(b"key").hexdigest()

FULL = f"""\
version: 1
fallbacks: forbidden
required: [safety, "legal@1.0.0"]
default: tone@1.2.0
alias: [tone, none]
others:
  allow: [tone]
keys:
  - name: research
    sha256: {HASH}
    allow: all
    default: tone, pirate
tenants:
  header: X-Tenant
  trusted: [10.0.0.0/8, "::1", unix]
  required: true
  rules:
    acme/eu: {{allow: ["tone@sha256:{"a" * 64}"], default: [tone, pirate]}}
    "007": {{}}
  others: {{}}
"""


def test_everything_that_a_file_can_say_is_understood() -> None:
    policy = parse_policy(FULL.encode())
    assert policy.required == (PatchRef("safety"), PatchRef("legal", version="1.0.0"))
    assert policy.default == (PatchRef("tone", version="1.2.0"),)
    assert policy.alias == Rule("alias", Allowance(entries=(PatchRef("tone"),)), allow_none=True)
    assert policy.others == Rule("others", Allowance(entries=(PatchRef("tone"),)))
    assert policy.key_ring.name_of(b"key") == "research"
    both = (PatchRef("tone"), PatchRef("pirate"))
    assert policy.key_rules == {"research": Rule("keys.research", ALL, default=both)}
    assert policy.tenants is not None
    assert (policy.tenants.header, policy.tenants.is_required) == (b"x-tenant", True)
    assert policy.tenants.trusted.networks == (
        ipaddress.ip_network("10.0.0.0/8"),
        ipaddress.ip_network("::1"),
    )
    assert policy.tenants.trusted.has_unix
    acme = Allowance(entries=(PatchRef("tone", digest="sha256:" + "a" * 64),))
    assert policy.tenants.rules == {
        "acme/eu": Rule("tenants.acme/eu", acme, default=both),
        "007": Rule("tenants.007"),
    }
    assert policy.tenants.others == Rule("tenants.others")


def test_the_least_that_a_file_says_allows_nothing() -> None:
    assert parse_policy(b"version: 1") == Policy()


def test_a_rule_that_may_have_none_says_so() -> None:
    policy = parse_policy(b"version: 1\nothers: {allow_none: true, default: none, allow: []}")
    assert policy.others == Rule("others", Allowance(), default=OptOut.NONE, allow_none=True)


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        # Fields
        ("required: [a]", "1:1", "version: missing"),
        ("version: 2", "1:10", "reads only version 1"),
        ("version: '2'", "1:10", "reads only version 1"),
        ("version: 1\nrequird: [a]", "2:1", "unknown field 'requird'"),
        ("version: 1\nversion: 1", "2:1", "stands in line 1, column 1 already"),
        ("version: 1\nothers: {allow: [a], alow: [b]}", "2:22", "unknown field 'alow'"),
        ("version: 1\nothers: {allow: [a], allow: [b]}", "2:22", "already"),
        ("version: 1\nfallbacks: allowed", "2:12", "only value is `forbidden`"),
        ("version: 1\nfallbacks: base", "2:12", "only value is `forbidden`"),
        ("- version: 1", "1:1", "expected a mapping of version, fallbacks"),
        ("version: 1\nothers:", "2:8", "expected a mapping of allow, default, allow_none, got a text"),
        ("version: 1\nothers: [a]", "2:9", "expected a mapping"),
        ("version: 1\nrequired: safety", "2:11", "required: expected a list, got a text"),
        ("version: 1\nrequired: {safety: 1}", "2:11", "expected a list, got a mapping"),
        ("version: 1\nrequired: [[safety]]", "2:12", "expected a text, got a list"),
        # References
        ("version: 1\nrequired: [safety, Legal]", "2:20", "got 'Legal'"),
        ("version: 1\nrequired: [safety, safety]", "2:20", "'safety' stands in line 2, column 12 already"),
        ("version: 1\nrequired: ['safety, legal']", "2:12", "one reference for each item"),
        ("version: 1\nrequired: [none]", "2:12", "expected a patch, got 'none'"),
        ("version: 1\nrequired: ['']", "2:12", "got nothing"),
        ("version: 1\nrequired: [~]", "2:12", "got nothing"),
        ("version: 1\nrequired: [null]", "2:12", "got nothing"),
        ("version: 1\nrequired: [safety@1]", "2:12", "expected a semantic version"),
        ("version: 1\nrequired: [safety@sha256:0123456789ab]", "2:12", "the whole digest"),
        ("version: 1\ndefault: none", "2:10", "goes into a rule"),
        ("version: 1\ndefault: ''", "2:10", "got nothing"),
        ("version: 1\ndefault:", "2:9", "got nothing"),
        ("version: 1\ndefault: a,,b", "2:10", "got ''"),
        ("version: 1\ndefault: sаfety", "2:10", "a-z, 0-9"),  # noqa: RUF001
        ("version: 1\nothers: {allow: every}", "2:17", "expected `all` or a list"),
        ("version: 1\nothers: {allow: 'all'}", "2:17", "expected `all` or a list"),
        ("version: 1\nothers: {allow: '*'}", "2:17", "expected `all` or a list"),
        ("version: 1\nothers: {allow: [none]}", "2:18", "expected a patch, got 'none'"),
        ("version: 1\nalias: nothing", "2:8", "expected `all` or a list"),
        # Booleans: the YAML of 2005 reads all of these as true or false.
        ("version: 1\nothers: {allow_none: yes}", "2:22", "expected true or false, got 'yes'"),
        ("version: 1\nothers: {allow_none: no}", "2:22", "expected true or false, got 'no'"),
        ("version: 1\nothers: {allow_none: on}", "2:22", "expected true or false"),
        ("version: 1\nothers: {allow_none: True}", "2:22", "expected true or false"),
        ("version: 1\nothers: {allow_none: 'true'}", "2:22", "expected true or false"),
        ("version: 1\nothers: {allow_none: 1}", "2:22", "expected true or false"),
        ("version: 1\nothers: {allow_none: [true]}", "2:22", "expected true or false, got a list"),
        # Contradictions
        ("version: 1\nrequired: [a]\nothers: {allow_none: true}", "3:22", "where patches are required"),
        ("version: 1\nothers: {default: none}", "2:19", "needs `allow_none: true`"),
        # Keys
        (f"version: 1\nkeys:\n- sha256: {HASH}", "3:3", "keys[0].name: missing"),
        ("version: 1\nkeys:\n- name: a", "3:3", "keys[0].sha256: missing"),
        ("version: 1\nkeys:\n- {name: a, sha256: my-secret-key}", "3:21", "never the key itself"),
        (f"version: 1\nkeys:\n- {{name: a, sha256: {HASH.upper()}}}", "3:21", "64 of 0-9, a-f"),
        (f"version: 1\nkeys:\n- {{name: A, sha256: {HASH}}}", "3:10", "got 'A'"),
        (f"version: 1\nkeys:\n- {{name: a, sha256: {HASH}, key: k}}", "3:87", "unknown field 'key'"),
        (
            f"version: 1\nkeys:\n- {{name: a, sha256: {HASH}}}\n- {{name: b, sha256: {HASH}}}",
            "4:21",
            "another key has this hash",
        ),
        (
            f"version: 1\nkeys:\n- {{name: a, sha256: {HASH}}}\n- {{name: a, sha256: {'0' * 64}}}",
            "4:10",
            "another key has this name",
        ),
        ("version: 1\nkeys: {a: b}", "2:7", "expected a list"),
        # Tenants
        ("version: 1\ntenants: {trusted: [unix]}", "2:10", "tenants.header: missing"),
        ("version: 1\ntenants: {header: X-Tenant}", "2:10", "tenants.trusted: missing"),
        ("version: 1\ntenants: {header: X-Tenant, trusted: []}", "2:38", "at least one address"),
        ("version: 1\ntenants: {header: X_Tenant, trusted: [unix]}", "2:19", "letters, digits"),
        ("version: 1\ntenants: {header: Authorization, trusted: [unix]}", "2:19", "something else already"),
        ("version: 1\ntenants: {header: x-policy-patch, trusted: [unix]}", "2:19", "something else already"),
        ("version: 1\ntenants: {header: X-T, trusted: [10.0.0.1/8]}", "2:34", "has host bits set"),
        ("version: 1\ntenants: {header: X-T, trusted: [0.0.0.0/0]}", "2:34", "lets any caller name a tenant"),
        ("version: 1\ntenants: {header: X-T, trusted: ['::/0']}", "2:34", "lets any caller name a tenant"),
        ("version: 1\ntenants: {header: X-T, trusted: [gateway.local]}", "2:34", "expected an address"),
        ("version: 1\ntenants: {header: X-T, trusted: [unix], rules: {'a b': {}}}", "2:49", "got 'a b'"),
        ("version: 1\ntenants: {header: X-T, trusted: [unix], rules: [a]}", "2:48", "expected a mapping"),
        # YAML that a policy has no use for
        ("", "1:1", "the file is empty"),
        ("# nothing", "1:1", "the file is empty"),
        ("version: 1\nothers: &a {allow: [b]}", "2:9", "may not use YAML anchors"),
        ("version: 1\nothers: *a", "2:9", "may not use YAML aliases"),
        ("version: !!int 1", "1:10", "may not use YAML tags"),
        ("version: 1\nothers: !!python/object:os.system {}", "2:9", "may not use YAML tags"),
        ("version: 1\nothers: !foo {}", "2:9", "may not use YAML tags"),
        ("%YAML 1.1\n---\nversion: 1", "1:1", "may not hold YAML directives"),
        ("version: 1\n---\nversion: 1", "2:1", "expected one YAML document"),
        ("version: 1\ndefault: |\n  safety\n", "2:10", "a text in one line"),
        ("version: 1\ndefault: >-\n  safety\n", "2:10", "a text in one line"),
        ("version: 1\n<<: {required: [a]}", "2:1", "unknown field '<<'"),
        ("version: 1\n? [a]\n: b", "2:3", "expected a text as key"),
        ("version: 1\nothers: {allow: [a", None, "no YAML"),
        ("version: 1\n\tothers: {}", None, "no YAML"),
        ("version: 1\nothers: }", "2:9", "no YAML"),
        ("a: [[[[[[[[[[[[1]]]]]]]]]]]]", "1:11", "at most 8 levels"),
        ("version: 1\ndefault: a\x07b", "2:1", "does not allow"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_place(text: str, place: str | None, message: str) -> None:
    with pytest.raises(PolicyFileError) as caught:
        parse_policy(text.encode())
    found = [(f"{p.place.line}:{p.place.column}", p.message) for p in caught.value.problems]
    assert any((place is None or where == place) and message in what for where, what in found), found


def test_every_mistake_is_named_in_the_order_of_lines() -> None:
    text = b"version: 2\nrequired: [A]\nothers: {allow_none: maybe}\nkeyz: []"
    with pytest.raises(PolicyFileError) as caught:
        parse_policy(text)
    assert [p.place.line for p in caught.value.problems] == [1, 2, 3, 4]
    assert str(caught.value).count("\n") == 3


def test_a_key_that_was_pasted_in_place_of_its_hash_is_not_repeated() -> None:
    with pytest.raises(PolicyFileError) as caught:
        parse_policy(b"version: 1\nkeys: [{name: a, sha256: my-secret-key}]")
    assert "my-secret-key" not in str(caught.value)


@pytest.mark.parametrize("data", [b"version: 1\n\xff", b"\xff\xfev\x00", b"version: \xc3"])
def test_what_is_no_utf8_is_refused(data: bytes) -> None:
    with pytest.raises(PolicyFileError, match="expected UTF-8"):
        parse_policy(data)


@pytest.mark.parametrize(
    "data",
    [
        b"a" * (1 << 21),
        b"[" * 500_000,
        b"{a: " * 200_000,
        b"- " * 500_000,
        b"a: &a [x,x,x,x]\nb: &b [*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b]\nd: [*c,*c,*c,*c]",
        b"? " * 300_000,
        b"#" * (1 << 20),
    ],
)
def test_a_file_that_is_meant_to_hurt_is_refused_soon(data: bytes) -> None:
    started_s = time.monotonic()
    with pytest.raises(PolicyFileError):
        parse_policy(data)
    assert time.monotonic() - started_s < 20


def test_a_large_policy_is_read() -> None:
    keys = "\n".join(
        f"- {{name: k{i}, sha256: {hashlib.sha256(str(i).encode()).hexdigest()}, allow: [a]}}"
        for i in range(5000)
    )
    policy = parse_policy(f"version: 1\nkeys:\n{keys}".encode())
    assert policy.key_ring.name_of(b"4999") == "k4999"


def test_a_files_digest_is_that_of_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(FULL)
    loaded = load_policy(path)
    assert loaded.digest == f"sha256:{hashlib.sha256(FULL.encode()).hexdigest()}"
    assert loaded.policy == parse_policy(FULL.encode())
