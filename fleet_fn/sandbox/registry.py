"""The sandbox's device registry: applications and devices.

They have the versions that Drogue Cloud gives them.
"""

import copy
import json
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from fleet_fn.sandbox.labels import Selector
from fleet_fn.sandbox.objects import (
    Object,
    aliases,
    as_json,
    check_new,
    check_storable,
    check_text,
    credentials,
    is_being_deleted,
    names,
)
from fleet_fn.sandbox.refusal import RefusedError

#: Keys of metadata that clients may set, besides names; the cloud sets the others.
_CLIENTS_METADATA: Final = ("labels", "annotations", "finalizers")
#: The finalizer that holds an application while finalizers hold its devices.
_HAS_DEVICES: Final = "has-devices"


class Registry:
    """Applications and their devices. Safe to use from several threads.

    Callers read the objects that the methods return, and never change them.
    """

    def __init__(
        self,
        objects: Iterable[Mapping[str, Any]],
        changed: Callable[[Object, Object], None],
        owner: str | None = None,
    ) -> None:
        """Hold `objects`.

        Args:
            objects: applications and devices, in any order. A UID in their metadata stays, as it does when a cloud is
                restored: rollouts draw devices by it.
            changed: is called with the application and the device, once for each section of a device that changed.
            owner: the owner of the applications.

        Raises:
            RefusedError: Drogue Cloud would refuse an object, or the sandbox does not support it.

        """
        self._applications: dict[str, Object] = {}
        self._owners: dict[str, str | None] = {}
        self._devices: dict[str, dict[str, Object]] = {}
        #: Names of devices by alias, per application.
        self._aliases: dict[str, dict[str, str]] = {}
        self._lock = threading.RLock()
        self._changed: Callable[[Object, Object], None] = lambda _application, _device: None
        for given in sorted(objects, key=lambda given: names(given)[1] is not None):
            try:
                self.create(given, owner, keeps_uid=True)
            except RefusedError as refusal:
                refusal.about = names(given)
                raise
        self._changed = changed

    def application(self, name: str) -> Object:
        """Return an application.

        Raises:
            RefusedError: there is no such application.

        """
        check_text(name)
        with self._lock:
            if name not in self._applications:
                raise RefusedError.not_found()
            return self._applications[name]

    def has(self, application: str) -> bool:
        """Return whether there is an application of this name."""
        with self._lock:
            return application in self._applications

    def owner(self, application: str) -> str | None:
        """Return the owner of an application; None if it has none, or is missing."""
        with self._lock:
            return self._owners.get(application)

    def device(self, application: str, name: str) -> Object:
        """Return a device.

        Raises:
            RefusedError: there is no such device, or no such application.

        """
        check_text(application, name)
        with self._lock:
            if name not in self._devices.get(application, {}):
                raise RefusedError.not_found()
            return self._devices[application][name]

    def device_by_alias(self, application: str, alias: str) -> Object | None:
        """Return the device with the name or alias `alias`, or None."""
        with self._lock:
            name = self._aliases.get(application, {}).get(alias)
            return None if name is None else self._devices[application][name]

    def applications(
        self,
        selector: Selector,
        offset: int = 0,
        limit: int | None = None,
        is_shown: Callable[[str], bool] = lambda _: True,
    ) -> list[Object]:
        """Return applications that `selector` selects, sorted by name.

        `is_shown` has to admit their names.
        """
        with self._lock:
            shown = {name: stored for name, stored in self._applications.items() if is_shown(name)}
            return _page(shown, selector, offset, limit)

    def devices(self, application: str, selector: Selector, offset: int = 0, limit: int | None = None) -> list[Object]:
        """Return the devices of an application that `selector` selects, by name.

        Raises:
            RefusedError: no such application.

        """
        with self._lock:
            self.application(application)
            return _page(self._devices[application], selector, offset, limit)

    def create(self, given: Mapping[str, Any], owner: str | None = None, *, keeps_uid: bool = False) -> Object:
        """Create an application of `owner`, or a device.

        An object with `metadata.application` is a device. Without `keeps_uid`, it gets a new UID.

        Raises:
            RefusedError: the object is malformed or exists already, or the device's application is missing.

        """
        application, device = names(given)
        check_new(application, device)
        stored = _to_stored(given, None, _uid(given) if keeps_uid else None)
        check_text(application, device or "")
        with self._lock:
            if device is None:
                if application in self._applications:
                    raise RefusedError.conflict()
                check_storable(stored)
                self._applications[application] = stored
                self._owners[application] = owner
                self._devices[application] = {}
                self._aliases[application] = {}
                return stored
            if application not in self._applications or is_being_deleted(self._applications[application]):
                raise RefusedError.reference_not_found()
            if device in self._devices[application]:
                raise RefusedError.conflict()
            self._store_device(application, device, stored)
            self._changed(self._applications[application], stored)
            return stored

    def update(self, given: Mapping[str, Any]) -> Object:
        """Replace an application or a device, and return the stored object.

        Like Drogue Cloud: if `given` has `uid` or `resourceVersion`, they must be the current ones. An update without a
        change makes no new version and no event. An update that removes the last finalizer of an object that is being
        deleted deletes it.

        Raises:
            RefusedError: the object is malformed or missing, or the version is not the current one.

        """
        application, device = names(given)
        with self._lock:
            current = self.application(application)
            if device is not None:
                current = self.device(application, device)
            _expect_version(current, given["metadata"])
            stored = _to_stored(given, current)
            if is_being_deleted(stored) and "finalizers" not in stored["metadata"]:
                self._remove(application, device)
                return stored
            sections = _changes(current, stored)
            if not sections:
                return current
            is_new_spec = any(path.startswith(".spec.") for path in sections)
            stored["metadata"]["generation"] = current["metadata"]["generation"] + is_new_spec
            if device is None:
                check_storable(stored)
                self._applications[application] = stored
            else:
                self._store_device(application, device, stored)
                for _ in sections:
                    self._changed(self._applications[application], stored)
            return stored

    def delete(self, application: str, device: str | None = None, expected: Mapping[str, Any] | None = None) -> None:
        """Delete a device, or an application with its devices.

        The object must have the expected `uid` and `resourceVersion`. An object with finalizers is only marked, and so
        is an application of such devices.

        Raises:
            RefusedError: the object is missing, is being deleted already, or has another version.

        """
        with self._lock:
            current = self.application(application) if device is None else self.device(application, device)
            if is_being_deleted(current):
                raise RefusedError.not_found()
            _expect_version(current, expected or {})
            if device is not None:
                self._delete_device(application, device)
                self._changed(self._applications[application], current)
                return
            for name in list(self._devices[application]):
                self._delete_device(application, name)
            if self._devices[application]:
                held = [*current["metadata"].get("finalizers", []), _HAS_DEVICES]
                current = {**current, "metadata": {**current["metadata"], "finalizers": held}}
            if "finalizers" in current["metadata"]:
                self._applications[application] = _mark_deleted(current)
            else:
                self._forget_application(application)

    def _store_device(self, application: str, name: str, stored: Object) -> None:
        """Store a device under all its aliases.

        Raises:
            RefusedError: another device has one of the aliases, or PostgreSQL cannot store the device.

        """
        check_storable(stored)
        known = self._aliases[application]
        wanted = aliases(stored)
        if len(set(wanted)) < len(wanted) or any(known.get(alias, name) != name for alias in wanted):
            raise RefusedError.conflict()
        self._forget_aliases(application, name)
        known.update(dict.fromkeys(wanted, name))
        self._devices[application][name] = stored

    def _delete_device(self, application: str, name: str) -> None:
        """Delete a device, or mark it if finalizers hold it."""
        current = self._devices[application][name]
        if "finalizers" not in current["metadata"]:
            self._forget_aliases(application, name)
            del self._devices[application][name]
        elif not is_being_deleted(current):
            self._devices[application][name] = _mark_deleted(current)

    def _remove(self, application: str, device: str | None) -> None:
        """Remove an object whose last finalizer is gone.

        Also remove an application that waited for its last device.
        """
        if device is None:
            self._forget_application(application)
            return
        self._forget_aliases(application, device)
        del self._devices[application][device]
        of = self._applications[application]
        if not is_being_deleted(of) or self._devices[application]:
            return
        left = [finalizer for finalizer in of["metadata"]["finalizers"] if finalizer != _HAS_DEVICES]
        if left:
            self._applications[application] = {**of, "metadata": {**of["metadata"], "finalizers": left}}
        else:
            self._forget_application(application)

    def _forget_application(self, name: str) -> None:
        for kept in (self._applications, self._owners, self._devices, self._aliases):
            del kept[name]

    def _forget_aliases(self, application: str, device: str) -> None:
        stored = self._devices[application].get(device)
        for alias in () if stored is None else aliases(stored):
            self._aliases[application].pop(alias, None)


