"""Who is at the other end of a connection, and whether a tenant header may come from there.

Only the connection itself counts. ``X-Forwarded-For`` and its like are what a client wrote, so they are never
read; the server is started so that nothing below reads them either.
"""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

#: How a policy file writes, and the audit log shows, a peer on a Unix socket.
UNIX_PEER = "unix"

#: Set in the ASGI scope of a request that another process of this server passed on, and logs.
RELAYED = "policypatch.relayed"


@dataclass(frozen=True, slots=True)
class TrustedPeers:
    """Addresses from which a tenant header is accepted."""

    networks: tuple[Network, ...] = ()
    has_unix: bool = False

    def trusts(self, peer: str | None) -> bool:
        """Return whether ``peer``, as ``peer_of`` gave it, is one of them."""
        if peer is None:
            return False
        if peer == UNIX_PEER:
            return self.has_unix
        try:
            address = ipaddress.ip_address(peer.partition("%")[0])
        except ValueError:
            return False
        # A socket for both families shows IPv4 peers this way.
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            return any(address.ipv4_mapped in network for network in self.networks)
        return any(address in network for network in self.networks)


def peer_of(scope: Mapping[str, Any]) -> str | None:
    """Return the address of an ASGI connection's other end, or ``UNIX_PEER``; ``None`` where it is not known.

    A TCP connection whose client is gone already has no address either. It is recognised by the server's own
    end, which has a port; on a Unix socket it has a path and none.
    """
    client = scope.get("client")
    if client is not None:
        # No address is called so; something that rewrites addresses by a header may claim it.
        return str(client[0]) if client[0] != UNIX_PEER else None
    server = scope.get("server")
    is_unix = server is not None and isinstance(server[0], str) and bool(server[0]) and server[1] is None
    return UNIX_PEER if is_unix else None
