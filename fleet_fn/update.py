"""The use case: an event in, an outcome out, and between them the next step of a device's update."""

import math
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, NamedTuple

from fleet_fn.answered import Answered
from fleet_fn.deadline import Deadline
from fleet_fn.drogue.commands import Commands
from fleet_fn.drogue.events import REGISTRY_EVENT, Event
from fleet_fn.drogue.registry import Desired, File, Image, NotKnown, Outdated, Registry
from fleet_fn.drogue.report import FAILED, IN_SYNC, PROGRESS, UNKNOWN, Condition, Report, Reported
from fleet_fn.drogue.storable import storable
from fleet_fn.errors import Failed, Retry, Throttled
from fleet_fn.firmware.catalogue import Catalogue
from fleet_fn.firmware.file import file_reference
from fleet_fn.firmware.reference import fill_in, image_reference
from fleet_fn.firmware.store import KEPT_FOR_WAIT, Firmware, NotHere
from fleet_fn.guard import Again, Hold, Look, Situation, Stuck, Verdict, judge
from fleet_fn.log import logger
from fleet_fn.protocol.dialects import AnswerForm, Dialect, Encoding, decode_status, encode_command
from fleet_fn.protocol.messages import Command, Status, Swap, Sync, Wait, Write
from fleet_fn.protocol.step import Block, Target
from fleet_fn.record import LastAnswered
from fleet_fn.settings import Settings

#: Seconds that what starts or ends an update may have been known before (protocol, "What an answer may rest on").
_FRESH: Final = 1.0
#: TTLs for which updates under way go on with what their tag last stood at, where the registry does not answer.
_GOING_ON: Final = 10
#: The share of an event's time without which a command is not sent any more.
_KEPT_FOR_COMMAND: Final = 0.05
#: Decisions that an event may take, where others note something of the same device at the same time.
_DECISIONS: Final = 2
#: Bytes of a version: it goes into headers, where few take more than some thousand bytes.
_MAX_VERSION: Final = 255


class Outcome(NamedTuple):
    """How an event ended. The names are the contract's."""

    name: str
    reason: str | None = None
    #: Of a block or a swap.
    version: str | None = None
    offset: int | None = None
    size: int | None = None
    #: Seconds after which an upstream wants to be asked again.
    retry_after: int | None = None

    @property
    def is_answer(self) -> bool:
        """Whether the event has been dealt with, so that a second delivery needs nothing more."""
        return self.name in ("sync", "write", "swap", "withheld", "wait")


class Decision(NamedTuple):
    """What a device is told, if anything, and why."""

    outcome: Outcome
    command: Command | None = None
    form: AnswerForm | None = None
    #: What is to be written into the device's object, where it is news.
    report: Report | None = None
    #: It is written before the command goes out, which does not go out without it.
    reports_first: bool = False