def _expect_version(current: Object, expected: Mapping[str, Any]) -> None:
    """Compare `uid` and `resourceVersion` with the expected ones, if any are expected.

    Raises:
        RefusedError: they differ.

    """
    for key in ("uid", "resourceVersion"):
        wanted = expected.get(key, "")
        if not wanted:
            continue
        try:
            is_same = uuid.UUID(wanted) == uuid.UUID(current["metadata"][key])
        except ValueError:
            is_same = False
        if not is_same:
            raise RefusedError.conflict()


def _uid(given: Mapping[str, Any]) -> str | None:
    """Return the UID that an object has in its metadata; None if it has none."""
    try:
        return str(uuid.UUID(given["metadata"].get("uid", "")))
    except ValueError:
        return None


def _to_stored(given: Mapping[str, Any], current: Object | None, uid: str | None = None) -> Object:
    """Return `given` in its stored form, as the successor of `current`.

    The caller sets its generation. A new object has the UID `uid`, if there is one.
    """
    metadata = given["metadata"]
    then = current["metadata"] if current else {}
    managed: Object = {
        "metadata": {
            **{key: metadata[key] for key in ("name", "application") if key in metadata},
            "uid": then.get("uid") or uid or str(uuid.uuid4()),
            "creationTimestamp": then.get("creationTimestamp") or now(),
            "generation": 0,
            "resourceVersion": str(uuid.uuid4()),
            **({"deletionTimestamp": then["deletionTimestamp"]} if "deletionTimestamp" in then else {}),
            **{key: metadata[key] for key in _CLIENTS_METADATA if metadata.get(key)},
        },
        **{key: given[key] for key in ("spec", "status") if given.get(key)},
    }
    for entry in credentials(managed):
        _check_password(entry)
    return as_json(managed)


