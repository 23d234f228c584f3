"""Values out of a server's ``/metrics``."""

import re

import aiohttp

from bench.errors import RequestFailed


def metric(text: str, name: str, **labels: str) -> float:
    """Add up the samples of ``name`` that carry these labels; 0 where there is none."""
    total = 0.0
    for line in text.splitlines():
        head, _, value = line.rpartition(" ")
        if head.partition("{")[0] == name and all(
            f'{key}="{label}"' in head for key, label in labels.items()
        ):
            total += float(value)
    return total


def label_of(text: str, name: str, label: str) -> str | None:
    """Return a label's value of the first sample of ``name``."""
    found = re.search(rf'^{re.escape(name)}{{.*?\b{re.escape(label)}="([^"]*)"', text, re.MULTILINE)
    return found[1] if found else None


async def read_metrics(session: aiohttp.ClientSession, url: str) -> str:
    """Return the exposition of the server at ``url``.

    Raises:
        RequestFailed: it answers otherwise than with 200.
    """
    async with session.get(f"{url}/metrics") as response:
        if response.status != 200:
            raise RequestFailed(f"{url}/metrics: {response.status}")
        return await response.text()