class Updater:
    """Decides and sends the next command for each status. Whatever it remembers may be forgotten at any moment."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        images: Catalogue,
        files: Catalogue | None,
        commands: Commands,
        now: Callable[[], float] = time.time,
    ) -> None:
        """An updater; without `files` there are none that it could resolve. `now` is the wall clock."""
        self._settings = settings
        self._registry = registry
        self._images = images
        self._files = files
        self._commands = commands
        self._now = now
        self._answered = Answered(settings.event_max_age)

    def answer(self, event: Event, deadline: Deadline) -> Outcome:
        """Answers `event`, once, with a command for its device.

        Raises:
            InvalidEvent, InvalidStatus: what the device sent is no status.

        """
        if event.type == REGISTRY_EVENT:
            self._registry.forget(event.application, event.device)
        if not event.is_status:
            return Outcome("ignored")
        if self._is_stale(event):
            return Outcome("stale")
        try:
            with self._answered.turn(event.key, deadline) as turn:
                if turn.is_duplicate:
                    return Outcome("duplicate")
                decision = self._noted(event, self._decide(event, deadline), deadline)
                outcome = self._send(event, decision, deadline)
                turn.is_over = outcome.is_answer
            if outcome is decision.outcome:
                self._report(event, decision, deadline)
            return outcome
        except Failed as error:
            return Outcome("failed", error.reason)
        except Retry as error:
            return Outcome("retry", error.reason, retry_after=error.after)

    def decide(self, event: Event, deadline: Deadline) -> Decision:
        """What to tell the device that `event` is about, whether or not it has been told already; nothing is sent.

        Raises:
            InvalidEvent, InvalidStatus: what the device sent is no status.

        """
        return self._decide(event._replace(id="", time=None), deadline)

    def _decide(self, event: Event, deadline: Deadline) -> Decision:
        if not event.is_status:
            return Decision(Outcome("ignored"))
        payload, content_type = event.status_payload()
        status, form = decode_status(payload, content_type)
        if event.is_lorawan and form.encoding is Encoding.JSON:
            form = form._replace(encoding=Encoding.CBOR, text_versions=form.dialect is Dialect.NAMED)
        try:
            return self._next_step(event, status, form, deadline)
        except NotHere as error:
            return Decision(Outcome("wait", error.reason), _wait(form, self._settings.wait), form)
        except Retry as error:
            return Decision(Outcome("retry", error.reason, retry_after=error.after), None, form)
        except NotKnown as error:
            return Decision(Outcome("failed", error.reason), None, form)
        except Failed as error:
            return self._failure(event, status, form, error.reason)

    def _next_step(self, event: Event, status: Status, form: AnswerForm, deadline: Deadline) -> Decision:
        """The decision table's command, on a look at things that is as fresh as that command wants it."""
        started = deadline.elapsed

        def present() -> float:
            return deadline.elapsed - started

        def fresh() -> float:
            # Read within the last second, or for this event, however long it has to wait for its turn.
            return max(_FRESH, present())

        settings = self._settings
        known = _Ages(
            device=lambda: settings.spec_ttl,
            application=lambda: settings.spec_ttl,
            manifest=lambda: settings.manifest_ttl,
            always=lambda: 0.0,
            stale=_GOING_ON * settings.manifest_ttl,
        )
        taken = Look.MEMORY
        view = self._look(event, status, known, deadline)
        while view.verdict and (wanted := self._look_wanted(view.verdict)).value > taken.value:
            taken = wanted
            if wanted is Look.DEVICE:
                ages = known._replace(device=fresh, always=fresh)
            else:
                ages = _Ages(present if wanted is Look.NOW else fresh, fresh, fresh, fresh, stale=0.0)
            view = self._look(event, status, ages, deadline)
        return self._decision(event, status, form, view, deadline)

    def _look(self, event: Event, status: Status, ages: "_Ages", deadline: Deadline) -> "_View":
        """What is desired for the device, and what that comes to."""
        settings = self._settings
        with self._worth_a_retry(event, NotKnown):
            desired = self._registry.desired(
                event.application, event.device, ages.application(), deadline, of_device=ages.device()
            )
        firmware = self._firmware(event, desired, ages, deadline)
        if firmware is None:
            return _View(desired)
        situation = Situation(
            now=datetime.fromtimestamp(self._now(), UTC),
            mtu=min(status.mtu or settings.mtu_default, settings.mtu_max),
            poll=settings.poll,
            # What was noted says nothing where nobody keeps it up.
            record=desired.reported.record if settings.report_status else None,
            policy=desired.policy,
            uid=event.device_uid or desired.uid,
            labels=desired.labels,
            answered=LastAnswered((event.key,), event.time) if event.id else None,
        )
        target = Target(firmware.version.encode(), firmware.size, firmware.checksum)
        return _View(desired, firmware, judge(status, target, situation))

    def _look_wanted(self, verdict: Verdict) -> Look:
        if verdict.rests_on is Look.DEVICE and not self._settings.report_status:
            return Look.MEMORY
        return verdict.rests_on

    def _firmware(self, event: Event, desired: Desired, ages: "_Ages", deadline: Deadline) -> Firmware | None:
        """The firmware that the device should run; None where none is named."""
        source = desired.source
        if source is None and self._settings.firmware_default_image:
            names = {"application": event.application, "device": event.device}
            source = Image(fill_in(self._settings.firmware_default_image, names))
        if source is None:
            return None
        with self._worth_a_retry(event, Failed):
            if isinstance(source, Image):
                prefix = self._settings.firmware_prefix
                image = image_reference(source.reference, prefix, event.application, source.platform)
                max_age = ages.always() if source.always else ages.manifest()
                return self._images.resolve(image, max_age, deadline, stale_age=ages.stale)
            if isinstance(source, File) and self._files is not None:
                # Unlike a blob's, its bytes may be others by now: what describes them is read each time.
                return self._files.resolve(file_reference(source.name), 0.0, deadline)
        raise Failed("unsupported-source")

    def _decision(self, event: Event, status: Status, form: AnswerForm, view: "_View", deadline: Deadline) -> Decision:
        """The command that a verdict comes to, and what there is to report of it."""
        firmware, verdict = view.firmware, view.verdict
        if firmware is None or verdict is None:
            return Decision(Outcome("withheld", "unmanaged"), Sync(status.version, self._settings.poll), form)
        step, version = verdict.step, firmware.version.encode()
        if isinstance(step, Again):
            return Decision(Outcome("duplicate"), None, form)
        if isinstance(step, Stuck):
            return self._failure(event, status, form, "device-offset", step.message, verdict)
        if isinstance(step, Swap | Block) and (not form.takes_version(version) or len(version) > _MAX_VERSION):
            raise Failed("version-too-long")
        if isinstance(step, Sync):
            decision = Decision(Outcome("sync"), step, form)
        elif isinstance(step, Hold):
            decision = Decision(Outcome("withheld", step.reason), Sync(status.version, step.poll), form)
        elif isinstance(step, Swap):
            decision = Decision(Outcome("swap", version=firmware.version), step, form)
        else:
            with self._worth_a_retry(event, Failed):
                write = _read(firmware, step, deadline)
            outcome = Outcome("write", version=firmware.version, offset=step.offset, size=step.size)
            decision = Decision(outcome, write, form)
        reported = view.desired.reported
        report = _report_of(status, firmware, verdict, reported)
        return self._with_news(decision, report, reported, first=verdict.notes_first)

    def _failure(
        self,
        event: Event,
        status: Status,
        form: AnswerForm,
        reason: str,
        message: str = "",
        verdict: Verdict | None = None,
    ) -> Decision:
        """A failure of a device that the cloud knows."""
        decision = Decision(Outcome("failed", reason), _wait(form, self._settings.poll), form)
        reported = self._registry.reported(event.application, event.device) or Reported()
        report = Report(
            _text(status.version),
            UNKNOWN,
            (Condition(IN_SYNC, "False", reason, message),),
            before=reported.record if verdict else None,
            record=verdict.record if verdict else None,
        )
        return self._with_news(decision, report, reported)

    def _with_news(self, decision: Decision, report: Report, reported: Reported, *, first: bool = False) -> Decision:
        """A decision with what there is to report, if that is news; `first`: before the command goes out."""
        if not self._settings.report_status or not report.is_news(reported):
            return decision
        return decision._replace(report=report, reports_first=first)

    def _noted(self, event: Event, decision: Decision, deadline: Deadline) -> Decision:
        """The decision, once what has to be noted before anything is sent has been; or another, where that changed.

        Raises:
            Failed, Retry: it cannot be noted.

        """
        for _ in range(_DECISIONS):
            if not decision.reports_first or decision.report is None or self._is_stale(event):
                return decision
            ordered, answered = decision.report.split()
            try:
                with self._worth_a_retry(event, Failed):
                    self._write(event, ordered, deadline)
            except Outdated:
                decision = self._decide(event, deadline)
            else:
                return decision._replace(report=answered)
        raise Retry("registry: others keep changing what is noted of the device's update")

    def _report(self, event: Event, decision: Decision, deadline: Deadline, *, once_more: bool = True) -> None:
        """Reports what is news, if that can be done in the time that is left; if not, a later status will."""
        names = (event.application, event.device)
        if decision.report is None or self._registry.has_given_up_reporting(*names):
            return
        try:
            self._write(event, decision.report, deadline)
        except Outdated:
            # Another process has noted something since; what there is to say beside that is still worth it.
            if once_more and (later := self._decide(event, deadline)).outcome == decision.outcome:
                self._report(event, later, deadline, once_more=False)
        except (Failed, Retry) as error:
            self._registry.give_up_reporting(*names)
            _warn("status not reported", event, error)

    def _write(self, event: Event, report: Report, deadline: Deadline) -> None:
        """Writes a report into the device's object.

        Raises:
            Outdated, Failed, Retry: see `Registry.report`.

        """
        now = datetime.fromtimestamp(self._now(), UTC)
        self._registry.report(event.application, event.device, report, now, deadline)

    def _send(self, event: Event, decision: Decision, deadline: Deadline) -> Outcome:
        """Sends what was decided, unless the device has stopped waiting for it meanwhile.

        Raises:
            Failed, Retry: the command was not accepted.

        """
        if decision.command is None or decision.form is None:
            return decision.outcome
        if self._is_stale(event):
            return Outcome("stale")
        if deadline.remaining < _KEPT_FOR_COMMAND * deadline.total:
            # Sent now it could be accepted, and its acceptance come too late: then it would be sent again.
            return (
                Outcome("retry", "no time is left to send the command")
                if decision.outcome.is_answer
                else decision.outcome
            )
        payload = encode_command(decision.command, decision.form)
        try:
            with self._worth_a_retry(event, Failed):
                self._commands.send(
                    event.application, event.device, event.command, payload, decision.form.encoding.value, deadline
                )
        except (Failed, Retry) as error:
            if decision.outcome.name != "failed":
                raise
            # The WAIT was a courtesy: what failed is still what there is to tell.
            _warn("WAIT not sent", event, error)
        return decision.outcome

    def _is_stale(self, event: Event) -> bool:
        return self._time_left(event) < 0

    def _time_left(self, event: Event) -> float:
        """Seconds until the device does not listen any more."""
        max_age = self._settings.event_max_age
        if not max_age:
            return math.inf
        if event.time is None:
            return max_age
        return max_age - (datetime.fromtimestamp(self._now(), UTC) - event.time).total_seconds()

    def _worth_a_retry(self, event: Event, otherwise: type[Failed]) -> "_WorthARetry":
        return _WorthARetry(otherwise, lambda: self._time_left(event))


