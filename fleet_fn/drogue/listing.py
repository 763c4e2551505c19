"""Lists of devices and applications, page by page."""

import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, Final, NamedTuple
from urllib.parse import quote, urlencode

from fleet_fn.deadline import Deadline
from fleet_fn.drogue.api_paths import APPLICATIONS_PATH, listing_path
from fleet_fn.drogue.device_registry_object import is_disabled, read_gateways
from fleet_fn.drogue.firmware_spec import Malformed, read_firmware_spec
from fleet_fn.drogue.refusals import DEVICE_REGISTRY, refusal_for_application
from fleet_fn.drogue.spec_policy import NONE, Policy
from fleet_fn.drogue.spec_source import Source
from fleet_fn.errors import PermanentError, TooLargeError
from fleet_fn.http.client import HttpClient
from fleet_fn.strict_json import parse_json

#: Objects of a page at most, and recent names that are remembered so that no device is listed twice.
_PAGE_OBJECTS: Final = 100
#: Time for a page.
_PAGE_SECONDS: Final = 15.0


class Device(NamedTuple):
    """A device in a listing."""

    name: str
    #: Any JSON value: other software writes it, too. None if there is none.
    status: object = None
    #: Devices through which it may be reached.
    gateways: tuple[str, ...] = ()
    #: Empty if its object has none.
    uid: str = ""
    labels: Mapping[str, str] = MappingProxyType({})
    #: The parts of its own `spec.firmware`.
    source: Source | Malformed | None = None
    policy: Policy | Malformed = NONE
    #: `spec.core.disabled` is true.
    disabled: bool = False


def list_devices(
    upstream: HttpClient, application: str, labels: str | None = None, *, patience: float = _PAGE_SECONDS
) -> Iterator[list[Device]]:
    """Yield the devices of an application page by page, an empty first page included.

    A device that is created or deleted during the listing shifts the pages by one. Another device may be missed then,
    but none is listed twice. Names cannot replace offsets: the registry's database sorts them by its own collation.

    Args:
        upstream: Drogue Cloud.
        application: the application's name.
        labels: label selector; only devices that it matches are listed.
        patience: seconds for each page.

    Raises:
        PermanentError: the application is unknown, our credentials are refused, or an answer is malformed.
        TransientError: the registry is unavailable.

    """
    # The command line may hand over bytes that are not UTF-8, as lone surrogates. No application has such a name.
    path = listing_path(application.encode(errors="replace").decode())
    listing = _Listing(upstream, path, "devices", application, labels, lambda: Deadline(patience))
    recent: deque[str] = deque(maxlen=_PAGE_OBJECTS)
    repeated = 0
    for body in listing.pages():
        page = _devices(body, application)
        unlisted = [device for device in page if device.name not in recent]
        recent.extend(device.name for device in unlisted)
        yield unlisted
        if len(page) != listing.limit:
            return
        repeated = 0 if unlisted else repeated + len(page)
        if repeated > _PAGE_OBJECTS:
            raise PermanentError(f"{DEVICE_REGISTRY}: lists the same devices again and again")


def list_objects(upstream: HttpClient, application: str) -> Iterator[list[Any]]:
    """Yield the objects of an application's devices, page by page.

    A device that is created or deleted meanwhile shifts the pages: others may come twice, or be missed.

    Raises:
        PermanentError: the application is unknown, our credentials are refused, or an answer is malformed.
        TransientError: the registry is unavailable.

    """
    path = listing_path(application)
    listing = _Listing(upstream, path, "devices", application, None, lambda: Deadline(_PAGE_SECONDS))
    for body in listing.pages():
        try:
            page = parse_json(body)
        except ValueError as error:
            raise PermanentError(f"{DEVICE_REGISTRY}: answer for the devices: {error}") from error
        if not isinstance(page, list):
            raise PermanentError(f"{DEVICE_REGISTRY}: answer for the devices is no list")
        yield page
        if len(page) != listing.limit:
            return


