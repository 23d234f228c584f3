"""From header bytes to a decision, in tables."""

from collections.abc import Sequence
from typing import Any

import pytest

from patches.kinds.prefix import PrefixBody
from patches.kinds.steering import Steering, SteeringBody
from patches.manifest import Manifest
from server.errors import (
    CompositionNotPrepared,
    MalformedPatchName,
    PatchNotFound,
    PatchNotReady,
    PolicyPatchError,
    UnsupportedWithPatch,
)
from server.versions.composition import SelectedPatch, SteeredComposition
from server.versions.selection import (
    MAX_SELECTION_BYTES,
    OptOut,
    PatchRef,
    composition_of,
    parse_policy_header,
    parse_wish,
    resolve_each,
)
from server.versions.view import CatalogView, ServedPatch

DIGEST = "sha256:" + "0123456789abcdef" * 4


def served(name: str, version: str, digit: str, *components: ServedPatch) -> ServedPatch:
    origin: dict[str, Any] = {"method": "text"}
    if components:
        parts = [{"name": c.name, "version": c.version, "digest": c.digest} for c in components]
        origin = {"method": "compose", "components": parts}
    digest = "sha256:" + digit * 64
    manifest = Manifest(name, version, None, PrefixBody(3), origin)  # type: ignore[arg-type]
    return ServedPatch(name, version, digest, 3, manifest, 8)


def steering(name: str, digit: str) -> ServedPatch:
    body = SteeringBody(Steering("residual", "relative", 0.1))
    manifest = Manifest(name, "1.0.0", None, body, {"method": "icv"})  # type: ignore[arg-type]
    return ServedPatch.of(manifest, "sha256:" + digit * 64, 8)


def view_of(*patches: ServedPatch) -> CatalogView:
    view = CatalogView()
    for patch in patches:
        view = view.with_changes(patch, None)
    return view


BIAS = served("bias", "1.0.0", "1")
TOXICITY_1 = served("toxicity", "1.0.0", "2")
TOXICITY_2 = served("toxicity", "2.0.0", "3")
TOXICITY_RC = served("toxicity", "2.0.0-rc.1", "4")
BOTH = served("both", "1.0.0", "5", TOXICITY_2, BIAS)
VIEW = view_of(BIAS, TOXICITY_RC, TOXICITY_2, TOXICITY_1, BOTH)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"toxicity", (PatchRef("toxicity"),)),
        (b"t", (PatchRef("t"),)),
        (b"a.b_c-9", (PatchRef("a.b_c-9"),)),
        (b"x" * 64, (PatchRef("x" * 64),)),
        (b"toxicity@1.2.0", (PatchRef("toxicity", version="1.2.0"),)),
        (b"toxicity@1.2.0-rc.1+build", (PatchRef("toxicity", version="1.2.0-rc.1+build"),)),
        (b"toxicity@" + DIGEST.encode(), (PatchRef("toxicity", digest=DIGEST),)),
        (b"toxicity@sha256:0123456789ab", (PatchRef("toxicity", digest="sha256:0123456789ab"),)),
        (b"toxicity,bias", (PatchRef("toxicity"), PatchRef("bias"))),
        (b"toxicity , bias@1.0.0", (PatchRef("toxicity"), PatchRef("bias", version="1.0.0"))),
        (b"none", OptOut.NONE),
        (b" none ", OptOut.NONE),
        (b"\t toxicity \t", (PatchRef("toxicity"),)),
        (b"toxicity,\tbias\t, tone", (PatchRef("toxicity"), PatchRef("bias"), PatchRef("tone"))),
    ],
)
def test_a_header_value_means(value: bytes, expected: object) -> None:
    assert parse_policy_header([value]) == expected


