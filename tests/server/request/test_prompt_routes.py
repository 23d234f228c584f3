"""The table of routes, and that it knows the installed vLLM."""

import ast
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from server.request.prompt_routes import RouteKind, route_kind


@pytest.mark.parametrize(
    ("path", "root_path", "kind"),
    [
        ("/v1/chat/completions", "", RouteKind.GENERATES),
        ("/v1/chat/completions/", "", RouteKind.GENERATES),
        ("/v1/chat/completions//", "", RouteKind.GENERATES),
        ("/api/v1/chat/completions", "/api", RouteKind.GENERATES),
        ("/v1/chat/completions", "/api", RouteKind.GENERATES),
        ("/v1/responses", "", RouteKind.GENERATES_LATER),
        ("/v1/responses/r1/cancel", "", RouteKind.NEUTRAL),
        ("/v1/responses/r1", "", RouteKind.OTHER),
        ("/v1/embeddings", "", RouteKind.ENCODES),
        ("/V1/chat/completions", "", RouteKind.OTHER),
        ("/v1/chat/completions/render", "", RouteKind.OTHER),
        ("/tokenize", "", RouteKind.NEUTRAL),
        ("", "", RouteKind.OTHER),
        ("/", "", RouteKind.OTHER),
    ],
)
def test_a_path_is(path: str, root_path: str, kind: RouteKind) -> None:
    assert route_kind(path, root_path) is kind


#: POST routes of vLLM that neither generate nor run the model on a prompt; a named patch is refused there.
KNOWN_OTHERS = {
    "/abort_requests",
    "/cohere/v2/chat/render",
    "/collective_rpc",
    "/detokenize",
    "/fault_tolerance/apply",
    "/finish_weight_update",
    "/inference/v1/abort_requests",
    "/init_weight_transfer_engine",
    "/is_scaling_elastic_ep",
    "/pause",
    "/release_kv_cache_memory",
    "/reset_encoder_cache",
    "/reset_mm_cache",
    "/reset_prefix_cache",
    "/resume",
    "/scale_elastic_ep",
    "/shutdown_weight_transfer_engine",
    "/sleep",
    "/start_draft_weight_update",
    "/start_profile",
    "/start_weight_update",
    "/stop_profile",
    "/tokenize",
    "/update_weight_version",
    "/update_weights",
    "/v1/chat/completions/derender",
    "/v1/chat/completions/render",
    "/v1/completions/derender",
    "/v1/completions/render",
    "/v1/load_lora_adapter",
    "/v1/messages/count_tokens",
    "/v1/messages/render",
    "/v1/responses/render",
    "/v1/responses/{response_id}/cancel",
    "/v1/unload_lora_adapter",
    "/wake_up",
    "/weight_checker",
}


def post_routes(tree: ast.AST) -> Iterator[str]:
    """Paths of ``router.post(...)``, ``websocket(...)`` and ``add_api_route(...)`` in a module."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or not node.args:
            continue
        path = node.args[0]
        if (
            node.func.attr in ("post", "put", "patch", "websocket", "api_route", "add_api_route")
            and isinstance(path, ast.Constant)
            and isinstance(path.value, str)
            and path.value.startswith("/")
        ):
            yield path.value


def test_every_post_route_of_the_installed_vllm_was_looked_at() -> None:
    """A route of a new release has to be put into the table, or here, before it can be trusted."""
    spec = find_spec("vllm")
    assert spec is not None, "vLLM is not installed"
    assert spec.origin is not None
    sources = (Path(spec.origin).parent / "entrypoints").rglob("*.py")
    routes = {path for source in sources for path in post_routes(ast.parse(source.read_text("utf-8")))}
    assert "/v1/chat/completions" in routes
    unlisted = {path for path in routes if route_kind(path) is RouteKind.OTHER}
    assert unlisted - KNOWN_OTHERS == set()
