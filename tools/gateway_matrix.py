"""What becomes of a patch on its way through a gateway: every route that generates, by header and by alias.

    python -m tools.gateway_matrix --patch tone HAProxy=http://127.0.0.1:8300 ...

Prints a table as docs/fleet.md has it, and ends with 1 where an answer came from the base model alone.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from patches.headers import PATCH_HEADER

_MESSAGES = [{"role": "user", "content": "Hello there."}]
#: Route -> its body, less the model.
ROUTES: Mapping[str, Mapping[str, Any]] = {
    "/v1/chat/completions": {"messages": _MESSAGES, "max_tokens": 4},
    "/v1/chat/completions/batch": {"messages": [_MESSAGES, _MESSAGES], "max_tokens": 4},
    "/v1/completions": {"prompt": "Hello there.", "max_tokens": 4},
    "/v1/responses": {"input": "Hello there.", "max_output_tokens": 4},
    "/v1/messages": {"messages": _MESSAGES, "max_tokens": 4},
    "/cohere/v2/chat": {"messages": _MESSAGES, "max_tokens": 4},
    "/inference/v1/generate": {"token_ids": [5, 6, 7], "sampling_params": {"max_tokens": 4}},
    "/invocations": {"messages": _MESSAGES, "max_tokens": 4},
}
WAYS = ("header", "alias")
PATCHED, SILENT = "patched", "**base**"


def cell(client: httpx.Client, route: str, way: str, model: str, patch: str) -> str:
    """Return what became of one request: ``PATCHED``, ``SILENT``, or the status that refused it."""
    by_header = way == "header"
    answer = client.post(
        route,
        json={"model": model if by_header else f"{model}:{patch}", **ROUTES[route]},
        headers={PATCH_HEADER: patch} if by_header else {},
    )
    if not answer.is_success:
        return f"refused ({answer.status_code})"
    return PATCHED if answer.headers.get(PATCH_HEADER, "").startswith(f"{patch}@") else SILENT


def table(cells: Mapping[tuple[str, str, str], str], gateways: Sequence[str]) -> str:
    """Return a table in Markdown; a column for each gateway and way."""
    columns = [(gateway, way) for gateway in gateways for way in WAYS]
    lines = [
        "| route | " + " | ".join(f"{gateway}, {way}" for gateway, way in columns) + " |",
        "| --- |" + " --- |" * len(columns),
    ]
    for route in ROUTES:
        found = [cells[route, gateway, way] for gateway, way in columns]
        lines.append(f"| `{route}` | " + " | ".join(found) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Ask, and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.gateway_matrix", description=__doc__.splitlines()[0]
    )
    parser.add_argument("gateways", metavar="NAME=URL", nargs="+", help="what to ask")
    parser.add_argument("--model", default="smollm2", help="as the servers call it (default: %(default)s)")
    parser.add_argument("--patch", required=True, help="a name that they serve")
    args = parser.parse_args(argv)
    cells = {}
    gateways = dict(one.split("=", 1) for one in args.gateways)
    for name, url in gateways.items():
        with httpx.Client(base_url=url, timeout=120.0) as client:
            for route in ROUTES:
                for way in WAYS:
                    cells[route, name, way] = cell(client, route, way, args.model, args.patch)
    print(table(cells, list(gateways)))
    return 1 if SILENT in cells.values() else 0


if __name__ == "__main__":
    sys.exit(main())