def test_no_header_line_means_nothing_was_asked() -> None:
    assert parse_policy_header([]) is None


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b" ",
        b",",
        b"toxicity,",
        b",toxicity",
        b"toxicity,,bias",
        b"Toxicity",
        b"TOXICITY",
        b"NONE",
        b"None",
        b"none,toxicity",
        b"toxicity, none",
        b"none@1.0.0",
        b"toxicity@",
        b"@1.0.0",
        b"toxicity@1",
        b"toxicity@v1.0.0",
        b"toxicity@01.0.0",
        b"toxicity@1.0.0@2.0.0",
        b"toxicity @1.0.0",
        b"toxicity@latest",
        b"toxicity@sha256:",
        b"toxicity@sha256:0123456789a",
        b"toxicity@sha256:0123456789AB",
        b"toxicity@SHA256:0123456789ab",
        b"toxicity@sha256:" + b"0" * 65,
        b"toxicity@md5:0123456789ab",
        b"sha256:0123456789ab",
        b"-toxicity",
        b".hidden",
        b"toxi city",
        b"toxicity;q=1",
        b"../../etc/passwd",
        b"toxicity/bias",
        b"toxicity:bias",
        b"*",
        b'"toxicity"',
        b"toxi\tcity",
        b"toxicity\r\nX-Other: 1",
        b"toxicity\x00",
        b"toxicity\x7f",
        b"\xef\xbb\xbftoxicity",
        "toxіcity".encode(),  # noqa: RUF001
        "toxicity\u200b".encode(),
        b"toxicity\xa0",
        b"\xff\xfe",
        b"x" * 65,
        b"a" * (MAX_SELECTION_BYTES + 1),
        b"a," * 5000 + b"a",
        b"x" * 10_000,
    ],
)
def test_a_header_value_outside_the_grammar_is_refused(value: bytes) -> None:
    with pytest.raises(MalformedPatchName) as caught:
        parse_policy_header([value])
    assert caught.value.status == 400
    assert len(caught.value.message) < 400


@pytest.mark.parametrize("values", [[b"toxicity", b"bias"], [b"none", b"none"], [b"toxicity"] * 2, [b""] * 3])
def test_repeated_header_lines_are_refused_even_where_they_agree(values: list[bytes]) -> None:
    with pytest.raises(MalformedPatchName, match="one header line"):
        parse_policy_header(values)


def test_a_value_of_exactly_the_limit_is_read() -> None:
    value = ",".join(["abc"] * 64)
    assert len(value) == MAX_SELECTION_BYTES - 1
    assert len(parse_policy_header([f"{value}d".encode()])) == 64  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["toxicity", "toxicity@1.2.0", "toxicity@sha256:0123456789ab"])
def test_a_reference_reads_back_what_it_prints(text: str) -> None:
    (ref,) = parse_wish(text, "x")  # type: ignore[misc]
    assert str(ref) == text


def resolve(refs: Sequence[PatchRef], view: CatalogView, param: str) -> SelectedPatch:
    return composition_of(resolve_each(refs, view, param), view, param)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bias", BIAS),
        ("toxicity", TOXICITY_2),
        ("toxicity@2.0.0", TOXICITY_2),
        ("toxicity@2.0.0-rc.1", TOXICITY_RC),
        ("toxicity@1.0.0", TOXICITY_1),
        (f"toxicity@sha256:{'2' * 12}", TOXICITY_1),
        (f"toxicity@sha256:{'2' * 64}", TOXICITY_1),
        ("both", BOTH),
        ("toxicity,bias", BOTH),
        ("toxicity@2.0.0,bias@1.0.0", BOTH),
        (f"toxicity,bias@sha256:{'1' * 20}", BOTH),
    ],
)
def test_references_resolve_to_content(text: str, expected: ServedPatch) -> None:
    assert resolve(parse_wish(text, "x"), VIEW, "x") is expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("unknown", PatchNotFound),
        ("toxicity@3.0.0", PatchNotFound),
        ("toxicity@2.0.0+build", PatchNotFound),
        (f"toxicity@sha256:{'1' * 64}", PatchNotFound),
        (f"toxicity@sha256:{'2' * 63}3", PatchNotFound),
        ("bias,toxicity", CompositionNotPrepared),
        ("toxicity@1.0.0,bias", CompositionNotPrepared),
        ("toxicity,bias,bias", CompositionNotPrepared),
        ("bias,bias", CompositionNotPrepared),
        ("toxicity,unknown", PatchNotFound),
    ],
)
def test_what_does_not_resolve_is_an_error(text: str, error: type[PolicyPatchError]) -> None:
    with pytest.raises(error):
        resolve(parse_wish(text, "x"), VIEW, "x")  # type: ignore[arg-type]


SAFE, CALM = steering("safe-steer", "8"), steering("calm-steer", "9")
STEERED = VIEW.with_changes(SAFE, None).with_changes(CALM, None)


def found(text: str) -> SelectedPatch:
    return resolve(parse_wish(text, "x"), STEERED, "x")  # type: ignore[arg-type]


def test_a_vector_answers_alone_as_any_patch_does() -> None:
    assert found("safe-steer") is SAFE
    assert (SAFE.num_tokens, SAFE.prefixes, SAFE.vector) == (0, (), SAFE)


@pytest.mark.parametrize("text", ["bias,safe-steer", "safe-steer,bias"])
def test_a_vector_acts_behind_a_prefix_wherever_it_is_named(text: str) -> None:
    both = found(text)
    assert isinstance(both, SteeredComposition)
    assert (both.prefix, both.vector, both.num_tokens) == (BIAS, SAFE, 3)
    assert both.reference == "bias@1.0.0, safe-steer@1.0.0"
    assert both == SteeredComposition.of(BIAS, SAFE)


