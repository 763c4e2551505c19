"""Update events: what the consumer makes of a sink that hangs, by a clock that a test steps."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from cloudevents.core.v1.event import CloudEvent

from fleet_fn.clocks import Clocks
from fleet_fn.deadline import Deadline
from fleet_fn.drogue.events import Event
from fleet_fn.errors import PermanentError, TransientError, UpstreamError
from fleet_fn.sink.client import Sink
from fleet_fn.update.transitions import Subject, Transition
from fleet_fn.update.update_events import UpdateEvents
from tests.support.timing import Clock

EVENT = Event("1", "drogue://app/pump", "io.drogue.event.v1", "dfu", "app", "pump", None, "application/json", b"")
STARTED = Transition(Subject.STARTED, "1", "2", "ab" * 32)
SWAPPED = Transition(Subject.SWAPPED, "1", "2", "ab" * 32)


@dataclass
class ScriptedSink:
    """Takes so long, and fails or not."""

    clock: Clock
    seconds: float = 0.0
    error: UpstreamError | None = None
    sent: list[Mapping[str, Any]] = field(default_factory=list)

    def send(self, event: CloudEvent, deadline: Deadline) -> None:
        self.sent.append(event.get_attributes())
        self.clock.now += min(self.seconds, deadline.remaining)
        if self.error:
            raise self.error


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sink(clock: Clock) -> ScriptedSink:
    return ScriptedSink(clock)


@pytest.fixture
def consumer(sink: ScriptedSink, clock: Clock) -> UpdateEvents:
    return UpdateEvents(cast(Sink, sink), Clocks(wall=lambda: 1e9, monotonic=clock))


def test_each_transition_is_sent_with_an_id_of_its_own(
    consumer: UpdateEvents, sink: ScriptedSink, clock: Clock
) -> None:
    for _ in range(2):
        consumer(EVENT, (STARTED, SWAPPED), Deadline(4, clock))
    ids = [event["id"] for event in sink.sent]
    assert ids[:2] == ids[2:]  # of the same event of the device
    assert len(set(ids)) == 2


def test_a_sink_that_hangs_is_left_alone_for_longer_each_time(
    consumer: UpdateEvents, sink: ScriptedSink, clock: Clock, records: list[logging.LogRecord]
) -> None:
    sink.seconds, sink.error = 60, TransientError("sink: no answer in time")
    waits = []
    for _ in range(9):
        count, since = len(sink.sent), clock.now
        while len(sink.sent) == count:
            before = clock.now
            consumer(EVENT, (STARTED, SWAPPED), Deadline(4, clock))
            assert clock.now - before <= 0.5
            clock.now += 0.25
        waits.append(clock.now - since)
    assert waits == sorted(waits)
    assert 30 < waits[-1] < 62
    assert len(records) > 9  # one for each event that was not sent
    sink.seconds, sink.error = 0, None
    clock.now += 60
    consumer(EVENT, (STARTED,), Deadline(4, clock))
    consumer(EVENT, (STARTED,), Deadline(4, clock))
    assert len(sink.sent) == 11


@pytest.mark.parametrize("error", [TransientError("sink: answered 503"), PermanentError("sink: answered 404")])
def test_a_sink_that_refuses_at_once_is_asked_each_time(
    consumer: UpdateEvents, sink: ScriptedSink, clock: Clock, records: list[logging.LogRecord], error: UpstreamError
) -> None:
    sink.error = error
    for _ in range(3):
        consumer(EVENT, (STARTED, SWAPPED), Deadline(4, clock))
    assert len(sink.sent) == len(records) == 3
    fields = cast(Any, records[0]).fields
    assert (fields["subjects"], fields["reason"]) == ("started swapped", error.reason)


def test_nothing_is_sent_without_time(
    consumer: UpdateEvents, sink: ScriptedSink, clock: Clock, records: list[logging.LogRecord]
) -> None:
    deadline = Deadline(1, clock)
    clock.now += 1
    consumer(EVENT, (STARTED,), deadline)
    assert sink.sent == []
    assert len(records) == 1
