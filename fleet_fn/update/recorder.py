"""Write reports and records into devices' objects."""

import secrets
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from fleet_fn.deadline import Deadline
from fleet_fn.drogue.device_registry import ConflictError, DeviceNotFoundError, DeviceRegistry
from fleet_fn.drogue.events import Event
from fleet_fn.drogue.status_report import IN_SYNC, UNKNOWN, Condition, Report, Reported
from fleet_fn.errors import PermanentError, TransientError, UpstreamError
from fleet_fn.update.brake import Brake
from fleet_fn.update.freshness import Clock
from fleet_fn.update.outcome import OutcomeName, Reply
from fleet_fn.update.transitions import Transition, failure_of
from fleet_fn.update.unsent import UnsentCommands
from fleet_fn.update.warnings import warn

#: The share of an event's time without which no record is written any more: a command has to follow it.
_KEPT_FOR_RECORD: Final = 0.15
#: Replies that an event may take, if other processes change the device's record at the same time.
_MAX_REPLIES: Final = 3


class Recorder:
    """Writes records before commands, and reports after them."""

    def __init__(self, device_registry: DeviceRegistry, clock: Clock, unsent: UnsentCommands, *, is_on: bool) -> None:
        """Put the parts together.

        Args:
            device_registry: reads specs, and writes reports.
            clock: the wall clock.
            unsent: events whose commands had no effect.
            is_on: REPORT_STATUS; without it nothing is written.

        """
        self._device_registry = device_registry
        self._clock = clock
        self._unsent = unsent
        self._is_on = is_on
        self._brake = Brake(device_registry)

    def record_first(self, event: Event, reply: Reply, again: Callable[[], Reply], deadline: Deadline) -> Reply:
        """Write the record that has to be there before the command is sent.

        Args:
            event: the event.
            reply: its reply.
            again: makes a reply anew.
            deadline: the event's.

        Returns:
            The reply, or another one if the record was changed meanwhile.

        Raises:
            PermanentError, TransientError: the record cannot be written, so nothing is sent.

        """
        for _ in range(_MAX_REPLIES):
            if not reply.records_first or reply.report is None or self._clock.is_stale(event):
                return reply
            if deadline.remaining < _KEPT_FOR_RECORD * deadline.total:
                raise TransientError("no time is left to record the update")
            report = _with_token(reply.report)
            try:
                with self._clock.final_if_too_late(event, PermanentError):
                    self._write(event, report, deadline)
            except ConflictError:
                reply = again()
            except TransientError as error:
                if error.may_have_acted:
                    self._unsent.add(event.key, report.record)
                raise
            else:
                return reply._replace(report=None, recorded=report)
        raise TransientError("device registry: the record of the device's update keeps changing")

    def take_back(self, event: Event, reply: Reply, error: UpstreamError, deadline: Deadline) -> tuple[Transition, ...]:
        """Report that a command was not accepted, best effort.

        A command that had no effect leaves the record as it was before, so that a redelivery of the event sends it.
        Return the transition to a failure, if that is news.
        """
        recorded, had_no_effect = reply.recorded, not error.may_have_acted
        is_final = isinstance(error, PermanentError) and not isinstance(error, DeviceNotFoundError)
        if not self._is_on or not (is_final or (recorded and had_no_effect)):
            return ()
        reported = self._device_registry.peek_reported(event.application, event.device) or Reported()
        report = recorded or reply.report
        conditions = report.conditions if report else reported.conditions
        target = (report.target if report else reported.target) or UNKNOWN
        if is_final:
            conditions, target = (Condition(IN_SYNC, "False", error.reason),), UNKNOWN
        taken_back = Report(
            (report.current if report else reported.current) or UNKNOWN,
            target,
            conditions,
            before=recorded.record if recorded else None,
            record=recorded.before if recorded and had_no_effect else recorded.record if recorded else None,
        )
        failure = failure_of(error.reason, report or taken_back, reply.reported) if is_final else ()
        if not taken_back.is_news(reported):
            return failure
        try:
            self._write(event, taken_back, deadline)
        except ConflictError:
            pass  # another process has recorded a later status
        except (PermanentError, TransientError) as refusal:
            warn("status not reported", event, refusal)
            if recorded and had_no_effect:
                self._unsent.add(event.key, recorded.record)
        return failure

    def report(
        self, event: Event, reply: Reply, again: Callable[[], Reply], deadline: Deadline
    ) -> tuple[Transition, ...]:
        """Report news if the deadline allows it; if not, a later status does.

        Args:
            event: the event.
            reply: its reply, which was sent.
            again: makes a reply anew.
            deadline: the event's.

        Returns:
            The transitions that the device's object tells now. A later status tells those that it does not.

        """
        names = (event.application, event.device)
        if reply.report is None:
            if not (transitions := reply.transitions(reply.reported)):
                return ()
            return transitions + (self._record_failure(event, transitions, reply, deadline) or ())
        if self._device_registry.has_given_up_reporting(*names):
            return ()
        halt = self._record_failure(event, reply.transitions(reply.reported), reply, deadline)
        if halt is None:
            return ()  # the device's next status shows the failure again
        transitions = ()
        try:
            with suppress(ConflictError):
                before = self._write(event, reply.report, deadline)
                transitions = reply.transitions(before) if before else ()
                # The device came up with a version, and this process did not know of its swap.
                is_late = reply.outcome.name == OutcomeName.SYNC and before and before.record != reply.report.before
                if not is_late:
                    return transitions + halt
            # Another process has recorded something since. The rest of the report is still worth writing.
            later = again()
            if later.outcome == reply.outcome and later.report:
                further = self._record_failure(event, later.transitions(later.reported), later, deadline)
                if further is None:
                    return transitions + halt
                halt += further
                before = self._write(event, later.report, deadline)
                transitions += later.transitions(before) if before else ()
        except ConflictError:
            pass  # the next status reports
        except (PermanentError, TransientError) as error:
            self._device_registry.give_up_reporting(*names)
            warn("status not reported", event, error)
        return transitions + halt

    def _record_failure(
        self, event: Event, transitions: tuple[Transition, ...], reply: Reply, deadline: Deadline
    ) -> tuple[Transition, ...] | None:
        """Record a failure, and return the transition to a halt, if there is one.

        Return None if the failure could not be recorded now.
        """
        try:
            return self._brake.record(event, transitions, reply.max_failed, deadline)
        except TransientError as error:
            warn("failed update not recorded", event, error)
            return None

    def _write(self, event: Event, report: Report, deadline: Deadline) -> Reported | None:
        """Write a report into the device's object; see `DeviceRegistry.report`.

        Raises:
            ConflictError, PermanentError, TransientError: it was not written.

        """
        return self._device_registry.report(event.application, event.device, report, self._clock.now(), deadline)


def _with_token(report: Report) -> Report:
    """Return a report whose record names the write that makes it."""
    return report._replace(record=report.record.with_write(secrets.token_hex(4))) if report.record else report
