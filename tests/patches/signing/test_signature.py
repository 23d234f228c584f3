"""Signature files, good and hostile: only what a trusted key says about this very patch passes."""

import base64
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from patches.errors import PatchFormatError, SignatureRefused
from patches.signing.keys import TrustedKeys
from patches.signing.signature import (
    MAX_SIGNATURE_BYTES,
    Signature,
    read_claim,
    read_signature,
    signature_path,
    verify_signature,
)

DIGEST = "sha256:" + "5" * 64
OTHER_DIGEST = "sha256:" + "6" * 64
Sign = Callable[..., bytes]


def verify(data: bytes, keys: TrustedKeys, **patch: str) -> Signature:
    what = {"name": "pirate", "version": "1.0.0", "digest": DIGEST} | patch
    return verify_signature(data, keys, **what)


def reason(data: bytes, keys: TrustedKeys, **patch: str) -> str:
    with pytest.raises(SignatureRefused) as caught:
        verify(data, keys, **patch)
    return caught.value.reason


def test_a_good_signature_tells_who_and_what(sign: Sign, alice: TrustedKeys) -> None:
    signature = verify(sign(minimum_version="0.9.0"), alice)
    assert signature.key.signer == "alice"
    assert (signature.statement.name, signature.statement.minimum_version) == ("pirate", "0.9.0")


def test_a_signature_by_another_key_is_untrusted(sign: Sign, alice: TrustedKeys) -> None:
    assert reason(sign(by="mallory"), alice) == "untrusted_signer"


def test_a_signature_in_anothers_name_is_bad(sign: Sign, alice: TrustedKeys) -> None:
    forged = json.loads(sign(by="mallory"))
    forged["signatures"][0]["keyid"] = next(iter(alice))
    assert reason(json.dumps(forged).encode(), alice) == "bad_signature"


def test_one_trusted_signature_of_several_is_enough(sign: Sign, alice: TrustedKeys) -> None:
    both = json.loads(sign(by="mallory"))
    both["signatures"] += json.loads(sign())["signatures"]
    assert verify(json.dumps(both).encode(), alice).key.signer == "alice"


@pytest.mark.parametrize(
    "patch", [{"name": "safety"}, {"version": "1.0.1"}, {"digest": OTHER_DIGEST}], ids=lambda p: min(p)
)
def test_a_signature_of_something_else_does_not_match(
    patch: dict[str, str], sign: Sign, alice: TrustedKeys
) -> None:
    assert reason(sign(), alice, **patch) == "signature_mismatch"


def test_a_payload_that_was_swapped_in_is_bad(sign: Sign, alice: TrustedKeys) -> None:
    old, new = json.loads(sign()), json.loads(sign(digest=OTHER_DIGEST))
    old["payload"] = new["payload"]
    assert reason(json.dumps(old).encode(), alice, digest=OTHER_DIGEST) == "bad_signature"


def test_the_type_of_the_payload_is_signed_too(sign: Sign, alice: TrustedKeys) -> None:
    changed = json.loads(sign())
    changed["payloadType"] = "text/plain"
    assert reason(json.dumps(changed).encode(), alice) == "bad_signature"


def test_no_flipped_bit_passes(sign: Sign, alice: TrustedKeys) -> None:
    """Every bit of the file; what still passes must say exactly the same (base64 has spare bits)."""
    data = sign()
    expected = verify(data, alice)
    num_passed, reasons = 0, set()
    for position in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[position // 8] ^= 1 << position % 8
        try:
            assert verify(bytes(flipped), alice) == expected
            num_passed += 1
        except SignatureRefused as error:
            reasons.add(error.reason)
    assert reasons == {"bad_signature", "untrusted_signer"}
    assert num_passed < 32


def test_no_cut_off_file_passes(sign: Sign, alice: TrustedKeys) -> None:
    data = sign().rstrip()
    for length in range(len(data)):
        assert reason(data[:length], alice) == "bad_signature"


def envelopes() -> st.SearchStrategy[bytes]:
    value = st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
        max_leaves=12,
    )
    base64_text = st.binary(max_size=64).map(lambda raw: base64.b64encode(raw).decode())
    signature = st.fixed_dictionaries({"keyid": st.text(max_size=70) | value, "sig": base64_text | value})
    shaped = st.fixed_dictionaries(
        {
            "payload": base64_text | value,
            "payloadType": st.just("application/vnd.in-toto+json") | value,
            "signatures": st.lists(signature, max_size=10) | value,
        }
    )
    return st.binary(max_size=300) | (shaped | value).map(lambda document: json.dumps(document).encode())


