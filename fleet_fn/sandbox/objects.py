"""Applications and devices: checks of their form, and readers of their sections."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from enum import Enum
from typing import Any, Final

from fleet_fn.sandbox.refusal import RefusedError

#: An application or a device: `{"metadata": …, "spec": …, "status": …}`. Once stored, it is replaced, never changed.
Object = dict[str, Any]

_HOST_NAME: Final = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)(\.(?!-)[a-z0-9-]{1,63}(?<!-))*")
_MAX_DEVICE_NAME_BYTES: Final = 255
#: Columns of the database, in characters.
_MAX_APPLICATION_NAME: Final = 64
_MAX_ALIAS: Final = 256
_MAX_FINALIZER: Final = 63
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")


class Core(Enum):
    """The meaning of an object's `spec.core`."""

    ABSENT = "absent"
    ENABLED = "enabled"
    DISABLED = "disabled"
    MALFORMED = "malformed"


def names(given: Mapping[str, Any]) -> tuple[str, str | None]:
    """Return an application's name and None, or a device's application and its name.

    Raises:
        RefusedError: the object has no such names, or Drogue Cloud could not read it.

    """
    check(given)
    metadata = given["metadata"]
    name: str = metadata["name"]
    kind = given.get("kind")
    if kind is not None and str(kind).lower() != ("device" if "application" in metadata else "application"):
        raise RefusedError.silently(400, "only devices, and all of them, have metadata.application")
    return (metadata["application"], name) if "application" in metadata else (name, None)


def check(given: Mapping[str, Any]) -> None:
    """Check the types of all parts of an object that Drogue Cloud reads.

    A device has `metadata.application`.

    Raises:
        RefusedError: Drogue Cloud could not read it.

    """
    metadata = given.get("metadata")
    if not isinstance(metadata, dict):
        raise _unreadable("metadata", "a map", metadata)
    if "name" not in metadata:
        raise RefusedError.bad_request("Json deserialize error: missing field `name`")
    for key, value in metadata.items():
        if key not in _METADATA:
            raise RefusedError.bad_request(f"Json deserialize error: unknown field `{key}`")
        expected, is_valid = _METADATA[key]
        if not is_valid(value):
            raise _unreadable(key, expected, value)
    for key in ("spec", "status"):
        if not isinstance(given.get(key, {}), dict):
            raise _unreadable(key, "a map", given[key])


def check_new(application: str, device: str | None) -> None:
    """Check the name of a new object.

    Raises:
        RefusedError: Drogue Cloud does not allow the name.

    """
    if device is not None:
        if not 0 < len(device.encode(errors="replace")) <= _MAX_DEVICE_NAME_BYTES:
            raise RefusedError.silently(400, f"metadata.name must be text of 1 to {_MAX_DEVICE_NAME_BYTES} bytes")
    elif not _HOST_NAME.fullmatch(application) or len(application) > 253:
        raise RefusedError.silently(
            400, f"{application!r} is no name of an application: use lower-case letters and digits"
        )
    elif len(application) > _MAX_APPLICATION_NAME:
        raise _too_long(_MAX_APPLICATION_NAME)


def check_text(*names: str) -> None:
    """Check names for a query of the database.

    Raises:
        RefusedError: PostgreSQL cannot read them.

    """
    if any("\0" in name for name in names):
        raise RefusedError.by_database('invalid byte sequence for encoding "UTF8": 0x00')


def check_storable(stored: Object) -> None:
    """Check that PostgreSQL can store an object, which has to be JSON.

    Raises:
        RefusedError: PostgreSQL cannot store it.

    """
    finalizers = stored["metadata"].get("finalizers", [])
    if _has_nul(stored):
        raise RefusedError.by_database(
            "unsupported Unicode escape sequence\nDETAIL: \\u0000 cannot be converted to text."
        )
    if any(len(finalizer) > _MAX_FINALIZER for finalizer in finalizers):
        raise _too_long(_MAX_FINALIZER)
    if any(len(alias) > _MAX_ALIAS for alias in aliases(stored)):
        raise _too_long(_MAX_ALIAS)


