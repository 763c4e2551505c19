"""What `spec.firmware` of an application or a device says of who may be updated when."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, tzinfo
from typing import Any, Final

from fleet_fn.errors import one_line

_MINUTES_OF_DAY: Final = 24 * 60
_DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_TIME: Final = re.compile("([01][0-9]|2[0-3]):([0-5][0-9])")
#: No name is longer. `zoneinfo` looks each up as a file and as a module, so it must not get what is no name.
_ZONE: Final = re.compile("[A-Za-z0-9_+-]{1,32}(/[A-Za-z0-9_+-]{1,32}){0,2}")
#: Characters of what others wrote that a message repeats.
_MAX_SHOWN: Final = 100

_SECTION_KEYS: Final = frozenset(("rollout", "maxAttempts", "retry", "mtu"))
_ROLLOUT_KEYS: Final = ("paused", "percent", "salt", "labels", "window", "midway")
#: The values of `rollout.midway`.
FINISH: Final = "finish"
RESTART: Final = "restart"
#: The largest `mtu`: devices report theirs in 32 bits.
_MAX_MTU: Final = 2**32 - 1
_WINDOW_KEYS: Final = ("from", "to", "timezone", "days")
_TIME_TAKES: Final = '"HH:MM" in quotes'
_TIMEZONE_TAKES: Final = "the IANA name of a time zone, such as Europe/Oslo"


class MalformedPolicyError(ValueError):
    """A policy cannot be understood. Its text is one line that names the key, what it got and what it takes."""


@dataclass(frozen=True, slots=True)
class Window:
    """The hours of the week in which updates may start and be swapped to, by the wall clock of a time zone.

    Where the clock is set back, an hour that occurs twice is open twice; where it is set forward, what would have
    opened in the missing hour opens after it, or not at all where it would have ended in it, too.
    """

    #: Minutes from local midnight, 0 to 1439.
    start: int
    #: Minutes from local midnight, 1 to 1440, exclusive; below or equal `start` when it passes midnight.
    end: int
    timezone: tzinfo
    #: The days on which it opens: 0 is Monday, 6 Sunday. What passes midnight belongs to the day on which it opened.
    days: frozenset[int]


@dataclass(frozen=True, slots=True)
class Policy:
    """Who may be updated when. None is what nobody said anything of."""

    #: Nobody is updated.
    paused: bool | None = None
    #: How many of the devices are updated, 0 to 100.
    percent: float | None = None
    #: Draws the devices instead of the target's version, so that those who are first are the same each time.
    salt: str | None = None
    #: Only devices that have all of these.
    labels: Mapping[str, str] | None = None
    window: Window | None = None
    #: Swaps after which a version that does not come up is given up.
    max_attempts: int | None = None
    #: Another text than before forgets failed attempts.
    retry: str | None = None
    #: The largest block in bytes, for boards whose buffer must hold the envelope too.
    mtu: int | None = None
    #: What a device midway gets when its target moves: `finish` or `restart`.
    midway: str | None = None

    def over(self, other: "Policy") -> "Policy":
        """Both, the fields of this one winning one by one."""
        said = {name: value for name in _FIELDS if (value := getattr(self, name)) is not None}
        return replace(other, **said)


_FIELDS: Final = tuple(field.name for field in fields(Policy))
NONE: Final = Policy()


def read_policy(section: Mapping[str, Any]) -> Policy:
    """The policy in a `spec.firmware` section; null counts as not said.

    Raises:
        MalformedPolicyError: a policy key is unknown, or has a value that it does not take.

    """
    if _SECTION_KEYS.isdisjoint(section):
        return NONE
    rollout = _map(section.get("rollout"), "rollout", _ROLLOUT_KEYS)
    return Policy(
        paused=_paused(rollout.get("paused")),
        percent=_percent(rollout.get("percent")),
        salt=_text(rollout.get("salt"), "rollout.salt"),
        labels=_labels(rollout.get("labels")),
        window=_window(rollout.get("window")),
        max_attempts=_max_attempts(section.get("maxAttempts")),
        retry=_text(section.get("retry"), "retry"),
        mtu=_mtu(section.get("mtu")),
        midway=_midway(rollout.get("midway")),
    )


def _map(value: object, path: str, keys: Sequence[str]) -> Mapping[str, Any]:
    """The map `value`, which has none but `keys`: a misspelt `percent` that is ignored would update everybody."""
    if value is None:
        return {}
    takes = f"a map with {_either(keys)}"
    if not isinstance(value, dict):
        raise _malformed(path, value, takes)
    if unknown := [key for key in value if key not in keys]:
        raise MalformedPolicyError(f"{path}: got {shown(', '.join(unknown))}, takes {takes}")
    return value


def _paused(value: object) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    raise _malformed("rollout.paused", value, "true or false")


def _percent(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 100:
        raise _malformed("rollout.percent", value, "a number from 0 to 100")
    return float(value)


def _text(value: object, path: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise _malformed(path, value, "a text")


def _labels(value: object) -> Mapping[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise _malformed("rollout.labels", value, "a map of texts")
    for key, text in value.items():
        # Null is none, either: a condition that is left out is met by everybody.
        if not isinstance(text, str):
            raise _malformed(f"rollout.labels.{shown(key)}", text, "a text")
    return value


def _max_attempts(value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise _malformed("maxAttempts", value, "a whole number above 0")
    return value


def _mtu(value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MAX_MTU:
        raise _malformed("mtu", value, f"a whole number of bytes from 1 to {_MAX_MTU}")
    return value


def _midway(value: object) -> str | None:
    if value is None or value in (FINISH, RESTART):
        return value if isinstance(value, str) else None
    raise _malformed("rollout.midway", value, f"{FINISH} or {RESTART}")


def _window(value: object) -> Window | None:
    if value is None:
        return None
    window = _map(value, "rollout.window", _WINDOW_KEYS)
    start = _minutes(window.get("from"), "rollout.window.from")
    end = _minutes(window.get("to"), "rollout.window.to", can_be_24=True)
    if start == end:
        takes = 'another time than from; "00:00" to "24:00" is the whole day'
        raise _malformed("rollout.window.to", window["to"], takes)
    return Window(start, end or _MINUTES_OF_DAY, _timezone(window.get("timezone")), _days(window.get("days")))


def _minutes(value: object, path: str, *, can_be_24: bool = False) -> int:
    """Minutes from midnight, 0 to 1440."""
    if value is None:
        raise MalformedPolicyError(f"{path}: missing, takes {_TIME_TAKES}")
    if not isinstance(value, str):
        hint = ": YAML makes a number of 22:00 without quotes" if isinstance(value, int | float) else ""
        raise _malformed(path, value, _TIME_TAKES + hint)
    if can_be_24 and value == "24:00":
        return _MINUTES_OF_DAY
    time = _TIME.fullmatch(value)
    if not time:
        raise _malformed(path, value, f'"00:00" to "{"24:00" if can_be_24 else "23:59"}"')
    return int(time[1]) * 60 + int(time[2])


def _timezone(value: object) -> tzinfo:
    if value is None:
        return UTC
    if not isinstance(value, str) or not _ZONE.fullmatch(value):
        raise _malformed("rollout.window.timezone", value, _TIMEZONE_TAKES)
    from zoneinfo import ZoneInfo  # most functions never read a window, and all of them should start fast

    try:
        return ZoneInfo(value)
    # Not found; a file, but no zone's; a folder.
    except (KeyError, ValueError, OSError) as error:
        raise _malformed("rollout.window.timezone", value, _TIMEZONE_TAKES) from error


def _days(value: object) -> frozenset[int]:
    if value is None:
        return frozenset(range(7))
    takes = f"a list of {_either(_DAYS)}"
    if not isinstance(value, list) or not value:
        raise _malformed("rollout.window.days", value, takes)
    return frozenset(_day(name, takes) for name in value)


def _day(name: object, takes: str) -> int:
    if not isinstance(name, str) or name.lower() not in _DAYS:
        raise _malformed("rollout.window.days", name, takes)
    return _DAYS.index(name.lower())


def _malformed(path: str, value: object, takes: str) -> MalformedPolicyError:
    return MalformedPolicyError(f"{path}: got {_quoted(value)}, takes {takes}")


def _quoted(value: object) -> str:
    """`value` as it stands in JSON, in one line, or what it is."""
    if isinstance(value, dict | list):
        kind = "map" if isinstance(value, dict) else "list"
        return f"a {kind}" if value else f"an empty {kind}"
    if isinstance(value, str):
        return f'"{shown(value)}"'
    return shown(json.dumps(value))


def shown(text: str) -> str:
    """Return what others wrote in one line, cut to what a message may repeat of it."""
    return one_line(text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…")


def _either(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"
