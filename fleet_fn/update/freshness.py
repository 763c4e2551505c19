"""Ages: that of an event, and those of the facts that its answer rests on."""

import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, NamedTuple

from fleet_fn.deadline import Deadline
from fleet_fn.drogue.events import Event
from fleet_fn.errors import PermanentError, RateLimitedError
from fleet_fn.settings import Settings
from fleet_fn.update.values import Freshness

#: Age of the facts that may start or end an update (protocol, "What an answer may rest on").
_FRESH_SECONDS: Final = 1.0
#: If the OCI registry is down, updates in progress use the last resolved manifest for this many TTLs.
_STALE_TTLS: Final = 10
#: Devices that ask again after POLL_SECONDS hear of a new assignment then, although their clocks are not ours.
_POLL_SHARE: Final = 0.9


class Clock:
    """The wall clock, and the time for which the device of an event still listens."""

    def __init__(self, max_age_seconds: float, now: Callable[[], float]) -> None:
        """Let events be stale after `max_age_seconds`, or never if that is 0.

        `now` is Unix time in seconds.
        """
        self._max_age_seconds = max_age_seconds
        self._now = now

    def now(self) -> datetime:
        """Return the time in UTC."""
        return datetime.fromtimestamp(self._now(), UTC)

    def is_stale(self, event: Event) -> bool:
        """Return whether the event's device has stopped listening."""
        return self.time_left(event) < 0

    def time_left(self, event: Event) -> float:
        """Return the seconds until the event's device stops listening."""
        if not self._max_age_seconds:
            return math.inf
        if event.time is None:
            return self._max_age_seconds
        return self._max_age_seconds - (self._now() - event.time.timestamp())

    def final_if_too_late(self, event: Event, otherwise: type[PermanentError]) -> "_FinalIfTooLate":
        """Return a context that raises `otherwise` if a retry would come too late.

        It would if an upstream wants quiet until the event is stale.
        """
        return _FinalIfTooLate(self, event, otherwise)


class _FinalIfTooLate:
    """Raises another error for an upstream that wants quiet until the event is stale."""

    __slots__ = ("_clock", "_event", "_otherwise")

    def __init__(self, clock: Clock, event: Event, otherwise: type[PermanentError]) -> None:
        self._clock = clock
        self._event = event
        self._otherwise = otherwise

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if (
            isinstance(error, RateLimitedError)
            and error.retry_after is not None
            and error.retry_after > self._clock.time_left(self._event)
        ):
            other = self._otherwise(f"{error.reason}, and asks to wait longer than the device listens")
            other.may_have_acted = error.may_have_acted
            raise other from error


class Ages(NamedTuple):
    """Greatest ages, in seconds, of the facts behind an answer.

    An event may wait for its turn. Suppose that it came 5 s ago and starts an update: an object that was read 4 s ago
    was read for it and will do, one that was read 6 s ago will not. So most ages grow while the event is answered, and
    are functions.
    """

    #: The device's object, and its application's.
    device: Callable[[], float]
    application: Callable[[], float]
    #: Tags' manifests.
    manifest: Callable[[], float]
    #: Tags' manifests, if `imagePullPolicy: Always` wants them looked up for each status.
    always: Callable[[], float]
    #: Tags' manifests, if the OCI registry does not answer.
    stale: float
    #: What a DDI server assigns to a controller.
    assignment: Callable[[], float]
    #: The record of a device midway may take the place of an assignment.
    takes_records: bool


def remembered_ages(settings: Settings) -> Ages:
    """Return the ages that facts may have between the start of an update and its end."""
    return Ages(
        device=lambda: settings.spec_ttl_seconds,
        application=lambda: settings.spec_ttl_seconds,
        manifest=lambda: settings.manifest_ttl_seconds,
        always=lambda: 0.0,
        stale=_STALE_TTLS * settings.manifest_ttl_seconds,
        assignment=lambda: _POLL_SHARE * settings.poll_seconds,
        takes_records=True,
    )


def recalled_ages(settings: Settings) -> Ages:
    """Return the ages that facts may have if they show that a device is in sync."""
    return remembered_ages(settings)._replace(device=lambda: settings.in_sync_ttl_seconds)


def fresh_ages(freshness: Freshness, deadline: Deadline, since: float) -> Ages:
    """Return the ages that facts may have that start or end an update.

    Args:
        freshness: whether the device's object has to be read for this event.
        deadline: the event's.
        since: seconds of the deadline that had passed when the event's first decision began.

    """

    def present() -> float:
        return deadline.elapsed - since

    def fresh() -> float:
        # Read within the last second, or for this event, however long it has to wait for its turn.
        return max(_FRESH_SECONDS, present())

    device = present if freshness is Freshness.NOW else fresh
    return Ages(device, fresh, fresh, fresh, stale=0.0, assignment=fresh, takes_records=False)