def _changes(current: Object, new: Object) -> list[str]:
    """Return paths of sections that differ: `.metadata`, `.spec.KEY`, `.status.KEY`."""
    was, will = current["metadata"], new["metadata"]
    paths = [".metadata"] if any(was.get(key) != will.get(key) for key in _CLIENTS_METADATA) else []
    for part in ("spec", "status"):
        before, after = current.get(part, {}), new.get(part, {})
        # A section that is null differs from one that is missing, and true from 1.
        paths += [
            f".{part}.{key}"
            for key in (*before, *(key for key in after if key not in before))
            if (key in before) != (key in after) or _canonical_json(before[key]) != _canonical_json(after[key])
        ]
    return paths


def _canonical_json(value: object) -> str:
    return json.dumps(value, sort_keys=True)


def _mark_deleted(current: Object) -> Object:
    """Return a copy that is marked for deletion."""
    metadata = {**current["metadata"], "deletionTimestamp": now(), "resourceVersion": str(uuid.uuid4())}
    return {**current, "metadata": metadata}


def _check_password(entry: object) -> None:
    password = entry.get("pass") if isinstance(entry, dict) else None
    if isinstance(entry, dict) and isinstance(entry.get("user"), dict):
        password = entry["user"].get("password")
    if isinstance(password, dict) and "plain" not in password:
        raise RefusedError.bad_request(f"hashed passwords ({', '.join(password)}) are not supported here: use plain")


def _page(objects: Mapping[str, Object], selector: Selector, offset: int, limit: int | None) -> list[Object]:
    selected = [
        stored for _, stored in sorted(objects.items()) if selector.selects(stored["metadata"].get("labels", {}))
    ]
    return selected[offset : None if limit is None else offset + limit]


def now() -> str:
    """Return the current time in UTC, in the form of RFC 3339."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def copy_object(stored: Object) -> Object:
    """Return a deep copy, which the caller may change."""
    return copy.deepcopy(stored)