@settings(max_examples=400, deadline=None)
@given(data=envelopes())
@example(data=b"")
@example(data=b"\x00" * MAX_SIGNATURE_BYTES)
@example(data=b"[" * MAX_SIGNATURE_BYTES)
@example(data=b'{"payload":"","payloadType":"application/vnd.in-toto+json","signatures":[]}')
def test_nothing_made_up_passes_or_crashes(data: bytes, alice: TrustedKeys) -> None:
    assert reason(data, alice) in ("bad_signature", "untrusted_signer")


@settings(max_examples=200, deadline=None)
@given(document=st.fixed_dictionaries({"sig": st.binary(max_size=80), "payload": st.binary(max_size=200)}))
def test_nothing_made_up_in_the_name_of_a_trusted_key_passes(
    document: dict[str, bytes], alice: TrustedKeys
) -> None:
    text = {key: base64.b64encode(raw).decode() for key, raw in document.items()}
    envelope = {
        "payload": text["payload"],
        "payloadType": "application/vnd.in-toto+json",
        "signatures": [{"keyid": next(iter(alice)), "sig": text["sig"]}],
    }
    assert reason(json.dumps(envelope).encode(), alice) == "bad_signature"


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(extra=1),
        lambda d: d["signatures"][0].update(cert="x"),
        lambda d: d["signatures"].append(d["signatures"][0]),
        lambda d: d.update(signatures=d["signatures"] * 9),
        lambda d: d.update(signatures=[]),
        lambda d: d.update(payload="%%%"),
        lambda d: d["signatures"][0].update(sig="a"),
        lambda d: d["signatures"][0].update(keyid="\x1b[2J"),
    ],
    ids=["key", "signature key", "twice", "many", "none", "no base64", "short", "control"],
)
def test_an_envelope_with_anything_odd_is_refused(
    change: Callable[[dict[str, Any]], None], sign: Sign, alice: TrustedKeys
) -> None:
    document = json.loads(sign())
    change(document)
    assert reason(json.dumps(document).encode(), alice) == "bad_signature"


def test_a_claim_is_read_without_keys(sign: Sign) -> None:
    claim = read_claim(sign(by="mallory"))
    assert claim.statement.digest == DIGEST
    assert [len(key_id) for key_id in claim.key_ids] == [64]


def test_a_missing_signature_has_its_own_reason(tmp_path: Path) -> None:
    with pytest.raises(SignatureRefused) as caught:
        read_signature(tmp_path / "a.safetensors")
    assert (caught.value.reason, str(caught.value)) == (
        "unsigned",
        "not signed: there is no a.safetensors.sig",
    )


def test_a_huge_signature_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with open(signature_path(path), "wb") as file:
        file.truncate(2**40)
    with pytest.raises(SignatureRefused, match="expected at most 65536 bytes"):
        read_signature(path)


def test_a_signature_that_is_no_file_cannot_make_the_reader_wait(tmp_path: Path) -> None:
    os.mkfifo(signature_path(tmp_path / "a.safetensors"))
    signature_path(tmp_path / "b.safetensors").mkdir()
    for name in ("a", "b"):
        with pytest.raises(PatchFormatError) as caught:
            read_signature(tmp_path / f"{name}.safetensors")
        assert caught.value.reason == "unreadable"
