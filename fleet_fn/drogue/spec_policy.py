"""The update policy in a `spec.firmware`: which devices are updated, and when."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from datetime import UTC, timedelta, tzinfo
from typing import Any, Final

from fleet_fn.drogue.spec_values import (
    MalformedSpecError,
    describe,
    join_words,
    malformed,
    read_choice,
    read_count,
    read_flag,
    read_list,
    read_map,
    read_percent,
    read_text,
    read_time,
    shorten,
)
from fleet_fn.protocol.messages import U32_MAX

#: The policy's keys in `spec.firmware`, and in its `rollout`.
POLICY_KEYS: Final = ("rollout", "maxAttempts", "retry", "mtu", "hardware", "downgrades")
ROLLOUT_KEYS: Final = ("paused", "percent", "stages", "maxFailed", "salt", "labels", "window", "midway")
_STAGE_KEYS: Final = ("percent", "approval", "after", "success", "over")
_WINDOW_KEYS: Final = ("from", "to", "timezone", "days")
#: Paths of the policy's keys, which users set one level too low.
OUTER_PATHS: Final = tuple(f"spec.firmware.{key}" for key in POLICY_KEYS)
#: The values of `downgrades`.
ALLOW: Final = "allow"
REFUSE: Final = "refuse"
#: The values of `rollout.midway`.
FINISH: Final = "finish"
RESTART: Final = "restart"
#: The highest `rollout.maxFailed`.
MAX_FAILED: Final = 1000
_MAX_STAGES: Final = 100

_MINUTES_OF_DAY: Final = 24 * 60
_DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_TIME_OF_DAY: Final = re.compile("([01][0-9]|2[0-3]):([0-5][0-9])")
#: No time zone has a longer name. `zoneinfo` looks each name up as a file and as a module, so check it first.
_ZONE: Final = re.compile("[A-Za-z0-9_+-]{1,32}(/[A-Za-z0-9_+-]{1,32}){0,2}")
#: Wanted values, in messages.
_CLOCK_TIME: Final = '"HH:MM" in quotes'
_TIMEZONE: Final = "the IANA name of a time zone, such as Europe/Oslo"


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
class Stage:
    """One step of a rollout; the application's status says which is reached."""

    #: Share of the devices that are updated, 0 to 100; not below that of the stage before.
    percent: float
    #: The rollout leaves it only with an operator's approval,
    approval: bool = False
    #: after this time,
    after: timedelta | None = None
    #: and if at least this share, in percent, of the devices with a result are in sync.
    success: float | None = None
    #: Time within which its share grows from that of the stage before; at once without it.
    over: timedelta | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """Rules about which devices may be updated, and when; None if a key is not set."""

    #: No device is updated.
    paused: bool | None = None
    #: Share of the devices that are updated, 0 to 100.
    percent: float | None = None
    #: Shares that follow one another, instead of `percent`.
    stages: tuple[Stage, ...] | None = None
    #: Devices that roll back or give up before the rollout halts, 1 to 1000.
    max_failed: int | None = None
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
    #: The device's hardware, which a firmware has to be built for.
    hardware: str | None = None
    #: Whether a version below the device's is sent: `allow` or `refuse`.
    downgrades: str | None = None

    def over(self, other: "Policy") -> "Policy":
        """Return both policies merged; each key that is set here wins.

        `percent` and `stages` are two ways to say one thing, so either wins over both.
        """
        if self is NONE:
            return other
        own = {name: value for name in _FIELDS if (value := getattr(self, name)) is not None}
        if not own:
            return other
        if self.percent is not None or self.stages is not None:
            own.update(percent=self.percent, stages=self.stages)
        return replace(other, **own)


_FIELDS: Final = tuple(field.name for field in fields(Policy))
NONE: Final = Policy()


def read_policy(section: Mapping[str, Any]) -> Policy:
    """Return the policy in a `spec.firmware`; null counts as not set.

    Raises:
        MalformedSpecError: a key is unknown, or its value is malformed.

    """
    if not any(key in section for key in POLICY_KEYS):
        return NONE
    rollout = read_map(section.get("rollout"), "rollout", ROLLOUT_KEYS, OUTER_PATHS)
    if rollout.get("percent") is not None and rollout.get("stages") is not None:
        raise MalformedSpecError("rollout.stages is set beside percent; only one of them may be set")
    return Policy(
        paused=read_flag(rollout.get("paused"), "rollout.paused"),
        percent=read_percent(rollout.get("percent"), "rollout.percent"),
        stages=_read_stages(rollout.get("stages")),
        max_failed=read_count(
            rollout.get("maxFailed"), "rollout.maxFailed", MAX_FAILED, f"a whole number from 1 to {MAX_FAILED}"
        ),
        salt=read_text(rollout.get("salt"), "rollout.salt"),
        labels=_read_labels(rollout.get("labels")),
        window=_read_window(rollout.get("window")),
        max_attempts=read_count(section.get("maxAttempts"), "maxAttempts", None, "a whole number above 0"),
        retry=read_text(section.get("retry"), "retry"),
        mtu=read_count(section.get("mtu"), "mtu", U32_MAX, f"a whole number of bytes from 1 to {U32_MAX}"),
        midway=read_choice(rollout.get("midway"), "rollout.midway", (FINISH, RESTART)),
        hardware=_read_hardware(section.get("hardware")),
        downgrades=read_choice(section.get("downgrades"), "downgrades", (ALLOW, REFUSE)),
    )