class _WorthARetry:
    """Where an upstream wants to be left alone until the event is stale, the failure that this is."""

    __slots__ = ("_otherwise", "_time_left")

    def __init__(self, otherwise: type[Failed], time_left: Callable[[], float]) -> None:
        self._otherwise = otherwise
        self._time_left = time_left

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, Throttled) and error.after is not None and error.after > self._time_left():
            raise self._otherwise(f"{error.reason}, and wants to be left alone for too long") from error


class _Ages(NamedTuple):
    """Seconds that what an answer rests on may have been known before, at the moment that somebody asks."""

    #: The device's object, and its application's.
    device: Callable[[], float]
    application: Callable[[], float]
    #: Tags' manifests.
    manifest: Callable[[], float]
    #: Tags' manifests, where they are to be looked up for each status.
    always: Callable[[], float]
    #: Tags' manifests, where the registry that has them does not answer.
    stale: float


class _View(NamedTuple):
    """What an answer rests on, and what it is to be."""

    desired: Desired
    #: None where none is named.
    firmware: Firmware | None = None
    verdict: Verdict | None = None


def _warn(what: str, event: Event, error: Failed | Retry) -> None:
    """Logs what an upstream would not do, where that is not what comes of the event."""
    fields = {"application": event.application, "device": event.device, "reason": error.reason, "id": event.id}
    if event.trace:
        fields["trace_id"] = event.trace.id
    logger.warning(what, extra={"fields": fields})


