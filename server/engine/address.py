"""The socket that a server answers on, bound before the engine takes its time to start."""

import argparse
import errno
import socket
import ssl

from vllm.entrypoints.launchers.launcher import setup_server


class AddressUnusable(Exception):
    """The address of the server can't be bound; the message names the flag and says what to do."""


def bind_server(args: argparse.Namespace, *, reuse_port: bool) -> tuple[str, socket.socket]:
    """Bind as vLLM does.

    Returns:
        The address as people write it, and the socket.

    Raises:
        AddressUnusable: It can't be done.
    """
    _require_certificate(args)
    try:
        address, sock = setup_server(args, reuse_port=reuse_port)
    except (OSError, OverflowError) as error:
        raise AddressUnusable(_advice(args, error)) from error
    return address, sock


def _require_certificate(args: argparse.Namespace) -> None:
    # The HTTP server reads them last, when the engine has started already.
    if args.ssl_certfile is None:
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(args.ssl_certfile, args.ssl_keyfile, password=lambda: "")
    except (OSError, ValueError) as error:
        files = ", ".join(filter(None, (args.ssl_certfile, args.ssl_keyfile)))
        reason = getattr(error, "strerror", None) or error
        raise AddressUnusable(
            f"--ssl-certfile, --ssl-keyfile: {files}: {reason}; expected a certificate and its key, both PEM "
            "and without a passphrase"
        ) from error


def _advice(args: argparse.Namespace, error: OSError | OverflowError) -> str:
    if isinstance(error, OverflowError):
        return f"--port: expected 0 to 65535, got {args.port}"
    if args.uds:
        return f"--uds: {args.uds}: {error.strerror or error}; remove what is there, or name another path"
    where = args.host or "all addresses"
    if isinstance(error, socket.gaierror):
        return f"--host: {where} is no address of this machine: {error.strerror}"
    match error.errno:
        case errno.EADDRINUSE:
            return f"--port: {args.port} is in use on {where}; end the program that has it, or choose another"
        case errno.EADDRNOTAVAIL:
            return f"--host: {where} is no address of this machine; leave it out to listen on all"
        case errno.EACCES:
            return f"--port: {args.port} may not be used by this user; choose one of 1024 or more"
    return f"--host, --port: {where}, {args.port}: {error.strerror or error}"
