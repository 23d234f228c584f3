"""``<served name>:<patch>`` as a model name."""

import pytest

from server.errors import MalformedPatchName
from server.versions.aliases import alias_wish
from server.versions.selection import OptOut, PatchRef

NAMES = ["llama", "llama:8b", "org/llama"]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("llama", None),
        ("llama:8b", None),
        ("other", None),
        ("other:pirate", None),
        ("llam:pirate", None),
        ("llama2:pirate", None),
        ("llama:pirate", (PatchRef("pirate"),)),
        ("llama:8b:pirate", (PatchRef("pirate"),)),
        ("org/llama:pirate@1.0.0", (PatchRef("pirate", version="1.0.0"),)),
        ("llama:a,b", (PatchRef("a"), PatchRef("b"))),
        ("llama:none", OptOut.NONE),
        ("llama:pirate@sha256:0123456789ab", (PatchRef("pirate", digest="sha256:0123456789ab"),)),
    ],
)
def test_a_model_name_means(model: str, expected: object) -> None:
    assert alias_wish(model, NAMES) == expected


@pytest.mark.parametrize("model", ["llama:", "llama:Pirate", "llama:8b:", "llama: pirate\n", "llama:piräte"])
def test_a_malformed_alias_is_refused(model: str) -> None:
    with pytest.raises(MalformedPatchName) as caught:
        alias_wish(model, NAMES)
    assert caught.value.param == "model"
