"""``GET /v1/patches`` and ``GET /v1/patches/{name}``."""

from typing import Any

import pytest

from tests.server.stand import Stand


async def test_the_list_describes_every_version_and_every_refusal(stand: Stand) -> None:
    old = await stand.load("pirate", "1.0.0", license="Apache-2.0", changelog="First.")
    new = await stand.load("pirate", "1.1.0", num_tokens=16)
    (stand.folder / "bad.safetensors").write_bytes(b"no")
    failure = await stand.catalog.load_file(stand.folder / "bad.safetensors")
    document = (await stand.client.get("/v1/patches")).json()
    (card,) = document["data"]
    assert (card["object"], card["name"], card["active_version"]) == ("policy_patch", "pirate", "1.1.0")
    assert card["versions"] == [
        version("1.1.0", new, "active", 16, 512, None, None),
        version("1.0.0", old, "loaded", 2, 64, "Apache-2.0", "First."),
    ]
    (refused,) = document["failures"]
    assert (refused["file"], refused["reason"]) == ("bad.safetensors", failure.reason)
    assert refused["code"] == "invalid_patch_file"
    assert (refused["name"], refused["version"]) == (None, None)
    assert refused["since"].endswith("Z")
    assert (document["object"], document["default_patch"], document["is_patch_required"]) == (
        "list",
        None,
        False,
    )


def version(
    text: str,
    patch: Any,
    state: str,
    num_tokens: int,
    nbytes: int,
    license_: str | None,
    changelog: str | None,
) -> dict[str, Any]:
    return {
        "version": text,
        "digest": patch.digest,
        "state": state,
        "kind": "prefix",
        "num_virtual_tokens": num_tokens,
        "nbytes": nbytes,
        "tier": "memory",
        "in_flight": 0,
        "origin_method": "text",
        "license": license_,
        "changelog": changelog,
        "signer": None,
    }


async def test_an_empty_catalog_is_an_empty_list(stand: Stand) -> None:
    stand.use(default_patch="pirate@1.0.0", require_patch=True)
    document = (await stand.client.get("/v1/patches")).json()
    assert (document["data"], document["failures"]) == ([], [])
    assert (document["default_patch"], document["is_patch_required"]) == ("pirate@1.0.0", True)


async def test_replaced_content_that_drains_stands_behind_what_serves(stand: Stand) -> None:
    old = await stand.load(fill=1.0)
    stand.catalog.residents.acquire(old)
    await stand.load(fill=2.0)
    card = (await stand.client.get("/v1/patches/pirate")).json()
    assert [(v["version"], v["state"], v["in_flight"]) for v in card["versions"]] == [
        ("1.0.0", "active", 0),
        ("1.0.0", "draining", 1),
    ]
    stand.catalog.residents.release(old)


async def test_one_patch_is_described_by_name(stand: Stand) -> None:
    await stand.load("pirate")
    await stand.load("sailor")
    assert (await stand.client.get("/v1/patches/sailor")).json()["name"] == "sailor"


@pytest.mark.parametrize("name", ["unknown", "Pirate", "none", "x" * 5000, "%E2%98%A0"])
async def test_an_unknown_name_is_a_404_error_object(stand: Stand, name: str) -> None:
    await stand.load()
    response = await stand.client.get(f"/v1/patches/{name}")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "patch_not_found"
    assert response.json()["error"]["param"] == "name"
    assert len(response.text) < 400


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
async def test_the_catalog_cannot_be_changed_over_http(stand: Stand, method: str) -> None:
    await stand.load()
    for path in ("/v1/patches", "/v1/patches/pirate", "/v1/patches/pirate/activate"):
        assert (await stand.client.request(method, path)).status_code in (404, 405)


async def test_the_routes_are_in_the_openapi_document(stand: Stand) -> None:
    paths = (await stand.client.get("/openapi.json")).json()["paths"]
    assert set(paths["/v1/patches/{name}"]["get"]["responses"]) >= {"200", "404"}
    schema = paths["/v1/patches"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert schema == {"$ref": "#/components/schemas/PatchList"}


async def test_an_empty_catalog_has_no_aliases(stand: Stand) -> None:
    assert stand.decider.aliases("demo") == {}


async def test_aliases_name_every_patch_below_the_served_name(stand: Stand) -> None:
    await stand.load("sailor")
    await stand.load("pirate")
    assert list(stand.decider.aliases("demo")) == ["demo:pirate", "demo:sailor"]
