"""Policy: who may be updated when, as `spec.firmware` of an application or a device says."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta, tzinfo
from hashlib import sha256
from typing import Any, Final

from fleet_fn.errors import one_line

_DAY: Final = timedelta(days=1)
_MINUTES_OF_DAY: Final = 24 * 60
_DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_TIME: Final = re.compile("([01][0-9]|2[0-3]):([0-5][0-9])")
#: No name is longer. `zoneinfo` looks each up as a file and as a module, so it must not get what is no name.
_ZONE: Final = re.compile("[A-Za-z0-9_+-]{1,32}(/[A-Za-z0-9_+-]{1,32}){0,2}")
#: A float holds 53 bits exactly (IEEE 754, binary64), so no draw is rounded, least of all up to 1.
_DRAWN_BITS: Final = 53
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


class MalformedPolicy(ValueError):
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

    def opens_in(self, now: datetime) -> float:
        """Seconds until it is open; 0.0 while it is."""
        asked = opening = now.astimezone(UTC)
        while wait := self._wait(opening.astimezone(self.timezone)):
            # A day at a time, so that a clock that is set forward and back again within a week is not missed.
            opening = self._steady_until(opening, opening + min(wait, _DAY))
        return (opening - asked) / timedelta(seconds=1)

    def _is_open(self, local: datetime) -> bool:
        day, minute = local.weekday(), local.hour * 60 + local.minute
        if self.start < self.end:
            return day in self.days and self.start <= minute < self.end
        yesterday = (day - 1) % 7
        return (day in self.days and minute >= self.start) or (yesterday in self.days and minute < self.end)

    def _wait(self, local: datetime) -> timedelta:
        """How long it stays closed if nobody sets the clock."""
        if self._is_open(local):
            return timedelta()
        since_midnight = timedelta(
            hours=local.hour, minutes=local.minute, seconds=local.second, microseconds=local.microsecond
        )
        starts = (
            timedelta(days=ahead, minutes=self.start)
            for ahead in range(8)
            if (local.weekday() + ahead) % 7 in self.days
        )
        return next(start - since_midnight for start in starts if start > since_midnight)

    def _steady_until(self, since: datetime, until: datetime) -> datetime:
        """The first moment at which the clock shows something else than at `since`, had it just gone on; else `until`.

        Both are in UTC.
        """
        offset = self._offset(since)
        if self._offset(until) == offset:
            return until
        # Clocks are set on a whole second.
        before = since.replace(microsecond=0)
        low, high = 0, -((before - until) // timedelta(seconds=1))
        while high - low > 1:
            middle = (low + high) // 2
            if self._offset(before + timedelta(seconds=middle)) == offset:
                low = middle
            else:
                high = middle
        return before + timedelta(seconds=high)

    def _offset(self, moment: datetime) -> timedelta | None:
        return moment.astimezone(self.timezone).utcoffset()


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


@dataclass(frozen=True, slots=True)
class Hold:
    """An update must not go on now."""

    #: `rollout` or `window`.
    reason: str
    #: Why, for people, in one line.
    message: str
    #: Seconds until a window opens.
    opens_in: float | None = None


def hold_start(policy: Policy, uid: str, labels: Mapping[str, str], version: str, now: datetime) -> Hold | None:
    """Why a device must not start its update, if so.

    Args:
        policy: the device's over its application's. Whether it is paused is not looked at.
        uid: the device's UID; empty where it is not known.
        labels: the device's labels.
        version: the target's.
        now: any time zone.

    """
    return (
        _hold_labels(policy.labels or {}, labels)
        or _hold_percent(policy.percent, uid, version, policy.salt)
        or hold_swap(policy, now)
    )


def hold_swap(policy: Policy, now: datetime) -> Hold | None:
    """Why a device that has written its update must not swap to it, if so: only its window counts."""
    window = policy.window
    opens_in = window.opens_in(now) if window else 0.0
    if not window or not opens_in:
        return None
    opening = (now.astimezone(UTC) + timedelta(seconds=opens_in)).astimezone(window.timezone)
    return Hold("window", f"the window opens at {opening.isoformat(timespec='minutes')}", opens_in)


def drawn(uid: str, version: str, salt: str | None) -> float:
    """A device's place among all, from 0 up to and without 1: the same each time, and evenly spread over devices.

    Each version draws anew; with `salt` they all draw the same.
    """
    device = uid.encode()
    # The length tells where the UID ends, so no other pair of texts is hashed as the same bytes.
    digest = sha256(b"%d:%b%b" % (len(device), device, (version if salt is None else salt).encode())).digest()
    return (int.from_bytes(digest[:8], "big") >> (64 - _DRAWN_BITS)) / (1 << _DRAWN_BITS)


def _hold_labels(wanted: Mapping[str, str], labels: Mapping[str, str]) -> Hold | None:
    missing = ", ".join(f"{key}={value}" for key, value in wanted.items() if labels.get(key) != value)
    return Hold("rollout", f"its labels are not {_shown(missing)}") if missing else None


def _hold_percent(percent: float | None, uid: str, version: str, salt: str | None) -> Hold | None:
    # Everybody is in at 100, and nobody at 0, because what is drawn is below 1, and not below 0.
    if percent is None or percent == 100:
        return None
    devices = f"not among the {percent:.15g} % of devices"
    if not uid:
        return Hold("rollout", f"{devices}: it has no UID")  # else all such devices would be drawn as one
    return None if drawn(uid, version, salt) < percent / 100 else Hold("rollout", devices)


def read_policy(section: Mapping[str, Any]) -> Policy:
    """The policy in a `spec.firmware` section; null counts as not said.

    Raises:
        MalformedPolicy: a policy key is unknown, or has a value that it does not take.

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
        raise MalformedPolicy(f"{path}: got {_shown(', '.join(unknown))}, takes {takes}")
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
            raise _malformed(f"rollout.labels.{_shown(key)}", text, "a text")
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
        raise MalformedPolicy(f"{path}: missing, takes {_TIME_TAKES}")
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


def _malformed(path: str, value: object, takes: str) -> MalformedPolicy:
    return MalformedPolicy(f"{path}: got {_quoted(value)}, takes {takes}")


def _quoted(value: object) -> str:
    """`value` as it stands in JSON, in one line, or what it is."""
    if isinstance(value, dict | list):
        kind = "map" if isinstance(value, dict) else "list"
        return f"a {kind}" if value else f"an empty {kind}"
    if isinstance(value, str):
        return f'"{_shown(value)}"'
    return _shown(json.dumps(value))


def _shown(text: str) -> str:
    return one_line(text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…")


def _either(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"
