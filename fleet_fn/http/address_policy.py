"""Where requests go: a registry's own host, and where it sends us, for redirected blobs and for tokens.

Whoever can answer for the registry, or in its name, must not be able to make the function talk to what only the
function can reach: a cloud's metadata service, the pod's other containers, the cluster's own network.
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
#: A name as DNS has it, or an IP address; without zone.
_HOST: Final = re.compile(r"[a-z0-9._-]{1,253}|[0-9a-f:.]{2,45}")


class _Reach(enum.IntEnum):
    """How far away an address is, the nearest last."""

    GLOBAL = 0
    PRIVATE = 1
    LOOPBACK = 2
    #: Link-local, multicast and what is no host's address: never.
    NOWHERE = 3


def permitting(registry: Callable[[], Iterable[str]]) -> Callable[[str], bool]:
    """Whether an IP address may be connected to, by those of the `registry` itself.

    Public ones may; private and loopback ones only for a registry that is on such an address; link-local ones never.
    A registry on a private address does not lead to loopback, which is the function's own pod.
    """

    def permits(address: str) -> bool:
        reach = _reach(address)
        if reach in (_Reach.GLOBAL, _Reach.NOWHERE):
            return reach is _Reach.GLOBAL
        return any(reach <= _reach(known) < _Reach.NOWHERE for known in registry())

    return permits


def split_url(url: str, *, plain_http: bool, registry: str) -> tuple[str, str]:
    """An absolute URL's origin, as a URL without path, and its path with the query.

    Args:
        url: where the registry sends us.
        plain_http: whether http is allowed.
        registry: the registry's name in reasons.

    Raises:
        PermanentError: it is none that a request may go to. The reason has its scheme and host, not the rest, which
            may be secret.

    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        host.encode("idna")  # raises UnicodeError where the resolver would
    except ValueError as error:  # UnicodeError is one
        raise PermanentError(f"{registry}: sends us to a malformed URL") from error
    # A host in which every reader sees the same one.
    if parts.scheme not in ("http", "https") or not _HOST.fullmatch(host) or "@" in parts.netloc or port == 0:
        raise PermanentError(f"{registry}: sends us to what is no http or https URL")
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
    if address.is_loopback or address.is_unspecified:  # connecting to 0.0.0.0 ends on loopback
        return _Reach.LOOPBACK
    if address.is_link_local or address.is_multicast or address.is_reserved:
        return _Reach.NOWHERE
    return _Reach.GLOBAL if address.is_global else _Reach.PRIVATE
