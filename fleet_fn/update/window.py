"""Tell when a window is open, by the wall clock of its time zone."""

from datetime import UTC, datetime, timedelta
from typing import Final

from fleet_fn.drogue.spec_policy import Window

_DAY: Final = timedelta(days=1)


def opens_in(window: Window, now: datetime) -> float:
    """Return the seconds until the window is open; 0.0 while it is."""
    asked = opening = now.astimezone(UTC)
    while wait := _wait(window, opening.astimezone(window.timezone)):
        # A day at a time, so that a clock that is set forward and back again within a week is not missed.
        opening = _steady_until(window, opening, opening + min(wait, _DAY))
    return (opening - asked) / timedelta(seconds=1)


def _is_open(window: Window, local: datetime) -> bool:
    day, minute = local.weekday(), local.hour * 60 + local.minute
    if window.start < window.end:
        return day in window.days and window.start <= minute < window.end
    yesterday = (day - 1) % 7
    return (day in window.days and minute >= window.start) or (yesterday in window.days and minute < window.end)


def _wait(window: Window, local: datetime) -> timedelta:
    """Return how long the window stays closed if the clock is not set."""
    if _is_open(window, local):
        return timedelta()
    since_midnight = timedelta(
        hours=local.hour, minutes=local.minute, seconds=local.second, microseconds=local.microsecond
    )
    starts = (
        timedelta(days=ahead, minutes=window.start)
        for ahead in range(8)
        if (local.weekday() + ahead) % 7 in window.days
    )
    return next(start - since_midnight for start in starts if start > since_midnight)


def _steady_until(window: Window, since: datetime, until: datetime) -> datetime:
    """Return the moment before `until` at which the clock is set; else `until`.

    Times are in UTC.
    """
    offset = _offset(window, since)
    if _offset(window, until) == offset:
        return until
    # Clocks are set on a whole second.
    before = since.replace(microsecond=0)
    low, high = 0, -((before - until) // timedelta(seconds=1))
    while high - low > 1:
        middle = (low + high) // 2
        if _offset(window, before + timedelta(seconds=middle)) == offset:
            low = middle
        else:
            high = middle
    return before + timedelta(seconds=high)


def _offset(window: Window, moment: datetime) -> timedelta | None:
    return moment.astimezone(window.timezone).utcoffset()
