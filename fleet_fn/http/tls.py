"""TLS contexts of the HTTP client. Their sockets have the deadline of an exchange."""

import ssl
from functools import cache

from fleet_fn.http.connection import TimedTLSSocket


def make_tls_context(ca_file: str | None) -> ssl.SSLContext:
    """Return a context that trusts the authorities in `ca_file` only, or the system's if it is None."""
    context = ssl.create_default_context(cafile=ca_file)
    context.sslsocket_class = TimedTLSSocket
    return context


@cache
def make_wider_tls_context(ca_file: str | None) -> ssl.SSLContext:
    """Return a context that trusts the authorities in `ca_file` and the system's.

    A private registry may redirect to a public host.
    """
    context = make_tls_context(None)
    if ca_file:
        context.load_verify_locations(ca_file)
    return context