def _read_stages(value: object) -> tuple[Stage, ...] | None:
    if value is None:
        return None
    wanted = f"a list of 1 to {_MAX_STAGES} maps with {join_words(_STAGE_KEYS)}"
    if isinstance(value, list) and len(value) > _MAX_STAGES:
        raise MalformedSpecError(f"rollout.stages is a list of {len(value)}; it must be {wanted}")
    stages: list[Stage] = []
    for entry, path in read_list(value, "rollout.stages", wanted):
        stages.append(_read_stage(entry, path, stages[-1].percent if stages else 0))
    return tuple(stages)


def _read_stage(value: object, path: str, before: float) -> Stage:
    """Return a stage; its percentage must not be below that of the one `before`."""
    if value is None:
        raise malformed(path, value, f"a map with {join_words(_STAGE_KEYS)}")
    stage = read_map(value, path, _STAGE_KEYS)
    percent = read_percent(stage.get("percent"), f"{path}.percent", before)
    if percent is None:
        raise MalformedSpecError(f"{path}.percent is missing; it must be a number from {before:.15g} to 100")
    success = read_percent(stage.get("success"), f"{path}.success")
    if success is not None and not percent:
        raise malformed(f"{path}.success", stage["success"], "left out beside percent 0: no device has a result")
    return Stage(
        percent,
        read_flag(stage.get("approval"), f"{path}.approval") or False,
        read_time(stage.get("after"), f"{path}.after"),
        success,
        read_time(stage.get("over"), f"{path}.over"),
    )


def _read_labels(value: object) -> Mapping[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise malformed("rollout.labels", value, "a map of texts")
    for key, text in value.items():
        # Null is no text either: if it counted as not set, all devices would meet the condition.
        if not isinstance(text, str):
            raise malformed(f"rollout.labels.{shorten(key)}", text, "a text")
    return value


def _read_hardware(value: object) -> str | None:
    """Return the name of the device's hardware.

    Annotations separate names by commas, and have no spaces around them.
    """
    if value is None or (isinstance(value, str) and value and value == value.strip() and "," not in value):
        return value
    raise malformed("hardware", value, "the name of the device's hardware, such as rev-b: one name, without a comma")


def _read_window(value: object) -> Window | None:
    if value is None:
        return None
    window = read_map(value, "rollout.window", _WINDOW_KEYS)
    start = _read_minutes(window.get("from"), "rollout.window.from")
    end = _read_minutes(window.get("to"), "rollout.window.to", can_be_24=True)
    if start == end:
        wanted = 'another time than from ("00:00" to "24:00" is the whole day)'
        raise malformed("rollout.window.to", window["to"], wanted)
    return Window(start, end or _MINUTES_OF_DAY, _read_timezone(window.get("timezone")), _read_days(window.get("days")))


def _read_minutes(value: object, path: str, *, can_be_24: bool = False) -> int:
    """Return minutes from midnight, 0 to 1440."""
    if value is None:
        raise MalformedSpecError(f"{path} is missing; it must be {_CLOCK_TIME}")
    if not isinstance(value, str):
        hint = ": YAML makes a number of 22:00 without quotes" if isinstance(value, int | float) else ""
        raise malformed(path, value, _CLOCK_TIME + hint)
    if can_be_24 and value == "24:00":
        return _MINUTES_OF_DAY
    time = _TIME_OF_DAY.fullmatch(value)
    if not time:
        raise malformed(path, value, f'"00:00" to "{"24:00" if can_be_24 else "23:59"}"')
    return int(time[1]) * 60 + int(time[2])


def _read_timezone(value: object) -> tzinfo:
    if value is None:
        return UTC
    if not isinstance(value, str) or not _ZONE.fullmatch(value):
        raise malformed("rollout.window.timezone", value, _TIMEZONE)
    from zoneinfo import ZoneInfo  # imported when needed: few deployments have windows, and all should start fast

    try:
        return ZoneInfo(value)
    # KeyError: not found. ValueError: not a time zone's file. OSError: a folder.
    except (KeyError, ValueError, OSError) as error:
        raise malformed("rollout.window.timezone", value, _TIMEZONE) from error


def _read_days(value: object) -> frozenset[int]:
    if value is None:
        return frozenset(range(7))
    days = read_list(value, "rollout.window.days", f"a list of {join_words(_DAYS)}")
    return frozenset(_read_day(name) for name, _ in days)


def _read_day(name: object) -> int:
    if not isinstance(name, str) or name.lower() not in _DAYS:
        raise MalformedSpecError(f"rollout.window.days contains {describe(name)}; it may contain {join_words(_DAYS)}")
    return _DAYS.index(name.lower())
