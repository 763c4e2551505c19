"""`spec.firmware` of an application or a device: firmware source, update policy."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, tzinfo
from typing import Any, Final, NamedTuple

from fleet_fn.errors import PermanentError, one_line
from fleet_fn.protocol.messages import U32_MAX

_MINUTES_OF_DAY: Final = 24 * 60
_DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_TIME_OF_DAY: Final = re.compile("([01][0-9]|2[0-3]):([0-5][0-9])")
#: No time zone has a longer name. `zoneinfo` looks each name up as a file and as a module, so check it first.
_ZONE: Final = re.compile("[A-Za-z0-9_+-]{1,32}(/[A-Za-z0-9_+-]{1,32}){0,2}")
#: Characters of a value in a message.
_MAX_SHOWN_CHARACTERS: Final = 100

#: The kinds of sources; `oci` is an alias of `container`.
_SOURCE_KEYS: Final = ("container", "oci", "file", "hawkbit")
_PULL_POLICIES: Final = ("IfNotPresent", "Always")
_POLICY_KEYS: Final = frozenset(("rollout", "maxAttempts", "retry", "mtu"))
_ROLLOUT_KEYS: Final = ("paused", "percent", "salt", "labels", "window", "midway")
#: The values of `rollout.midway`.
FINISH: Final = "finish"
RESTART: Final = "restart"
_WINDOW_KEYS: Final = ("from", "to", "timezone", "days")
#: Wanted values, in messages.
_TIME: Final = '"HH:MM" in quotes'
_TIMEZONE: Final = "the IANA name of a time zone, such as Europe/Oslo"


class MalformedSpecError(PermanentError):
    """A key of `spec.firmware` is malformed.

    The text names the key, its value and the values that it may have.
    """


# --- Sources ----------------------------------------------------------------------------------------------------------


class Image(NamedTuple):
    """Firmware in an OCI repository, named by `container` or its alias `oci`."""

    #: Relative to `FIRMWARE_REGISTRY`: `name`, `name:tag` or `name@digest`.
    reference: str
    #: Resolve the tag for each status (`imagePullPolicy: Always`).
    always: bool = False
    #: Selects one of an index's manifests by platform, or by annotation.
    platform: str | None = None


class File(NamedTuple):
    """Firmware in `FIRMWARE_DIR`."""

    name: str


@dataclass(frozen=True, slots=True)
class HawkBit:
    """Firmware that an Eclipse hawkBit server assigns."""


Source = Image | File | HawkBit


def read_source(section: Mapping[str, Any]) -> Source | None:
    """Return the source that a `spec.firmware` names; None if it names none.

    Raises:
        MalformedSpecError: the source is malformed, or there are several.

    """
    kinds = [kind for kind in _SOURCE_KEYS if section.get(kind) is not None]
    if not kinds:
        return None
    kind, *others = kinds
    if others:
        raise MalformedSpecError(f"{kind} is set beside {', '.join(others)}; only one source may be set")
    source = section[kind]
    if not isinstance(source, dict):
        raise _error(kind, source, "a map")
    if kind == "hawkbit":
        return HawkBit()
    if kind == "file":
        return File(_read_name(source.get("name"), "file.name", "the name of a firmware in FIRMWARE_DIR"))
    return _read_image(source, kind)


def _read_image(source: Mapping[str, Any], kind: str) -> Image:
    pull_policy, platform = source.get("imagePullPolicy"), source.get("platform")
    reference = _read_name(source.get("image"), f"{kind}.image", "name, name:tag or name@sha256:…")
    if pull_policy is not None and pull_policy not in _PULL_POLICIES:
        raise _error(f"{kind}.imagePullPolicy", pull_policy, " or ".join(_PULL_POLICIES))
    if platform is not None:
        platform = _read_name(platform, f"{kind}.platform", "a platform, such as linux/arm64")
    return Image(reference, always=pull_policy == "Always", platform=platform)


def _read_name(value: object, path: str, wanted: str) -> str:
    if value is None:
        raise MalformedSpecError(f"{path} is missing; it must be {wanted}")
    if not isinstance(value, str) or not value:
        raise _error(path, value, wanted)
    return value


# --- Policy -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Window:
    """The hours of the week in which updates may start and be swapped to.

    They go by the wall clock of a time zone. If the clock is set back, the repeated hour is open twice. If it is set
    forward, a window that would open in the missing hour opens after it, and a window that lies within the missing hour
    does not open.
    """

    #: Minutes from local midnight, 0 to 1439.
    start: int
    #: Minutes from local midnight, 1 to 1440, exclusive; not above `start` if the window passes midnight.
    end: int
    timezone: tzinfo
    #: Days on which it opens: 0 is Monday, 6 Sunday. Hours after midnight belong to the day on which it opened.
    days: frozenset[int]


@dataclass(frozen=True, slots=True)
class Policy:
    """Rules about which devices may be updated, and when; None if a key is not set."""

    #: No device is updated.
    paused: bool | None = None
    #: Share of the devices that are updated, 0 to 100.
    percent: float | None = None
    #: Draws the devices instead of the target's version, so that the same devices come first each time.
    salt: str | None = None
    #: Only devices that have all of these labels are updated.
    labels: Mapping[str, str] | None = None
    window: Window | None = None
    #: Failed swaps after which a version is given up.
    max_attempts: int | None = None
    #: A changed text resets the count of failed attempts.
    retry: str | None = None
    #: The largest block in bytes, for boards whose buffer must hold the envelope too.
    mtu: int | None = None
    #: For a device midway whose target moves: `finish` or `restart`.
    midway: str | None = None

    def over(self, other: "Policy") -> "Policy":
        """Return both policies merged; each key that is set here wins."""
        own = {name: value for name in _FIELDS if (value := getattr(self, name)) is not None}
        return replace(other, **own)


_FIELDS: Final = tuple(field.name for field in fields(Policy))
NONE: Final = Policy()


def read_policy(section: Mapping[str, Any]) -> Policy:
    """Return the policy in a `spec.firmware`; null counts as not set.

    Raises:
        MalformedSpecError: a policy key is unknown, or its value is malformed.

    """
    if _POLICY_KEYS.isdisjoint(section):
        return NONE
    rollout = _read_map(section.get("rollout"), "rollout", _ROLLOUT_KEYS)
    return Policy(
        paused=_read_paused(rollout.get("paused")),
        percent=_read_percent(rollout.get("percent")),
        salt=_read_text(rollout.get("salt"), "rollout.salt"),
        labels=_read_labels(rollout.get("labels")),
        window=_read_window(rollout.get("window")),
        max_attempts=_read_max_attempts(section.get("maxAttempts")),
        retry=_read_text(section.get("retry"), "retry"),
        mtu=_read_mtu(section.get("mtu")),
        midway=_read_midway(rollout.get("midway")),
    )


def _read_map(value: object, path: str, keys: Sequence[str]) -> Mapping[str, Any]:
    """Return a map with these keys only.

    If a mistyped `percent` were ignored, all devices would be updated.
    """
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _error(path, value, f"a map with {_join_words(keys)}")
    if unknown := [key for key in value if key not in keys]:
        raise MalformedSpecError(f"{path} contains {shorten(', '.join(unknown))}; it may contain {_join_words(keys)}")
    return value


def _read_paused(value: object) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    raise _error("rollout.paused", value, "true or false")


def _read_percent(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 100:
        raise _error("rollout.percent", value, "a number from 0 to 100")
    return float(value)


def _read_text(value: object, path: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise _error(path, value, "a text")


def _read_labels(value: object) -> Mapping[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise _error("rollout.labels", value, "a map of texts")
    for key, text in value.items():
        # Null is no text either: if it counted as not set, all devices would meet the condition.
        if not isinstance(text, str):
            raise _error(f"rollout.labels.{shorten(key)}", text, "a text")
    return value


def _read_max_attempts(value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise _error("maxAttempts", value, "a whole number above 0")
    return value


def _read_mtu(value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= U32_MAX:
        raise _error("mtu", value, f"a whole number of bytes from 1 to {U32_MAX}")
    return value


def _read_midway(value: object) -> str | None:
    if value is None or value in (FINISH, RESTART):
        return value if isinstance(value, str) else None
    raise _error("rollout.midway", value, f"{FINISH} or {RESTART}")


def _read_window(value: object) -> Window | None:
    if value is None:
        return None
    window = _read_map(value, "rollout.window", _WINDOW_KEYS)
    start = _read_minutes(window.get("from"), "rollout.window.from")
    end = _read_minutes(window.get("to"), "rollout.window.to", can_be_24=True)
    if start == end:
        wanted = 'another time than from ("00:00" to "24:00" is the whole day)'
        raise _error("rollout.window.to", window["to"], wanted)
    return Window(start, end or _MINUTES_OF_DAY, _read_timezone(window.get("timezone")), _read_days(window.get("days")))


def _read_minutes(value: object, path: str, *, can_be_24: bool = False) -> int:
    """Return minutes from midnight, 0 to 1440."""
    if value is None:
        raise MalformedSpecError(f"{path} is missing; it must be {_TIME}")
    if not isinstance(value, str):
        hint = ": YAML makes a number of 22:00 without quotes" if isinstance(value, int | float) else ""
        raise _error(path, value, _TIME + hint)
    if can_be_24 and value == "24:00":
        return _MINUTES_OF_DAY
    time = _TIME_OF_DAY.fullmatch(value)
    if not time:
        raise _error(path, value, f'"00:00" to "{"24:00" if can_be_24 else "23:59"}"')
    return int(time[1]) * 60 + int(time[2])


def _read_timezone(value: object) -> tzinfo:
    if value is None:
        return UTC
    if not isinstance(value, str) or not _ZONE.fullmatch(value):
        raise _error("rollout.window.timezone", value, _TIMEZONE)
    from zoneinfo import ZoneInfo  # imported when needed: few deployments have windows, and all should start fast

    try:
        return ZoneInfo(value)
    # KeyError: not found. ValueError: not a time zone's file. OSError: a folder.
    except (KeyError, ValueError, OSError) as error:
        raise _error("rollout.window.timezone", value, _TIMEZONE) from error


def _read_days(value: object) -> frozenset[int]:
    if value is None:
        return frozenset(range(7))
    if not isinstance(value, list) or not value:
        raise _error("rollout.window.days", value, f"a list of {_join_words(_DAYS)}")
    return frozenset(_read_day(name) for name in value)


def _read_day(name: object) -> int:
    if not isinstance(name, str) or name.lower() not in _DAYS:
        raise MalformedSpecError(f"rollout.window.days contains {_describe(name)}; it may contain {_join_words(_DAYS)}")
    return _DAYS.index(name.lower())


def _error(path: str, value: object, wanted: str) -> MalformedSpecError:
    return MalformedSpecError(f"{path} is {_describe(value)}; it must be {wanted}")


def _describe(value: object) -> str:
    """Return a value as JSON in one line; a map or a list is only named."""
    if isinstance(value, dict | list):
        kind = "map" if isinstance(value, dict) else "list"
        return f"a {kind}" if value else f"an empty {kind}"
    if isinstance(value, str):
        return f'"{shorten(value)}"'
    return shorten(json.dumps(value))


def shorten(text: str) -> str:
    """Return foreign text in one line, cut to the room that a message has for it."""
    return one_line(text if len(text) <= _MAX_SHOWN_CHARACTERS else f"{text[:_MAX_SHOWN_CHARACTERS]}…")


def _join_words(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"
