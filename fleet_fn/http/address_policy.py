"""Check where an OCI registry sends the function.

It redirects downloads of blobs, and names token endpoints.

A hostile registry must not make the function talk to a server that only the function can reach: a cloud's metadata
service, the pod's other containers, the cluster's own network.
"""

import enum
import ipaddress
import re
from collections.abc import Callable, Iterable
from typing import Final
from urllib.parse import quote, urlsplit

from fleet_fn.errors import PermanentError

#: NAT64 (RFC 6052): the last 32 bits are an IPv4 address.
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
#: A DNS name, or an IP address without a zone.
_HOST: Final = re.compile(r"[a-z0-9._-]{1,253}|[0-9a-f:.]{2,45}")


class _Reach(enum.IntEnum):
    """How far away an address is, from the farthest to the nearest."""

    GLOBAL = 0
    PRIVATE = 1
    LOOPBACK = 2
    #: Link-local, multicast and reserved addresses. No request may go there.
    NOWHERE = 3


def make_address_check(registry: Callable[[], Iterable[str]]) -> Callable[[str], bool]:
    """Return a check of IP addresses against those of the OCI registry.

    `registry` returns the addresses of the registry itself.

    A public address passes. A private or loopback address passes only if the registry has such an address too.
    A link-local address never passes. A registry on a private address may not lead to loopback: that is the function's
    own pod.
    """

    def permits(address: str) -> bool:
        reach = _reach(address)
        if reach in (_Reach.GLOBAL, _Reach.NOWHERE):
            return reach is _Reach.GLOBAL
        return any(reach <= _reach(known) < _Reach.NOWHERE for known in registry())

    return permits


def split_url(url: str, *, plain_http: bool, registry: str) -> tuple[str, str]:
    """Split an absolute URL into its origin, and its path with the query.

    The origin is a URL without a path.

    Args:
        url: the URL that the registry names.
        plain_http: whether http is allowed.
        registry: the registry's name in reasons.

    Raises:
        PermanentError: no request may go to the URL. The reason has its scheme and host; the rest may be secret.

    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        host.encode("idna")  # raises the UnicodeError that the resolver would raise
    except ValueError as error:  # UnicodeError is one
        raise PermanentError(f"{registry}: sends us to a malformed URL") from error
    # URL parsers disagree on unusual hosts. This pattern admits only hosts that all of them read alike.
    if parts.scheme not in ("http", "https") or not _HOST.fullmatch(host) or "@" in parts.netloc or port == 0:
        raise PermanentError(f"{registry}: sends us to a URL that is not http or https")
    if parts.scheme == "http" and not plain_http:
        raise PermanentError(f"{registry}: sends us to http://{host}, and plain HTTP is not allowed")
    path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~")
    query = "?" + quote(parts.query, safe="/?%:@!$&'()*+,;=~") if parts.query else ""
    return f"{parts.scheme}://{parts.netloc}", path + query


def _reach(text: str) -> _Reach:
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped or address.sixtofour:
            address = address.ipv4_mapped or address.sixtofour or address
        elif address in _NAT64:
            address = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if address.is_loopback or address.is_unspecified:  # a connection to 0.0.0.0 reaches loopback
        return _Reach.LOOPBACK
    if address.is_link_local or address.is_multicast or address.is_reserved:
        return _Reach.NOWHERE
    return _Reach.GLOBAL if address.is_global else _Reach.PRIVATE
