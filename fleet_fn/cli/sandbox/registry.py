"""The device registry of the sandbox: applications and devices, with the versions that Drogue Cloud gives them."""

import copy
import json
import re
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, Self

from fleet_fn.cli.sandbox.labels import Selector

#: What Drogue Cloud stores, `{"metadata": …, "spec": …, "status": …}`: never changed once stored, only replaced.
Object = dict[str, Any]

_APPLICATION_NAME: Final = re.compile(r"[a-z0-9]([-.a-z0-9]*[a-z0-9])?")
#: Bytes of UTF-8.
_MAX_NAME: Final = 255
#: What clients may say in metadata beside names; the rest is the cloud's.
_CLIENTS_METADATA: Final = ("labels", "annotations", "finalizers")


class Refused(Exception):
    """A request that is not granted: an HTTP status, and the error's name and message as Drogue Cloud words them."""

    def __init__(self, status: int, error: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.error = error
        self.headers = headers or {}

    @classmethod
    def bad_request(cls, message: str) -> Self:
        """400: the request makes no sense."""
        return cls(400, "BadRequest", message)

    @classmethod
    def not_found(cls) -> Self:
        """404: no such application or device, or somebody else's."""
        return cls(404, "NotFound", "Not found")


class Registry:
    """Applications and their devices. Safe to use from several threads.

    What the methods return is what is stored: to be read, not to be changed.
    """

    def __init__(self, objects: Iterable[Mapping[str, Any]], changed: Callable[[Object, Object], None]) -> None:
        """A registry of `objects`; `changed` is told of each change of a device: its application, and the device.

        Raises:
            Refused: an object that Drogue Cloud would not take, or that the sandbox has no means for.

        """
        self._applications: dict[str, Object] = {}
        self._devices: dict[str, dict[str, Object]] = {}
        self._lock = threading.RLock()
        self._changed: Callable[[Object, Object], None] = lambda _application, _device: None
        for given in sorted(objects, key=lambda given: "application" in _map(given, "metadata")):
            self.create(given)
        self._changed = changed

    def application(self, name: str) -> Object:
        """An application.

        Raises:
            Refused: there is none of that name.

        """
        with self._lock:
            if name not in self._applications:
                raise Refused.not_found()
            return self._applications[name]

    def device(self, application: str, name: str) -> Object:
        """A device.

        Raises:
            Refused: there is none of that name, or no such application.

        """
        with self._lock:
            if name not in self._devices.get(application, {}):
                raise Refused.not_found()
            return self._devices[application][name]

    def device_by_alias(self, application: str, name: str) -> Object | None:
        """The device of that name, else the one that has it among its aliases."""
        with self._lock:
            devices = self._devices.get(application, {})
            if name in devices:
                return devices[name]
            return next((device for device in devices.values() if name in _aliases(device)), None)

    def applications(self, selector: Selector, offset: int = 0, limit: int | None = None) -> list[Object]:
        """The applications that `selector` selects, by name."""
        with self._lock:
            return _page(self._applications, selector, offset, limit)

    def devices(self, application: str, selector: Selector, offset: int = 0, limit: int | None = None) -> list[Object]:
        """The devices of an application that `selector` selects, by name.

        Raises:
            Refused: no such application.

        """
        with self._lock:
            self.application(application)
            return _page(self._devices[application], selector, offset, limit)

    def create(self, given: Mapping[str, Any]) -> Object:
        """The new application, or, where `metadata.application` names one, the new device.

        Raises:
            Refused: malformed, there already, or the device's application is missing.

        """
        application, device = names(given)
        with self._lock:
            if device is not None and application not in self._applications:
                raise Refused(404, "ReferenceNotFound", "Referenced a non-existing entity")
            if (self._applications if device is None else self._devices[application]).get(device or application):
                raise Refused(409, "Conflict", "Conflict")
            stored = _managed(given, None)
            self._store(application, device, stored)
            return stored

    def update(self, given: Mapping[str, Any]) -> Object:
        """The application or device as it is after `given` took its place.

        Like Drogue Cloud: `uid` and `resourceVersion` are compared where `given` has them; an update that changes
        nothing makes no new version and no event.

        Raises:
            Refused: malformed, not there, or not the current version any more.

        """
        application, device = names(given)
        with self._lock:
            current = self.application(application) if device is None else self.device(application, device)
            expect_version(current, given["metadata"])
            stored = _managed(given, current)
            if _content(stored) == _content(current):
                return current
            self._store(application, device, stored)
            return stored

    def delete(self, application: str, device: str | None = None, expected: Mapping[str, Any] | None = None) -> None:
        """Deletes a device, or an application with its devices, if it has the expected `uid` and `resourceVersion`.

        Raises:
            Refused: not there, or another version.

        """
        with self._lock:
            if device is None:
                expect_version(self.application(application), expected or {})
                del self._applications[application], self._devices[application]
                return
            expect_version(self.device(application, device), expected or {})
            deleted = self._devices[application].pop(device)
            self._changed(self._applications[application], deleted)

    def _store(self, application: str, device: str | None, stored: Object) -> None:
        if device is None:
            self._applications[application] = stored
            self._devices.setdefault(application, {})
        else:
            self._devices[application][device] = stored
            self._changed(self._applications[application], stored)


def names(given: Mapping[str, Any]) -> tuple[str, str | None]:
    """The application that an object is, and None, or the one that it belongs to, and the device that it is.

    Raises:
        Refused: names that Drogue Cloud does not allow.

    """
    metadata = _map(given, "metadata")
    name, application = metadata.get("name"), metadata.get("application")
    kind = given.get("kind")
    if kind is not None and str(kind).lower() != ("application" if application is None else "device"):
        raise Refused.bad_request("only devices, and all of them, have metadata.application")
    if application is None:
        application, device = name, None
    else:
        device = name
        if not isinstance(device, str) or not 0 < len(device.encode(errors="replace")) <= _MAX_NAME:
            raise Refused.bad_request(f"metadata.name must be text of 1 to {_MAX_NAME} bytes")
    if not isinstance(application, str) or not _APPLICATION_NAME.fullmatch(application):
        raise Refused.bad_request(f"{application!r} is no name of an application: use lower-case letters and digits")
    return application, device


def section(stored: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A section of an object's spec; empty where there is none."""
    found = stored.get("spec", {}).get(key)
    return found if isinstance(found, dict) else {}


def disabled(stored: Mapping[str, Any]) -> bool:
    """Whether an application or device is switched off."""
    return section(stored, "core").get("disabled", False) is not False


def gateways(device: Mapping[str, Any]) -> list[Any]:
    """The names of the devices that may speak for a device."""
    return _list(section(device, "gatewaySelector"), "matchNames")


def credentials(device: Mapping[str, Any]) -> list[Any]:
    """The entries that a device's passwords are compared with."""
    place = "authentication" if section(device, "authentication") else "credentials"
    return _list(section(device, place), "credentials")


def expect_version(current: Object, expected: Mapping[str, Any]) -> None:
    """Compares `uid` and `resourceVersion` with those expected, where they are.

    Raises:
        Refused: they differ.

    """
    if any(expected.get(key) not in (None, "", current["metadata"][key]) for key in ("uid", "resourceVersion")):
        raise Refused(409, "OptimisticLockFailed", "Lock failed")


def _managed(given: Mapping[str, Any], current: Object | None) -> Object:
    """`given` as it is stored in the place of `current`."""
    metadata = _map(given, "metadata")
    then = current["metadata"] if current else {}
    managed: Object = {
        "metadata": {
            **{key: metadata[key] for key in ("name", "application") if metadata.get(key) is not None},
            "uid": then.get("uid") or str(uuid.uuid4()),
            "creationTimestamp": then.get("creationTimestamp") or now(),
            # Drogue Cloud counts every change, of the status and of labels too.
            "generation": then.get("generation", -1) + 1,
            "resourceVersion": str(uuid.uuid4()),
            **{key: metadata[key] for key in _CLIENTS_METADATA if metadata.get(key)},
        },
        **{key: _map(given, key) for key in ("spec", "status") if _map(given, key)},
    }
    labels = _map(metadata, "labels")
    if not all(isinstance(value, str) for value in labels.values()):
        raise Refused.bad_request("metadata.labels must be text")
    for entry in credentials(managed):
        _check_password(entry)
    try:
        # A copy, and proof that there is nothing in it that the API could not show.
        managed = json.loads(json.dumps(managed, allow_nan=False))
        json.dumps(managed, ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:
        raise Refused.bad_request(f"not JSON (a date wants quotes): {error}") from error
    return managed


def _check_password(entry: object) -> None:
    password = entry.get("pass") if isinstance(entry, dict) else None
    if isinstance(entry, dict) and isinstance(entry.get("user"), dict):
        password = entry["user"].get("password")
    if isinstance(password, dict) and "plain" not in password:
        raise Refused.bad_request(f"hashed passwords ({', '.join(password)}) are not supported here: use plain")


def _content(stored: Object) -> Object:
    """What a change of is a new version."""
    return {**stored, "metadata": {key: stored["metadata"].get(key) for key in _CLIENTS_METADATA}}


def _aliases(device: Object) -> list[Any]:
    return _list(section(device, "alias"), "aliases")


def _page(objects: Mapping[str, Object], selector: Selector, offset: int, limit: int | None) -> list[Object]:
    selected = [
        stored for _, stored in sorted(objects.items()) if selector.selects(stored["metadata"].get("labels", {}))
    ]
    return selected[offset : None if limit is None else offset + limit]


def _map(parent: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The map at `key`; absent and null are an empty one."""
    value = parent.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Refused.bad_request(f"{key} must be a map")
    return value


def _list(parent: Mapping[str, Any], key: str) -> list[Any]:
    value = parent.get(key)
    return value if isinstance(value, list) else []


def now() -> str:
    """The present as RFC 3339 has it, UTC."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def copied(stored: Object) -> Object:
    """An object that may be changed."""
    return copy.deepcopy(stored)