def as_json(given: Object) -> Object:
    """Return a copy of an object.

    Raises:
        RefusedError: the object is not JSON, so the API could not return it.

    """
    try:
        copied: Object = json.loads(json.dumps(given, allow_nan=False))
        json.dumps(copied, ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:
        raise RefusedError.bad_request(f"not JSON (a date needs quotes): {error}") from error
    return copied


def section(stored: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return a section of an object's spec; empty if there is none."""
    found = stored.get("spec", {}).get(key)
    return found if isinstance(found, dict) else {}


def core(stored: Mapping[str, Any]) -> Core:
    """Return the meaning of `spec.core`; only its key `disabled` counts."""
    spec = stored.get("spec", {})
    if "core" not in spec:
        return Core.ABSENT
    flag = spec["core"].get("disabled", False) if isinstance(spec["core"], dict) else None
    if not isinstance(flag, bool):
        return Core.MALFORMED
    return Core.DISABLED if flag else Core.ENABLED


def gateways(device: Mapping[str, Any]) -> list[str]:
    """Return a device's gateways, which may speak for it and get its commands."""
    return _texts(section(device, "gatewaySelector").get("matchNames"))


def credentials(device: Mapping[str, Any]) -> list[Any]:
    """Return a device's credentials."""
    place = "authentication" if section(device, "authentication") else "credentials"
    found = section(device, place).get("credentials")
    return found if isinstance(found, list) else []


def aliases(device: Mapping[str, Any]) -> list[str]:
    """Return all names of a device: its name, `spec.alias`, and unique user names."""
    entries = (entry.get("user") for entry in credentials(device) if isinstance(entry, dict))
    users = (user.get("username") for user in entries if isinstance(user, dict) and user.get("unique") is True)
    own = dict.fromkeys(_texts(device.get("spec", {}).get("alias")))
    return [device["metadata"]["name"], *own, *(user for user in dict.fromkeys(users) if isinstance(user, str))]


def is_being_deleted(stored: Mapping[str, Any]) -> bool:
    """Return whether an object is marked for deletion, and waits for its finalizers."""
    return "deletionTimestamp" in stored["metadata"]


def _texts(value: object) -> list[str]:
    """Return a list of strings; any other value counts as an empty list.

    Such a value makes its section unreadable.
    """
    return value if isinstance(value, list) and all(isinstance(entry, str) for entry in value) else []


def _has_nul(value: object) -> bool:
    if isinstance(value, str):
        return "\0" in value
    if isinstance(value, dict):
        return any(map(_has_nul, (*value.keys(), *value.values())))
    return isinstance(value, list) and any(map(_has_nul, value))


def _too_long(limit: int) -> RefusedError:
    return RefusedError.by_database(f"value too long for type character varying({limit})")


def _unreadable(key: str, expected: str, value: object) -> RefusedError:
    kind = {bool: "boolean", str: "string", type(None): "null", list: "sequence", dict: "map"}
    return RefusedError.bad_request(
        f"Json deserialize error: {key}: invalid type: {kind.get(type(value), 'number')}, expected {expected}"
    )


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_text_map(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_text, _both(value)))


def _both(entries: Mapping[Any, Any]) -> Iterable[Any]:
    return (*entries.keys(), *entries.values())


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 64


def _is_time(value: object) -> bool:
    """Return whether a value is a time in the form of RFC 3339."""
    if not isinstance(value, str) or not _TIME.fullmatch(value):
        return False
    try:
        datetime.fromisoformat(re.sub(r"\.\d+", "", value).upper())
    except ValueError:
        return False
    return True


def _is_time_or_null(value: object) -> bool:
    return value is None or _is_time(value)


#: The allowed keys of metadata: the expected type, and its check.
_METADATA: Final[Mapping[str, tuple[str, Callable[[object], bool]]]] = {
    "name": ("a string", _is_text),
    "application": ("a string", _is_text),
    "uid": ("a string", _is_text),
    "resourceVersion": ("a string", _is_text),
    "generation": ("u64", _is_count),
    "creationTimestamp": ("a time", _is_time),
    "deletionTimestamp": ("a time", _is_time_or_null),
    "finalizers": ("a sequence of strings", _is_texts),
    "labels": ("a map of strings", _is_text_map),
    "annotations": ("a map of strings", _is_text_map),
}
