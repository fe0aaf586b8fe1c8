"""Ports and sockets that a server listens on, and error messages for unavailable ones."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from keras_convnets.errors import UserError

if TYPE_CHECKING:
    import grpc


def bind(host: str, port: int, flag: str) -> socket.socket:
    """Return a TCP socket on a port, that does not listen yet.

    Args:
        host: the address.
        port: the port; 0 for a free one.
        flag: the flag that sets the port, for the error message.

    Raises:
        UserError: if the port does not exist, is in use or is not available.
    """
    # Looking up the address would silently wrap a number that is too large.
    if not 0 <= port <= 65535:
        raise UserError(f"port {port} does not exist; give {flag} a number from 1 to 65535, or 0 for a free port.")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # TCP by name, because asyncio sends without delay only where it reads that: an answer's head and body are two
        # writes, and the second would wait for the client to acknowledge the first.
        bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    except OSError as error:
        raise port_error(host, port, flag, error) from error
    try:
        # Otherwise a port that was closed a moment ago would count as taken.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise port_error(host, port, flag, error) from error
    return bound


def free_port(wanted: int) -> int:
    """Return a port of this machine, or a free one if it is in use or does not exist."""
    for port in (wanted, 0):
        with contextlib.suppress(OSError, OverflowError), socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return probe.getsockname()[1]
    return wanted


def add_unix_socket(server: grpc.Server, path: str) -> None:
    """Have a gRPC server listen on a UNIX socket too; a stale socket of a killed server is replaced.

    Raises:
        UserError: if the system has none, or the path is in use or is not available.
    """
    if not hasattr(socket, "AF_UNIX"):
        raise UserError(f"--grpc_socket_path got {path!r}; this system has no UNIX sockets: give --port instead.")
    try:
        # Replace the stale socket of a killed server, but not one that a server listens on.
        if Path(path).is_socket() and not _listens(path):
            os.unlink(path)
        server.add_insecure_port(f"unix:{path}")
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"cannot listen on the socket {path!r}; give --grpc_socket_path a free path in a folder that exists."
        ) from error


def _listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(path) == 0


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches an address, or each of a name's."""
    try:
        found = socket.getaddrinfo(host, None)
    except OSError:
        return False
    return all(ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback for *_, address in found)


def port_error(host: str, port: int, flag: str, error: Exception) -> UserError:
    """Return the error for a port that can't be bound."""
    if isinstance(error, RuntimeError) or getattr(error, "errno", None) == errno.EADDRINUSE:
        return UserError(
            f"port {port} on {host} is in use; stop what listens there, or give another port with {flag} "
            "(0 takes a free one)."
        )
    return UserError(
        f"cannot listen on {host!r}, port {port} ({getattr(error, 'strerror', None) or error}); give an address of "
        f"this machine, and with {flag} a port that you may use (0 takes a free one)."
    )
