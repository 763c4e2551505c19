"""Sockets for libcurl's connections, to permitted addresses only."""

import socket
from collections.abc import Callable
from typing import Any

import pycurl


class SocketOpener:
    """Opens sockets, except for addresses that requests may not go to.

    libcurl asks for each address that it is about to connect to, whatever the host's name resolved to before.
    """

    def __init__(self, permits: Callable[[str], bool]) -> None:
        self._permits = permits
        self._lent: socket.socket | None = None

    @property
    def has_opened(self) -> bool:
        """Whether an address was permitted."""
        return self._lent is not None

    def open_socket(self, _purpose: int, address: Any) -> Any:
        """Return a socket for an address, or the value that makes libcurl try the next."""
        family, kind, protocol, peer = address
        if not self._permits(str(peer[0])):
            return pycurl.SOCKET_BAD
        self.close()
        self._lent = socket.socket(family, kind, protocol)
        return self._lent

    def close(self) -> None:
        """Close the last socket, of which pycurl has made a duplicate for libcurl."""
        if self._lent:
            self._lent.close()