def _report_of(status: Status, firmware: Firmware, verdict: Verdict, reported: Reported) -> Report:
    """What there is to say of a device that knows its target."""
    current, step, crosses_tenth = _text(status.version), verdict.step, False
    if isinstance(step, Sync):
        return Report(current, current, (Condition(IN_SYNC, "True"),), reported.record, verdict.record)
    conditions = [Condition(IN_SYNC, "False")]
    written = 0
    if isinstance(step, Block):
        written, crosses_tenth = step.offset + step.size, _crosses_tenth(step, firmware.size)
    elif isinstance(step, Swap):
        written = firmware.size
    elif isinstance(step, Hold):
        conditions = [Condition(IN_SYNC, "False", step.reason, step.message)]
        if status.progress and status.progress.version == firmware.version.encode():
            written = min(status.progress.offset, firmware.size)
    if written:
        conditions.append(Condition(PROGRESS, "Unknown", message=f"{100 * written / firmware.size:.2f}"))
    if isinstance(step, Hold) and step.gives_up:
        conditions.append(Condition(FAILED, "True", step.reason, step.message))
    return Report(current, firmware.version, tuple(conditions), reported.record, verdict.record, crosses_tenth)


def _crosses_tenth(block: Block, size: int) -> bool:
    return 10 * block.offset // size < 10 * (block.offset + block.size) // size


def _text(version: bytes) -> str:
    return storable(version.decode("utf-8", "backslashreplace"))


def _read(firmware: Firmware, block: Block, deadline: Deadline) -> Write:
    with firmware.open(deadline.leaving(KEPT_FOR_WAIT)) as reader:
        return Write(block.version, block.offset, reader.read(block.offset, block.size))


def _wait(form: AnswerForm, poll: int) -> Wait | None:
    return Wait(poll) if form.has_wait else None
