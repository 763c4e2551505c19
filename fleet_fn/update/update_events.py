"""Tell the sink of the turning points of updates, best effort.

An event with news waits for the sink, because WSGI has no time after the answer. So the wait is short, and a sink that
hangs is left alone for a while: threads that wait for it would be missed by other devices.
"""

from datetime import UTC, datetime
from typing import Final

from cloudevents.core.v1.event import CloudEvent

from fleet_fn.clocks import SYSTEM_CLOCKS, Clocks
from fleet_fn.deadline import Deadline
from fleet_fn.drogue.events import Event
from fleet_fn.errors import TransientError, UpstreamError
from fleet_fn.sink.client import SINK, Sink
from fleet_fn.sink.events import UPDATE_EVENT, make_event
from fleet_fn.update.transitions import Transition
from fleet_fn.update.warnings import warn

#: The longest wait of one answer for the sink. One in the cluster takes a few milliseconds.
_MAX_WAIT_SECONDS: Final = 0.5
#: A failure that took this share of the wait counts as hanging.
_HANGS: Final = 0.8
#: How long a sink that hangs is left alone; doubles up to a minute.
_MIN_PAUSE_SECONDS: Final = 1.0
_MAX_PAUSE_SECONDS: Final = 60.0


class UpdateEvents:
    """A consumer of transitions that sends each to the sink."""

    def __init__(self, sink: Sink, clocks: Clocks = SYSTEM_CLOCKS) -> None:
        """Send to `sink`."""
        self._sink = sink
        self._clocks = clocks
        self._pause = 0.0
        self._paused_until = 0.0

    def __call__(self, event: Event, transitions: tuple[Transition, ...], deadline: Deadline) -> None:
        """Send transitions, and log the first failure; the rest is not sent then."""
        limit = deadline.within(_MAX_WAIT_SECONDS)
        now = datetime.fromtimestamp(self._clocks.wall(), UTC)
        for position, transition in enumerate(transitions):
            try:
                self._send(update_event(event, transition, now), limit)
            except UpstreamError as error:
                warn("update event not sent", event, error, subjects=_subjects(transitions[position:]))
                return

    def _send(self, event: CloudEvent, deadline: Deadline) -> None:
        """Send an event, unless the sink is left alone.

        Raises:
            PermanentError, TransientError: it was not sent, or not taken.

        """
        if self._clocks.monotonic() < self._paused_until:
            raise TransientError(f"{SINK}: left alone for a while, because it hangs")
        if not deadline.remaining:
            raise TransientError(f"{SINK}: no time is left")
        try:
            self._sink.send(event, deadline)
        except UpstreamError:
            if deadline.elapsed >= _HANGS * _MAX_WAIT_SECONDS:
                self._pause = min(max(2 * self._pause, _MIN_PAUSE_SECONDS), _MAX_PAUSE_SECONDS)
                self._paused_until = self._clocks.monotonic() + self._pause
            raise
        self._pause = 0.0


def update_event(event: Event, transition: Transition, now: datetime) -> CloudEvent:
    """Return a transition as an event.

    A redelivery of the device's event gives it the same id, so that the sink can drop the second one.
    """
    attributes: dict[str, str | datetime | None] = {
        "id": f"{event.key}-{transition.subject}",
        "source": event.source,
        "type": UPDATE_EVENT,
        "subject": transition.subject.value,
        "time": now,
        "application": event.application,
        "device": event.device,
        "traceparent": event.trace.parent if event.trace else None,
        "tracestate": event.trace.state if event.trace else None,
    }
    data = {
        "application": event.application,
        "device": event.device,
        "deviceUid": event.device_uid or None,
        "from": transition.from_version or None,
        "to": transition.to_version or None,
        "checksum": transition.checksum or None,
        "attempts": transition.attempts,
        "reason": transition.reason or None,
    }
    return make_event(attributes, data)


def _subjects(transitions: tuple[Transition, ...]) -> str:
    return " ".join(transition.subject for transition in transitions)
