"""Where a server answers, as people write it: ``http://HOST:PORT``, with or without what clients add."""

from urllib.parse import urlsplit


def clean_address(text: str) -> str:
    """Return the address of a server without a slash at its end, or ``/v1``.

    Raises:
        ValueError: It is none, or holds a password, which would end up in messages and reports.
    """
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or parts.scheme not in ("http", "https"):
        shown = text.rpartition("@")[2]
        hint = "; an IPv6 address stands in brackets" if text.count(":") > 2 and "[" not in text else ""
        raise ValueError(f"expected http://HOST:PORT or https://HOST, got {shown!r}{hint}")
    if "%" in host:
        raise ValueError(
            f"expected an IPv6 address without a zone, which HTTP clients don't take, got {host!r}"
        )
    if parts.username is not None or parts.password is not None:
        raise ValueError("expected an address without user and password; a key has its own flag")
    if parts.query or parts.fragment:
        raise ValueError("expected http://HOST:PORT, got more behind the path; leave it out")
    return text.rstrip("/").removesuffix("/v1").rstrip("/")