@pytest.mark.parametrize(
    "text", ["toxicity,bias,safe-steer", "safe-steer,toxicity,bias", "toxicity,safe-steer,bias"]
)
def test_a_prepared_composition_is_found_whatever_acts_beside_it(text: str) -> None:
    all_three = found(text)
    assert isinstance(all_three, SteeredComposition)
    assert (all_three.prefix, all_three.vector, all_three.form) == (BOTH, SAFE, "prepared")


def test_no_two_of_prefix_vector_and_both_share_a_digest() -> None:
    """The digest is what K/V is kept apart by."""
    wishes = ["bias", "safe-steer", "calm-steer", "bias,safe-steer", "bias,calm-steer", "both,safe-steer"]
    assert len({found(wish).digest for wish in wishes}) == len(wishes)


@pytest.mark.parametrize(
    "text", ["safe-steer,calm-steer", "bias,safe-steer,calm-steer", "safe-steer,safe-steer"]
)
def test_two_vectors_in_one_request_are_refused_by_name(text: str) -> None:
    with pytest.raises(UnsupportedWithPatch, match=r"safe-steer@1\.0\.0 and .* steering patches"):
        found(text)


def test_prefixes_that_nothing_was_composed_of_are_refused_beside_a_vector_too() -> None:
    with pytest.raises(CompositionNotPrepared):
        found("bias,toxicity,safe-steer")


def test_an_uncomposition_of_comes_with_advice() -> None:
    with pytest.raises(CompositionNotPrepared, match="policypatch compose"):
        resolve((PatchRef("bias"), PatchRef("toxicity")), VIEW, "X-Policy-Patch")


def test_a_digest_prefix_that_fits_two_versions_is_refused() -> None:
    twins = [served("twin", "1.0.0", "a"), served("twin", "2.0.0", "b")]
    object.__setattr__(twins[1], "digest", "sha256:" + "a" * 63 + "b")
    ref = PatchRef("twin", digest="sha256:" + "a" * 20)
    with pytest.raises(MalformedPatchName, match="fits 2 versions"):
        resolve((ref,), view_of(*twins), "x")


def test_a_composition_of_a_replaced_component_no_longer_answers() -> None:
    """Same names, other content: the composition was made of the old one."""
    newer = served("bias", "1.0.1", "6")
    with pytest.raises(CompositionNotPrepared):
        resolve((PatchRef("toxicity"), PatchRef("bias")), VIEW.with_changes(newer, None), "x")


def test_a_composition_goes_with_the_patch_that_holds_it() -> None:
    assert VIEW.with_changes(None, BOTH).compositions == {}


def test_of_two_patches_with_the_same_components_one_always_stands_for_them() -> None:
    twin = served("also-both", "1.0.0", "7", TOXICITY_2, BIAS)
    with_twin = VIEW.with_changes(twin, None)
    key = (TOXICITY_2.digest, BIAS.digest)
    assert with_twin.compositions[key] is twin
    assert with_twin.with_changes(None, twin).compositions[key] is BOTH


def test_a_patch_that_is_being_loaded_for_the_first_time_is_not_ready() -> None:
    view = CatalogView(loading=frozenset({("new", "1.0.0")}))
    for ref in (PatchRef("new"), PatchRef("new", version="1.0.0")):
        with pytest.raises(PatchNotReady) as caught:
            resolve((ref,), view, "x")
        assert caught.value.headers() == {"Retry-After": "1"}
    with pytest.raises(PatchNotFound):
        resolve((PatchRef("new", version="1.0.1"),), view, "x")


def test_versions_order_as_semantic_versions_do() -> None:
    texts = [
        "1.0.0",
        "1.10.0",
        "1.9.0",
        "2.0.0-alpha",
        "2.0.0-alpha.2",
        "2.0.0-alpha.10",
        "2.0.0-beta",
        "2.0.0",
    ]
    view = view_of(*(served("a", text, "0123456789abcdef"[i]) for i, text in enumerate(texts)))
    assert [p.version for p in view.names["a"].versions] == [
        "2.0.0", "2.0.0-beta", "2.0.0-alpha.10", "2.0.0-alpha.2", "2.0.0-alpha", "1.10.0", "1.9.0", "1.0.0",
    ]  # fmt: skip


def test_a_view_never_changes() -> None:
    view = view_of(BIAS)
    changed = view.with_changes(TOXICITY_1, BIAS)
    assert set(view.names) == {"bias"}
    assert set(changed.names) == {"toxicity"}
    with pytest.raises(TypeError):
        view.names["x"] = None  # type: ignore[index]
