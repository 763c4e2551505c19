"""The devices of an application, page by page: for people who look at a fleet, not for events."""

import json
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final
from urllib.parse import quote, urlencode

from fleet_fn.deadline import Deadline
from fleet_fn.drogue.device_registry import gateways_of
from fleet_fn.drogue.refusals import DEVICE_REGISTRY, refusal_for_application
from fleet_fn.errors import PermanentError, TooLargeError
from fleet_fn.http.client import HttpClient

#: Devices that a page has at most, and names that are remembered so that none is listed twice.
_PAGE: Final = 100
#: Seconds for a page.
_PATIENCE: Final = 15.0
_APPS: Final = "/api/registry/v1alpha1/apps"


@dataclass(frozen=True, slots=True)
class Device:
    """A device, as a listing has it."""

    name: str
    #: Whatever stands there; None where nothing does.
    status: object = None
    #: The devices through which it may be reached.
    gateways: tuple[str, ...] = ()


def list_devices(
    upstream: HttpClient, application: str, labels: str | None = None, *, patience: float = _PATIENCE
) -> Iterator[list[Device]]:
    """The devices of an application, in the registry's order; each page as it arrives, the first even if it is empty.

    A device that is created or deleted meanwhile moves the pages by one: another one may be missing for it, but none
    comes twice. The order is no help there: it is by name, but as the registry's database collates names.

    Args:
        upstream: Drogue Cloud.
        application: the application's name.
        labels: only devices that this label selector selects.
        patience: seconds that each page may take.

    Raises:
        PermanentError: the application is unknown, our credentials are refused, or an answer makes no sense.
        TransientError: the registry is not there.

    """
    path = _path(application)
    recent: deque[str] = deque(maxlen=_PAGE)
    limit, offset, repeated = _PAGE, 0, 0
    while True:
        query = {**({"labels": labels} if labels else {}), "limit": limit, "offset": offset}
        target = f"{path}?{urlencode(query, quote_via=quote, errors='replace')}"
        deadline = Deadline(patience)
        try:
            answer = upstream.request("GET", target, deadline)
        except TooLargeError:
            if limit == 1:
                raise
            limit //= 2
            continue
        if answer.status != HTTPStatus.OK:
            said = _explanation(answer.body)
            raise _error(answer.status, application, "" if said and upstream.reveals(said, deadline) else said)
        page = _devices(answer.body, application)
        unlisted = [device for device in page if device.name not in recent]
        recent.extend(device.name for device in unlisted)
        yield unlisted
        if len(page) != limit:
            return
        repeated = 0 if unlisted else repeated + len(page)
        if repeated > _PAGE:
            raise PermanentError(f"{DEVICE_REGISTRY}: lists the same devices again and again")
        offset += limit


def _path(application: str) -> str:
    if application in (".", ".."):
        # Dot segments are removed on the way (RFC 3986, section 5.2.4).
        raise PermanentError(f"{DEVICE_REGISTRY}: no URL can carry an application's name {application}")
    return f"{_APPS}/{quote(application, safe='', errors='replace')}/devices"


def _error(status: int, application: str, said: str) -> PermanentError:
    """Return the error for a status other than 200; `said` is the registry's own explanation."""
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND):
        return PermanentError(refusal_for_application(DEVICE_REGISTRY, status, application))
    return PermanentError(f"{DEVICE_REGISTRY}: answered {status} for the devices{said}")


def _devices(body: bytes, application: str) -> list[Device]:
    """Return the devices of a page."""
    # Not as strictly as the function reads what it acts on: one device's oddities must not hide all the others.
    try:
        page = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise PermanentError(f"{DEVICE_REGISTRY}: answer for the devices is not JSON") from error
    if not isinstance(page, list):
        raise PermanentError(f"{DEVICE_REGISTRY}: answer for the devices is no list")
    return [_device(entry, application) for entry in page]


def _device(entry: object, application: str) -> Device:
    metadata = entry.get("metadata") if isinstance(entry, dict) else None
    name = metadata.get("name") if isinstance(metadata, dict) else None
    if not isinstance(entry, dict) or not isinstance(name, str):
        raise PermanentError(f"{DEVICE_REGISTRY}: answer for the devices has an entry that is no device")
    if isinstance(metadata, dict) and metadata.get("application", application) != application:
        raise PermanentError(f"{DEVICE_REGISTRY}: answer for the devices is another application's")
    return Device(name, entry.get("status"), gateways_of(entry.get("spec")))


def _explanation(body: bytes) -> str:
    """What Drogue Cloud says of an error, if it does: `{"error": …, "message": …}`."""
    try:
        told = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    message = told.get("message") if isinstance(told, dict) else None
    return f": {message}" if isinstance(message, str) else ""
