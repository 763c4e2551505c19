"""Reasons for Drogue Cloud's refusals: upstream, status and possible causes.

Drogue Cloud also answers 404 for missing rights, so these reasons name both causes.
"""

from http import HTTPStatus
from typing import Final

#: Names of the two APIs, and of the OpenID provider, in reasons, logs and the command line.
DEVICE_REGISTRY: Final = "device registry"
COMMAND_API: Final = "command API"
TOKEN_ENDPOINT: Final = "token endpoint"  # noqa: S105 - its name

_REFUSED: Final = "our credentials were refused"
#: Follows a refusal if the function has no credentials.
NO_CREDENTIALS: Final = "; no DROGUE_TOKEN is set"


def refusal_for_application(upstream: str, status: int, application: str) -> str:
    """Return the reason for a 401, 403 or 404 to a request about an application."""
    where = f"{upstream}: {status} for application {application}"
    if status == HTTPStatus.NOT_FOUND:
        return f"{where} (wrong name, wrong DROGUE_API_URL, or not a member)"
    return f"{where} ({_REFUSED}, or not a member)"


def refusal_for_device(upstream: str, status: int, application: str, device: str) -> str:
    """Return the reason for a 401, 403 or 404 to a request about a device."""
    where = f"{upstream}: {status} for device {device} of application {application}"
    if status == HTTPStatus.NOT_FOUND:
        return f"{where} (no such device, wrong DROGUE_API_URL, or not a member of the application)"
    return f"{where} ({_REFUSED})"


def refusal_of_write(status: int, names: tuple[str, ...]) -> str:
    """Return the reason for a write of an object that the registry refused.

    Args:
        status: its answer's.
        names: the application's name, or the application's and the device's.

    """
    application, *device = names
    what, missing = f"a write of application {application}", "it was deleted"
    if device:
        what, missing = f"a write of device {device[0]} of application {application}", "the device was deleted"
    where = f"{DEVICE_REGISTRY}: {status} for {what}"
    if status == HTTPStatus.FORBIDDEN and not device:
        return f"{where} (our role is not manager or admin, or {_REFUSED})"
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return f"{where} ({_REFUSED})"
    if status == HTTPStatus.NOT_FOUND:
        # A reader may read devices and send commands, but its writes get the same answer as a missing device.
        return f"{where} (our role is not manager or admin, or {missing})"
    if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        return f"{where} (its object is above 65,536 bytes)"
    return where


def refusal_of_command(status: int, application: str, device: str) -> str:
    """Return the reason for a command that the command API refused."""
    if status == HTTPStatus.NOT_FOUND:
        return refusal_for_application(COMMAND_API, status, application)
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return refusal_for_device(COMMAND_API, status, application, device)
    if status == HTTPStatus.NOT_ACCEPTABLE:
        return (
            f"{COMMAND_API}: 406: device unknown to the command endpoint, command rejected, or its spec.core section "
            "(released clouds read core.disabled inverted)"
        )
    if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        return f"{COMMAND_API}: 413: the command is above 65,536 bytes"
    return f"{COMMAND_API}: answered {status}"
