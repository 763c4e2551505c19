"""Paths of Drogue Cloud's APIs: registry objects, listings and commands."""

import re
from typing import Final
from urllib.parse import quote

from fleet_fn.drogue.refusals import COMMAND_API, DEVICE_REGISTRY
from fleet_fn.errors import PermanentError

_REGISTRY: Final = "/api/registry/v1alpha1/apps"
#: Path of the list of applications.
APPLICATIONS_PATH: Final = _REGISTRY
_COMMAND: Final = "/api/command/v1alpha1/apps"
#: Names of unreserved characters need no encoding (RFC 3986, section 2.3); most names are such.
_UNRESERVED: Final = re.compile(r"[A-Za-z0-9._~-]+")


def object_path(names: tuple[str, ...]) -> str:
    """Return the path of an object in the device registry.

    Args:
        names: an application's name, or an application's and a device's.

    Raises:
        PermanentError: no path can carry one of the names.

    """
    return _REGISTRY + _segments(DEVICE_REGISTRY, names)


def listing_path(application: str) -> str:
    """Return the path of the list of an application's devices.

    Raises:
        PermanentError: no path can carry the name.

    """
    return f"{_REGISTRY}{_segments(DEVICE_REGISTRY, (application,))}/devices"


def command_path(application: str, device: str, command: str) -> str:
    """Return the path, query included, that takes a command for a device.

    Raises:
        PermanentError: no path can carry one of the names.

    """
    return f"{_COMMAND}{_segments(COMMAND_API, (application, device))}?command={_encode(command)}"


def _segments(upstream: str, names: tuple[str, ...]) -> str:
    """Return `/APPLICATION` or `/APPLICATION/devices/DEVICE`, percent-encoded."""
    for name in names:
        if name in (".", ".."):
            # Clients and servers remove dot segments (RFC 3986, section 5.2.4).
            raise PermanentError(f"{upstream}: no URL can carry the name {name}")
    return "/" + "/devices/".join(map(_encode, names))


def _encode(name: str) -> str:
    return name if _UNRESERVED.fullmatch(name) else quote(name, safe="")