def list_applications(upstream: HttpClient, *, patience: float = _PAGE_SECONDS) -> list[str]:
    """Return the sorted names of the applications that a user may see.

    Args:
        upstream: Drogue Cloud, with the user's credentials.
        patience: seconds for all of it.

    Raises:
        PermanentError: the credentials are refused, or an answer is malformed.
        TransientError: the registry is unavailable.

    """
    found: set[str] = set()
    deadline = Deadline(patience)
    listing = _Listing(upstream, APPLICATIONS_PATH, "applications", None, None, lambda: deadline)
    for body in listing.pages():
        known, page = len(found), _objects(body, "applications")
        found.update(name for entry in page if (name := _name(entry)) is not None)
        if len(page) != listing.limit or len(found) == known:
            break
    return sorted(found)


class _Listing:
    """Reads a list page by page: bodies of answers, until the caller has enough."""

    def __init__(
        self,
        upstream: HttpClient,
        path: str,
        kind: str,
        application: str | None,
        labels: str | None,
        deadline: Callable[[], Deadline],
    ) -> None:
        self._upstream = upstream
        self._path = path
        self._kind = kind
        self._application = application
        self._labels = labels
        #: Begins the time for a page.
        self._deadline = deadline
        #: Objects that were asked for last.
        self.limit = _PAGE_OBJECTS

    def pages(self) -> Iterator[bytes]:
        """Yield the body of each page."""
        offset = 0
        while True:
            query = {**({"labels": self._labels} if self._labels else {}), "limit": self.limit, "offset": offset}
            target = f"{self._path}?{urlencode(query, quote_via=quote, errors='replace')}"
            deadline = self._deadline()
            try:
                answer = self._upstream.request("GET", target, deadline)
            except TooLargeError:
                if self.limit == 1:
                    raise
                self.limit //= 2
                continue
            if answer.status != HTTPStatus.OK:
                message = _error_message(answer.body)
                if message and self._upstream.reveals(message, deadline):
                    message = ""
                raise self._error(answer.status, message)
            yield answer.body
            offset += self.limit

    def _error(self, status: int, message: str) -> PermanentError:
        """Return the error for a status other than 200, with the registry's `message`."""
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND):
            if self._application is None:
                return PermanentError(f"{DEVICE_REGISTRY}: our credentials were refused ({status})")
            return PermanentError(refusal_for_application(DEVICE_REGISTRY, status, self._application))
        return PermanentError(f"{DEVICE_REGISTRY}: answered {status} for the {self._kind}{message}")


def _devices(body: bytes, application: str) -> list[Device]:
    """Return the devices of a page."""
    return [read_device(entry, application) for entry in _objects(body, "devices")]


def _objects(body: bytes, kind: str) -> list[Any]:
    """Return the objects of a page."""
    # Not `parse_json`, which is strict: one odd object must not hide all others.
    try:
        page = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise PermanentError(f"{DEVICE_REGISTRY}: answer for the {kind} is not JSON") from error
    if not isinstance(page, list):
        raise PermanentError(f"{DEVICE_REGISTRY}: answer for the {kind} is no list")
    return page


def _name(entry: object) -> str | None:
    metadata = entry.get("metadata") if isinstance(entry, dict) else None
    name = metadata.get("name") if isinstance(metadata, dict) else None
    return name if isinstance(name, str) else None


def read_device(entry: object, application: str) -> Device:
    """Return a device of an application from its object.

    Raises:
        PermanentError: it is no object of such a device.

    """
    metadata, name = (entry.get("metadata") if isinstance(entry, dict) else None), _name(entry)
    if not isinstance(entry, dict) or not isinstance(metadata, dict) or name is None:
        raise PermanentError(f"{DEVICE_REGISTRY}: answer for the devices has an entry that is no device")
    if metadata.get("application", application) != application:
        raise PermanentError(f"{DEVICE_REGISTRY}: answer for the devices is another application's")
    uid, labels = metadata.get("uid"), metadata.get("labels")
    found = entry.get("spec")
    spec: Mapping[str, Any] = found if isinstance(found, dict) else {}
    return Device(
        name,
        entry.get("status"),
        read_gateways(spec),
        uid if isinstance(uid, str) else "",
        labels if isinstance(labels, dict) else {},
        *read_firmware_spec(spec.get("firmware"), "the device's spec.firmware"),
        is_disabled(spec),
    )


def _error_message(body: bytes) -> str:
    """Return the message in `{"error": …, "message": …}`; empty if there is none."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    message = found.get("message") if isinstance(found, dict) else None
    return f": {message}" if isinstance(message, str) else ""
