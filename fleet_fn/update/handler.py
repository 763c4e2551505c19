"""The use case: an event in, an outcome out; between them a device's next step."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Final

from fleet_fn.clocks import SYSTEM_CLOCKS, Clocks
from fleet_fn.deadline import Deadline
from fleet_fn.drogue.commands import Commands
from fleet_fn.drogue.device_registry import (
    DeviceDisabledError,
    DeviceNotFoundError,
    DeviceNotServedError,
    DeviceRegistry,
)
from fleet_fn.drogue.events import REGISTRY_EVENT, Event
from fleet_fn.drogue.status_report import IN_SYNC, UNKNOWN, Condition, Heartbeat, Report, Reported
from fleet_fn.errors import PermanentError, TransientError
from fleet_fn.firmware.store import KEPT_FOR_WAIT, Firmware, NotReadyError
from fleet_fn.protocol.dialects import MAX_VERSION_BYTES, Dialect, Encoding, decode_status, encode_command
from fleet_fn.protocol.messages import Command, Swap, Sync, Write
from fleet_fn.protocol.step import Block
from fleet_fn.settings import Settings
from fleet_fn.update.assessment import Assessor, View
from fleet_fn.update.deduplication import EventDeduplicator
from fleet_fn.update.freshness import Clock, fresh_ages, remembered_ages
from fleet_fn.update.outcome import Outcome, OutcomeName, Reply, wait_in
from fleet_fn.update.recorder import Recorder
from fleet_fn.update.repeats import Repeats
from fleet_fn.update.reports import UNMANAGED, refusal_of, report_of, report_of_unassigned, version_text
from fleet_fn.update.target import Resolvers, TargetFinder
from fleet_fn.update.transitions import Transition, failure_of, transitions_of, transitions_without_record
from fleet_fn.update.unsent import UnsentCommands
from fleet_fn.update.values import Again, Confirm, Decision, DeviceStatus, Freshness, Hold, Settle, Stuck
from fleet_fn.update.warnings import log_unexpected_error, warn

if TYPE_CHECKING:
    from fleet_fn.update.feedback import FeedbackSender

#: The share of an event's time without which a command is not sent any more.
_KEPT_FOR_COMMAND: Final = 0.05
#: The longest pause between two times at which a device in sync is said to be seen.
_MAX_SEEN_SECONDS: Final = 365 * 24 * 60 * 60.0
#: How far the clocks of two processes may be apart.
_CLOCKS_DIFFER: Final = timedelta(minutes=1)

Consumer = Callable[[Event, tuple[Transition, ...], Deadline], None]


class UpdateHandler:
    """Decides and sends the next command for each status.

    It may forget at any moment all that it remembers.
    """

    def __init__(
        self,
        settings: Settings,
        device_registry: DeviceRegistry,
        resolvers: Resolvers,
        commands: Commands,
        clocks: Clocks = SYSTEM_CLOCKS,
        consumers: Sequence[Consumer] = (),
    ) -> None:
        """Put the parts together.

        Each of `consumers` gets the transitions of an update, after the command and its report. So does the source
        of its firmware, if that takes feedback.
        """
        self._settings = settings
        self._device_registry = device_registry
        self._commands = commands
        self._clock = Clock(settings.event_max_age_seconds, clocks.wall)
        self._deduplicator = EventDeduplicator(settings.event_max_age_seconds, clocks.monotonic)
        self._repeats = Repeats()
        self._unsent = UnsentCommands()
        targets = TargetFinder(settings, resolvers, self._clock)
        self._assessor = Assessor(settings, device_registry, targets, self._clock, self._repeats, self._unsent)
        self._remembered_ages = remembered_ages(settings)
        self._consumers = consumers
        self._feedback = _make_feedback(resolvers, clocks)
        self._recorder = Recorder(device_registry, self._clock, self._unsent, is_on=settings.report_status)

    def answer(self, event: Event, deadline: Deadline) -> Outcome:
        """Answer `event`, once, with a command for its device.

        Raises:
            InvalidEventError, InvalidStatusError: the device sent no status.

        """
        if event.type == REGISTRY_EVENT:
            self._device_registry.forget(event.application, event.device)
        if ignored := self._ignored(event):
            return ignored
        if self._clock.is_stale(event):
            return Outcome(OutcomeName.STALE)
        again = partial(self._reply, event, deadline)
        try:
            with self._deduplicator.turn(event.key, deadline) as turn:
                if turn.is_duplicate:
                    return Outcome(OutcomeName.DUPLICATE)
                reply = self._recorder.record_first(event, again(), again, deadline)
                outcome = self._send(event, reply, deadline)
                turn.is_over = outcome.is_answer
            if outcome is reply.outcome:
                self._follow_up(event, reply, again, deadline)
            return outcome
        except PermanentError as error:
            return Outcome(OutcomeName.FAILED, error.reason, error.message)
        except TransientError as error:
            return Outcome(OutcomeName.RETRY, error.reason, retry_after=error.retry_after)

    def decide(self, event: Event, deadline: Deadline) -> Reply:
        """Return the reply to `event`, answered already or not; nothing is sent.

        Raises:
            InvalidEventError, InvalidStatusError: the device sent no status.

        """
        if ignored := self._ignored(event):
            return Reply(ignored)
        return self._reply(event._replace(id="", time=None), deadline)

    def _ignored(self, event: Event) -> Outcome | None:
        """Return the outcome of an event that needs no answer; None if it needs one."""
        if not event.is_status:
            return Outcome(OutcomeName.IGNORED)
        if event.is_certain and not self._settings.serves(event.application):
            return Outcome(OutcomeName.IGNORED, f"APPLICATIONS does not name {event.application}")
        return None

    def _reply(self, event: Event, deadline: Deadline) -> Reply:
        payload, content_type = event.status_payload()
        status, form = decode_status(payload, content_type)
        if event.is_lorawan and form.encoding is Encoding.JSON:
            form = form._replace(encoding=Encoding.CBOR, text_versions=form.dialect is Dialect.NAMED)
        received = DeviceStatus(event, status, form)
        try:
            return self._reply_to(received, self._view(received, deadline), deadline)
        except DeviceNotServedError as error:
            return Reply(Outcome(OutcomeName.IGNORED, str(error)), None, form)
        except NotReadyError as error:
            return Reply(Outcome(OutcomeName.WAIT, error.reason), wait_in(form, self._settings.wait_seconds), form)
        except TransientError as error:
            return Reply(Outcome(OutcomeName.RETRY, error.reason, retry_after=error.retry_after), None, form)
        except DeviceDisabledError as error:
            return self._failure(received, error.reason)._replace(command=None)
        except DeviceNotFoundError as error:
            return Reply(Outcome(OutcomeName.FAILED, error.reason), None, form)
        except PermanentError as error:
            failure = self._failure(received, error.reason, error.message)
            return failure._replace(outcome=failure.outcome._replace(message=error.message))

    def _view(self, received: DeviceStatus, deadline: Deadline) -> View:
        """Return the decision on facts that are as fresh as its command needs them."""
        began = deadline.elapsed
        if recalled := self._assessor.recall(received, deadline):
            return recalled
        taken = Freshness.MEMORY
        view = self._assessor.assess(received, self._remembered_ages, deadline)
        while (needed := view.rests_on).value > taken.value:
            taken = needed
            view = self._assessor.assess(received, fresh_ages(needed, deadline, began), deadline)
        return view

    def _reply_to(self, received: DeviceStatus, view: View, deadline: Deadline) -> Reply:
        """Return the command that a decision comes to, and the report of it."""
        event, status, form = received
        decision, reported = view.decision, view.desired.reported
        if decision is None:
            sync = Sync(status.version, self._settings.poll_seconds)
            reply = Reply(Outcome(OutcomeName.WITHHELD, UNMANAGED), sync, form, tell=self._teller(received, view))
            report = report_of_unassigned(version_text(status.version), reported) if view.assigned else None
            return self._with_news(reply, report, reported) if report else reply
        command: Command | None
        match decision.step:
            case Again():
                return Reply(Outcome(OutcomeName.DUPLICATE), None, form)
            case Stuck(message):
                # SYNC ends the loop of devices that count wrongly once they are restarted.
                failure = self._failure(received, "device-offset", message, decision, reported)
                return failure._replace(command=Sync(status.version, self._settings.poll_seconds))
            case Settle(seconds):
                command = wait_in(form, max(seconds, 1))
                outcome = Outcome(OutcomeName.WAIT, "other bytes had this version a moment ago")
            case Confirm(version, poll):
                outcome, command = Outcome(OutcomeName.SYNC), Sync(version, poll)
            case Sync() as command:
                outcome = Outcome(OutcomeName.SYNC)
            case Hold(reason, poll=poll):
                outcome, command = Outcome(OutcomeName.WITHHELD, reason), Sync(status.version, poll)
            case order:
                assert view.served is not None  # noqa: S101 - a step towards it
                outcome, command = self._order(received, view.served, order, deadline)
        refusal = ""
        if isinstance(decision.step, Block):
            sent = self._repeats.of(event.application, event.device, decision.step)
            refusal = refusal_of(decision.step, sent, reported)
        report = report_of(
            status, view, decision, refusal, self._heartbeat() if isinstance(decision.step, Sync) else None
        )
        is_news = self._is_news(report, reported)
        return Reply(
            outcome,
            command,
            form,
            report=report if is_news else None,
            records_first=is_news and decision.records_first,
            reported=reported,
            transitions=self._transitions(view, decision, report),
            max_failed=view.desired.policy.max_failed,
            tell=self._teller(received, view),
        )

    def _transitions(
        self, view: View, decision: Decision, report: Report
    ) -> Callable[[Reported], tuple[Transition, ...]]:
        """Return the function that tells what is new about a device's update."""
        version, checksum = (view.served.version, view.served.checksum.hex()) if view.served else ("", "")
        if self._settings.report_status:
            return partial(transitions_of, decision.step, report, checksum)
        return lambda _: transitions_without_record(decision.step, report.current, version, checksum)

    def _teller(self, received: DeviceStatus, view: View) -> Callable[[tuple[Transition, ...], Deadline], None] | None:
        """Return the function that tells the source of the firmware, if it listens."""
        if self._feedback is None or view.assigned is None:
            return None
        return partial(self._feedback.send, received.event, version_text(received.status.version), view)

    def _heartbeat(self) -> Heartbeat | None:
        """Return when a device was last seen, unless its object has to say so anew."""
        seconds, now = self._settings.report_seen_seconds, self._clock.now()
        if not seconds:
            return None
        # A time ahead of our clock says nothing, but clocks of processes differ.
        return Heartbeat(now - timedelta(seconds=min(seconds, _MAX_SEEN_SECONDS)), now + _CLOCKS_DIFFER)

    def _order(
        self, received: DeviceStatus, firmware: Firmware, step: Swap | Block, deadline: Deadline
    ) -> tuple[Outcome, Swap | Write]:
        """Return the command that brings the device closer to a firmware.

        Raises:
            PermanentError: the device cannot hold the version, or the bytes are not the published ones.
            NotReadyError, TransientError: the bytes cannot be served yet.

        """
        form, version = received.form, firmware.version.encode()
        if not form.takes_version(version) or len(version) > MAX_VERSION_BYTES:
            raise PermanentError("version-too-long")
        checksum = firmware.checksum.hex()
        if isinstance(step, Swap):
            outcome = Outcome(OutcomeName.SWAP, version=firmware.version, checksum=checksum, manifest=firmware.manifest)
            return outcome, step
        with self._clock.final_if_too_late(received.event, PermanentError):
            write = _read(firmware, step, deadline)
        outcome = Outcome(
            OutcomeName.WRITE,
            version=firmware.version,
            offset=step.offset,
            size=step.size,
            checksum=checksum,
            manifest=firmware.manifest,
        )
        return outcome, write

    def _failure(
        self,
        received: DeviceStatus,
        reason: str,
        message: str = "",
        decision: Decision | None = None,
        reported: Reported | None = None,
    ) -> Reply:
        """Return the failure of a device that the cloud knows.

        Args:
            received: the device's status.
            reason: why, in short.
            message: why, for people.
            decision: the decision, if it changes the record.
            reported: the report that the decision rests on; without it the remembered one.

        """
        event, status, form = received
        reported = reported or self._device_registry.peek_reported(event.application, event.device) or Reported()
        report = Report(
            version_text(status.version),
            UNKNOWN,
            (Condition(IN_SYNC, "False", reason, message),),
            before=reported.record if decision else None,
            record=decision.record if decision else None,
        )
        reply = Reply(Outcome(OutcomeName.FAILED, reason), wait_in(form, self._settings.poll_seconds), form)
        if self._settings.report_status:
            reply = reply._replace(transitions=partial(failure_of, reason, report))
        return self._with_news(reply, report, reported)

    def _with_news(self, reply: Reply, report: Report, reported: Reported) -> Reply:
        """Return a reply with its report if that is news."""
        return reply._replace(reported=reported, report=report if self._is_news(report, reported) else None)

    def _is_news(self, report: Report, reported: Reported) -> bool:
        return self._settings.report_status and report.is_news(reported)

    def _send(self, event: Event, reply: Reply, deadline: Deadline) -> Outcome:
        """Send the reply's command, unless the device has stopped listening meanwhile.

        Raises:
            PermanentError, TransientError: the command was not accepted.

        """
        if reply.command is None or reply.form is None:
            return reply.outcome
        if self._clock.is_stale(event):
            return Outcome(OutcomeName.STALE)
        if deadline.remaining < _KEPT_FOR_COMMAND * deadline.total:
            # Sent now it could be accepted, and its acceptance come too late: then it would be sent again.
            if reply.recorded:
                self._unsent.add(event.key, reply.recorded.record)
            return (
                Outcome(OutcomeName.RETRY, "no time is left to send the command")
                if reply.outcome.is_answer
                else reply.outcome
            )
        self._unsent.discard(event.key)
        payload = encode_command(reply.command, reply.form)
        try:
            with self._clock.final_if_too_late(event, PermanentError):
                self._commands.send(
                    event.application, event.device, event.command, payload, reply.form.encoding.value, deadline
                )
        except (PermanentError, TransientError) as error:
            if reply.outcome.name != OutcomeName.FAILED:
                self._announce(event, self._recorder.take_back(event, reply, error, deadline), deadline)
                raise
            # The WAIT was a courtesy: the failure is still the outcome.
            warn("WAIT not sent", event, error)
        return reply.outcome

    def _follow_up(self, event: Event, reply: Reply, again: Callable[[], Reply], deadline: Deadline) -> None:
        """Count and report a sent reply; no error changes the outcome any more."""
        try:
            self._count_repeats(event, reply)
            transitions = self._recorder.report(event, reply, again, deadline)
        except Exception:  # noqa: BLE001 - whatever it is, the event is answered
            log_unexpected_error(event)
        else:
            self._announce(event, transitions, deadline)
            self._tell_source(event, reply, transitions, deadline)

    def _tell_source(self, event: Event, reply: Reply, transitions: tuple[Transition, ...], deadline: Deadline) -> None:
        """Tell the source of the firmware; no error changes the outcome."""
        if reply.tell is None:
            return
        try:
            reply.tell(transitions, deadline)
        except Exception:  # noqa: BLE001 - whatever it is, the event is answered
            log_unexpected_error(event)

    def _announce(self, event: Event, transitions: tuple[Transition, ...], deadline: Deadline) -> None:
        """Hand transitions to their consumers; no error changes the outcome."""
        if not transitions:
            return
        for consume in self._consumers:
            try:
                consume(event, transitions, deadline)
            except Exception:  # noqa: BLE001 - whatever it is, the event is answered
                log_unexpected_error(event)

    def _count_repeats(self, event: Event, reply: Reply) -> None:
        """Count the block that the device was sent, or end the row of blocks."""
        if isinstance(reply.command, Write):
            write = reply.command
            self._repeats.add(event.application, event.device, Block(write.version, write.offset, len(write.data)))
        elif reply.outcome.name == OutcomeName.SYNC:
            self._repeats.forget(event.application, event.device)


def _make_feedback(resolvers: Resolvers, clocks: Clocks) -> "FeedbackSender | None":
    if resolvers.hawkbit is None:
        return None
    from fleet_fn.update.feedback import FeedbackSender

    return FeedbackSender(resolvers.hawkbit, clocks.monotonic)


def _read(firmware: Firmware, block: Block, deadline: Deadline) -> Write:
    with firmware.open(deadline.leave(KEPT_FOR_WAIT)) as reader:
        return Write(block.version, block.offset, reader.read(block.offset, block.size))
