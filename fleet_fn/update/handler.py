"""The use case: an event in, an outcome out, and between them the next step of a device's update."""

import math
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from fleet_fn.deadline import Deadline
from fleet_fn.drogue.commands import Commands
from fleet_fn.drogue.device_registry import (
    ConflictError,
    Desired,
    DeviceDisabledError,
    DeviceNotFoundError,
    DeviceRegistry,
    File,
    HawkBit,
    Image,
)
from fleet_fn.drogue.events import REGISTRY_EVENT, Event
from fleet_fn.drogue.firmware_spec import FINISH, RESTART
from fleet_fn.drogue.status_report import (
    BLOCK_REFUSED,
    CONFIRMING,
    FAILED,
    FINISHING,
    IN_SYNC,
    PROGRESS,
    SETTLING,
    UNKNOWN,
    Condition,
    Report,
    Reported,
)
from fleet_fn.drogue.storable import storable
from fleet_fn.drogue.update_record import LastAnswered, Origin
from fleet_fn.errors import PermanentError, RateLimitedError, TransientError, UpstreamError
from fleet_fn.firmware.file_store import file_reference
from fleet_fn.firmware.resolver import Resolver
from fleet_fn.firmware.store import KEPT_FOR_WAIT, Firmware, NotReadyError
from fleet_fn.observability.log import logger
from fleet_fn.oci.reference import Reference, fill_in, image_reference
from fleet_fn.protocol.dialects import (
    AnswerForm,
    Dialect,
    Encoding,
    decode_status,
    encode_command,
    room_for_data,
)
from fleet_fn.protocol.messages import U32_MAX, Command, Status, Swap, Sync, Wait, Write
from fleet_fn.protocol.step import Block, Target
from fleet_fn.settings import Settings
from fleet_fn.update.decision import (
    MAX_ATTEMPTS,
    Again,
    Confirm,
    Decision,
    DecisionContext,
    Freshness,
    Hold,
    Settle,
    Stuck,
    confirm,
    decide,
    has_begun,
)
from fleet_fn.update.deduplication import EventDeduplicator
from fleet_fn.update.repeats import Repeats

#: Seconds that what starts or ends an update may have been known before (protocol, "What an answer may rest on").
_FRESH: Final = 1.0
#: TTLs for which updates under way go on with what their tag last stood at, where the registry does not answer.
_GOING_ON: Final = 10
#: The share of an event's time without which a command is not sent any more.
_KEPT_FOR_COMMAND: Final = 0.05
#: The share of an event's time without which no record is written any more: a command has to follow it.
_KEPT_FOR_RECORD: Final = 0.15
#: The share of an event's time within which its target is resolved if the device has to hear SYNC all the same.
_KEPT_FOR_SYNC: Final = 0.5
#: Decisions that an event may take, if other processes change the device's record at the same time.
_MAX_DECISIONS: Final = 3
#: Bytes of a command that Drogue Cloud takes, its envelope included.
MAX_COMMAND_BYTES: Final = 65_536
#: A block that has to be shortened for that is a multiple of the largest flash word.
_BLOCK_UNIT_BYTES: Final = 32
#: Accepted SYNCs after which a device counts as having heard one although it reports early. Devices of the embedded
#: dialects keep still for `poll` seconds once they have heard it; other clients may not.
_ENOUGH_SYNCS: Final = {Dialect.DOCUMENTED: 2, Dialect.NAMED: 3, Dialect.PACKED: 3}
#: Gateways of a device that are looked at. Drogue Cloud's devices have one, or a few.
_MAX_GATEWAYS: Final = 8
#: The longest time for which another process is believed to remember an object.
_MAX_SPEC_TTL_SECONDS: Final = 365 * 24 * 60 * 60.0
#: Events whose commands had no effect that are remembered, because their records could not be put back.
_MAX_UNSENT: Final = 1000
#: The same block asked for so many times in a row is reported.
_SUSPICIOUS_REPEATS: Final = 5
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


class Reply(NamedTuple):
    """What a device is told, if anything, and why."""

    outcome: Outcome
    command: Command | None = None
    form: AnswerForm | None = None
    #: What is to be written into the device's object, where it is news.
    report: Report | None = None
    #: The report is written before the command is sent, which is not sent without it.
    records_first: bool = False
    #: The report that was written before the command.
    recorded: Report | None = None


class UpdateHandler:
    """Decides and sends the next command for each status. Whatever it remembers may be forgotten at any moment."""

    def __init__(
        self,
        settings: Settings,
        registry: DeviceRegistry,
        images: Resolver,
        files: Resolver | None,
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
        self._answered = EventDeduplicator(settings.event_max_age)
        self._repeats = Repeats()
        #: Keys of events whose commands had no effect, although their records say that they were answered: the
        #: records could not be put back.
        self._unsent: OrderedDict[str, None] = OrderedDict()

    def answer(self, event: Event, deadline: Deadline) -> Outcome:
        """Answers `event`, once, with a command for its device.

        Raises:
            InvalidEventError, InvalidStatusError: what the device sent is no status.

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
                decision = self._record_first(event, self._decide(event, deadline), deadline)
                outcome = self._send(event, decision, deadline)
                turn.is_over = outcome.is_answer
            if outcome is decision.outcome and isinstance(decision.command, Write):
                self._repeats.add(event.application, event.device, _block_of(decision.command))
            elif outcome.name == "sync":
                self._repeats.forget(event.application, event.device)
            if outcome is decision.outcome:
                self._report(event, decision, deadline)
            return outcome
        except PermanentError as error:
            return Outcome("failed", error.reason)
        except TransientError as error:
            return Outcome("retry", error.reason, retry_after=error.after)

    def decide(self, event: Event, deadline: Deadline) -> Reply:
        """What to tell the device that `event` is about, whether or not it has been told already; nothing is sent.

        Raises:
            InvalidEventError, InvalidStatusError: what the device sent is no status.

        """
        return self._decide(event._replace(id="", time=None), deadline)

    def _decide(self, event: Event, deadline: Deadline) -> Reply:
        if not event.is_status:
            return Reply(Outcome("ignored"))
        payload, content_type = event.status_payload()
        status, form = decode_status(payload, content_type)
        if event.is_lorawan and form.encoding is Encoding.JSON:
            form = form._replace(encoding=Encoding.CBOR, text_versions=form.dialect is Dialect.NAMED)
        try:
            return self._next_step(event, status, form, deadline)
        except NotReadyError as error:
            return Reply(Outcome("wait", error.reason), _wait(form, self._settings.wait), form)
        except TransientError as error:
            return Reply(Outcome("retry", error.reason, retry_after=error.after), None, form)
        except DeviceDisabledError as error:
            return self._failure(event, status, form, error.reason)._replace(command=None)
        except DeviceNotFoundError as error:
            return Reply(Outcome("failed", error.reason), None, form)
        except PermanentError as error:
            return self._failure(event, status, form, error.reason)

    def _next_step(self, event: Event, status: Status, form: AnswerForm, deadline: Deadline) -> Reply:
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
        taken = Freshness.MEMORY
        view = self._look(event, status, form, known, deadline)
        while (wanted := view.rests_on).value > taken.value:
            taken = wanted
            ages = _Ages(present if wanted is Freshness.NOW else fresh, fresh, fresh, fresh, stale=0.0)
            view = self._look(event, status, form, ages, deadline)
        return self._decision(event, status, form, view, deadline)

    def _look(self, event: Event, status: Status, form: AnswerForm, ages: "_Ages", deadline: Deadline) -> "_View":
        """Return what is desired for the device, and what that comes to."""
        with self._worth_a_retry(event, DeviceNotFoundError):
            desired = self._registry.desired(
                event.application, event.device, ages.application(), deadline, of_device=ages.device()
            )
        if desired.disabled:
            raise DeviceDisabledError("device disabled")
        situation = self._situation(event, status, form, desired)
        syncs_first = confirm(status, None, situation)
        try:
            until = deadline.leaving(_KEPT_FOR_SYNC) if syncs_first else deadline
            firmware = self._firmware(event, desired, ages, until)
            if firmware is None:
                return _View(desired)
            served = self._begun(event, status, form, desired, firmware, ages, until) or firmware
        except (UpstreamError, NotReadyError) as error:
            if syncs_first is None:
                raise
            _warn("target not resolved", event, error)
            return _View(desired, verdict=syncs_first)
        verdict = self._judge(status, served, situation, form)
        if served is not firmware and isinstance(verdict.step, Block) and verdict.step.offset == 0:
            # A device that has to begin anew all the same begins with its target.
            served = firmware
            verdict = self._judge(status, served, situation, form)
        if desired.gateways and isinstance(verdict.step, Block | Swap):
            busy = self._busy_gateway(event, desired, ages, deadline)
            verdict = self._judge(status, served, situation._replace(busy_gateway=busy), form) if busy else verdict
        has_nothing = status.progress is None or status.progress.offset == 0
        if has_nothing and self._refuses_starts(event, verdict, form):
            verdict = Decision(Confirm(status.version, self._settings.poll), desired.reported.record)
        if verdict.records_first and verdict.record and verdict.record.origin is None:
            verdict = verdict._replace(record=replace(verdict.record, origin=self._origin(event, desired, firmware)))
        return _View(desired, firmware, served, verdict)

    def _refuses_starts(self, event: Event, verdict: Decision, form: AnswerForm) -> bool:
        """Return whether a device asks for its first block again and again.

        Bootloaders refuse it as long as their firmware is not marked good, which SYNC does.
        """
        step = verdict.step
        if form.dialect is Dialect.DOCUMENTED or not isinstance(step, Block) or step.offset:
            return False
        return self._repeats.of(event.application, event.device, step) >= _SUSPICIOUS_REPEATS

    def _judge(self, status: Status, firmware: Firmware, situation: DecisionContext, form: AnswerForm) -> Decision:
        target = Target(firmware.version.encode(), firmware.size, firmware.checksum)
        mtu = self._fitting(situation.mtu, form, target.version, status)
        return decide(status, target, situation._replace(mtu=mtu))

    def _situation(self, event: Event, status: Status, form: AnswerForm, desired: Desired) -> DecisionContext:
        settings = self._settings
        mtu = min(status.mtu or settings.mtu_default, settings.mtu_max, desired.policy.mtu or U32_MAX)
        # A record says nothing if no process keeps it up to date.
        record = desired.reported.record if settings.report_status else None
        if self._unsent and record and record.answered and event.key in self._unsent:
            record = replace(record, answered=record.answered.without(event.key))
        return DecisionContext(
            now=datetime.fromtimestamp(self._now(), UTC),
            mtu=mtu,
            poll=settings.poll,
            record=record,
            policy=desired.policy,
            uid=event.device_uid or desired.uid,
            labels=desired.labels,
            answered=LastAnswered((event.key,), event.time, _fingerprint(status, form)) if event.id else None,
            spec_ttl=timedelta(seconds=min(settings.spec_ttl, _MAX_SPEC_TTL_SECONDS)),
            keeps_records=settings.report_status,
            enough_syncs=_ENOUGH_SYNCS[form.dialect],
            device_uid=event.device_uid,
            correlates=form.correlation_id is not None,
            tells_refusals=form.dialect is not Dialect.DOCUMENTED,
        )

    def _busy_gateway(self, event: Event, desired: Desired, ages: "_Ages", deadline: Deadline) -> str:
        """Return a gateway of the device that is being updated and takes any block for its own; empty if none."""
        now = datetime.fromtimestamp(self._now(), UTC)
        for gateway in desired.gateways[:_MAX_GATEWAYS]:
            record = self._registry.record(event.application, gateway, ages.device(), deadline)
            if gateway != event.device and record and record.is_under_way(now) and not record.correlates:
                return gateway
        return ""

    def _fitting(self, mtu: int, form: AnswerForm, version: bytes, status: Status) -> int:
        """Return the largest block, in bytes, whose command Drogue Cloud takes."""
        if 4 * mtu <= 3 * (MAX_COMMAND_BYTES - 4 * _MAX_VERSION):
            return mtu  # fits in any form
        offset = status.progress.offset if status.progress else 0
        room = room_for_data(form, version, offset, MAX_COMMAND_BYTES)
        return mtu if mtu <= room else room // _BLOCK_UNIT_BYTES * _BLOCK_UNIT_BYTES

    def _source(self, event: Event, desired: Desired) -> Image | File | HawkBit | None:
        """Return the source of the device's firmware: the one in the specs, or else the configured default."""
        source = desired.source
        if source is None and self._settings.firmware_default_image:
            names = {"application": event.application, "device": event.device}
            source = Image(fill_in(self._settings.firmware_default_image, names))
        return source

    def _firmware(self, event: Event, desired: Desired, ages: "_Ages", deadline: Deadline) -> Firmware | None:
        """Return the firmware that the device should run; None if none is named."""
        source = self._source(event, desired)
        if source is None:
            return None
        with self._worth_a_retry(event, PermanentError):
            if isinstance(source, Image):
                max_age = ages.always() if source.always else ages.manifest()
                return self._images.resolve(self._reference(event, source), max_age, deadline, stale_age=ages.stale)
            if isinstance(source, File) and self._files is not None:
                # Unlike a blob's, its bytes may be others by now: what describes them is read each time.
                return self._files.resolve(file_reference(source.name), 0.0, deadline)
        raise PermanentError("unsupported-source")

    def _reference(self, event: Event, image: Image) -> Reference:
        return image_reference(image.reference, self._settings.firmware_prefix, event.application, image.platform)

    def _origin(self, event: Event, desired: Desired, firmware: Firmware) -> Origin | None:
        """Return where the target's bytes lie, independent of tags."""
        source = self._source(event, desired)
        if isinstance(source, Image) and firmware.manifest:
            name = self._reference(event, source).name
            return Origin(image=f"{name}@{firmware.manifest}", platform=source.platform)
        return Origin(file=source.name) if isinstance(source, File) else None

    def _begun(
        self,
        event: Event,
        status: Status,
        form: AnswerForm,
        desired: Desired,
        target: Firmware,
        ages: "_Ages",
        deadline: Deadline,
    ) -> Firmware | None:
        """Return the firmware that a device midway finishes before it gets its target, if so.

        Devices of the embedded dialects cannot begin anew midway. None as well if the device's record is missing or of
        another version, or if the bytes that it began with are gone.
        """
        record, progress = desired.reported.record, status.progress
        if record is None or not progress or not has_begun(status) or not self._settings.report_status:
            return None
        if record.version == target.version or record.origin is None or not record.describes(progress.version):
            return None  # a device that finished other bytes of the target's version would never get the target's
        default = RESTART if form.dialect is Dialect.DOCUMENTED else FINISH
        is_given_up = record.attempts >= (desired.policy.max_attempts or MAX_ATTEMPTS)
        if (desired.policy.midway or default) == RESTART or is_given_up:
            return None
        try:
            begun = self._firmware(event, _at(desired, record.origin), ages, deadline)
        except PermanentError as error:
            _warn("firmware that the device has begun is gone", event, error)
            return None
        if begun is None or begun.checksum.hex() != record.checksum:
            return None
        return replace(begun, version=record.version)  # a digest need not tell the version

    def _decision(self, event: Event, status: Status, form: AnswerForm, view: "_View", deadline: Deadline) -> Reply:
        """Return the command that a verdict comes to, and the report of it."""
        firmware, verdict = view.served, view.verdict
        if verdict is None:
            return Reply(Outcome("withheld", "unmanaged"), Sync(status.version, self._settings.poll), form)
        step = verdict.step
        if isinstance(step, Stuck):
            # SYNC ends the loop of devices that count wrongly once they are restarted.
            failure = self._failure(event, status, form, "device-offset", step.message, verdict, view.desired.reported)
            return failure._replace(command=Sync(status.version, self._settings.poll))
        if isinstance(step, Again):
            return Reply(Outcome("duplicate"), None, form)
        if isinstance(step, Settle):
            wait = _wait(form, max(step.seconds, 1))
            decision = Reply(Outcome("wait", "other bytes had this version a moment ago"), wait, form)
        elif isinstance(step, Confirm):
            decision = Reply(Outcome("sync"), Sync(step.version, step.poll), form)
        elif isinstance(step, Sync):
            decision = Reply(Outcome("sync"), step, form)
        elif isinstance(step, Hold):
            decision = Reply(Outcome("withheld", step.reason), Sync(status.version, step.poll), form)
        else:
            assert firmware is not None  # noqa: S101 - a step towards it
            decision = self._order(event, form, firmware, step, deadline)
        report = self._report_of(event, status, view, verdict)
        return self._with_news(decision, report, view.desired.reported, first=verdict.records_first)

    def _order(
        self, event: Event, form: AnswerForm, firmware: Firmware, step: Swap | Block, deadline: Deadline
    ) -> Reply:
        """Return the command that brings the device closer to a firmware.

        Raises:
            PermanentError: the device cannot hold the version, or the bytes are not what they should be.
            NotReadyError, TransientError: the bytes cannot be served yet.

        """
        version = firmware.version.encode()
        if not form.takes_version(version) or len(version) > _MAX_VERSION:
            raise PermanentError("version-too-long")
        if isinstance(step, Swap):
            return Reply(Outcome("swap", version=firmware.version), step, form)
        with self._worth_a_retry(event, PermanentError):
            write = _read(firmware, step, deadline)
        return Reply(Outcome("write", version=firmware.version, offset=step.offset, size=step.size), write, form)

    def _report_of(self, event: Event, status: Status, view: "_View", verdict: Decision) -> Report:
        """Return the report of a device whose target is known, or which hears SYNC whatever its target is."""
        reported, step, crosses_tenth = view.desired.reported, verdict.step, False
        current = _text(status.version)
        firmware, before, record = view.served, reported.record, verdict.record
        if isinstance(step, Sync):
            return Report(current, current, (Condition(IN_SYNC, "True"),), before, record)
        if firmware is None or view.target is None:
            return Report(current, UNKNOWN, (Condition(IN_SYNC, "False"),), before, record)
        conditions = [Condition(IN_SYNC, "False", *self._explanation(event, view, step))]
        written = 0
        if isinstance(step, Block):
            written, crosses_tenth = step.offset + step.size, _crosses_tenth(step, firmware.size)
        elif isinstance(step, Swap):
            written = firmware.size
        elif isinstance(step, Hold | Settle) and status.progress:
            is_served = status.progress.version == firmware.version.encode()
            written = min(status.progress.offset, firmware.size) if is_served else 0
        if written:
            conditions.append(Condition(PROGRESS, "Unknown", message=f"{100 * written / firmware.size:.2f}"))
        if isinstance(step, Hold) and step.gives_up:
            conditions.append(Condition(FAILED, "True", step.reason, step.message))
        return Report(current, view.target.version, tuple(conditions), before, record, crosses_tenth)

    def _explanation(self, event: Event, view: "_View", step: object) -> tuple[str, str]:
        """Return reason and message of a device that is not in sync; empty if all goes as it should."""
        if isinstance(step, Hold):
            return step.reason, step.message
        if isinstance(step, Settle):
            return SETTLING, "other bytes had this version a moment ago: waits until no process serves them"
        if isinstance(step, Confirm):
            return CONFIRMING, "it came up with its new version, and is told to keep it before the next update"
        if isinstance(step, Block) and (message := self._refusal(event, view, step)):
            return BLOCK_REFUSED, message
        if view.served and view.target and view.served.version != view.target.version:
            return FINISHING, f"gets the rest of {view.served.version} first, which it has begun"
        return "", ""

    def _refusal(self, event: Event, view: "_View", block: Block) -> str:
        """Return what is wrong with a device that asks for the same block again and again; empty if it does not."""
        begin = f"refuses the block at {block.offset}, "
        asked = 1 + self._repeats.of(event.application, event.device, block)
        known = view.desired.reported.condition(IN_SYNC)
        # Another process may have counted further, and this one must not take its word back.
        if asked < _SUSPICIOUS_REPEATS and not (known and known.message.startswith(begin)):
            return ""
        return (
            f"{begin}or never gets it: asked for it {_SUSPICIOUS_REPEATS} times in a row; "
            "firmware should be padded to 32 bytes (publish --pad-to 32)"
        )

    def _failure(
        self,
        event: Event,
        status: Status,
        form: AnswerForm,
        reason: str,
        message: str = "",
        verdict: Decision | None = None,
        reported: Reported | None = None,
    ) -> Reply:
        """Return the failure of a device that the cloud knows.

        Args:
            event: the event.
            status: the device's status.
            form: how its answer is written.
            reason: why, in short.
            message: why, for people.
            verdict: what was decided, if it changes the record.
            reported: what the decision rests on; else what is remembered.

        """
        decision = Reply(Outcome("failed", reason), _wait(form, self._settings.poll), form)
        reported = reported or self._registry.reported(event.application, event.device) or Reported()
        report = Report(
            _text(status.version),
            UNKNOWN,
            (Condition(IN_SYNC, "False", reason, message),),
            before=reported.record if verdict else None,
            record=verdict.record if verdict else None,
        )
        return self._with_news(decision, report, reported)

    def _with_news(self, decision: Reply, report: Report, reported: Reported, *, first: bool = False) -> Reply:
        """Return a decision with its report if that is news; `first`: before the command is sent."""
        if not self._settings.report_status or not report.is_news(reported):
            return decision
        return decision._replace(report=report, records_first=first)

    def _record_first(self, event: Event, decision: Reply, deadline: Deadline) -> Reply:
        """Write the record that has to be there before the command is sent.

        Returns the decision, or another one if the record was changed meanwhile.

        Raises:
            PermanentError, TransientError: the record cannot be written, so nothing is sent.

        """
        for _ in range(_MAX_DECISIONS):
            if not decision.records_first or decision.report is None or self._is_stale(event):
                return decision
            if deadline.remaining < _KEPT_FOR_RECORD * deadline.total:
                raise TransientError("no time is left to record the update")
            try:
                with self._worth_a_retry(event, PermanentError):
                    self._write(event, decision.report, deadline)
            except ConflictError:
                decision = self._decide(event, deadline)
            else:
                return decision._replace(report=None, recorded=decision.report)
        raise TransientError("device registry: the record of the device's update keeps changing")

    def _explain(self, event: Event, decision: Reply, error: UpstreamError, deadline: Deadline) -> None:
        """Report that a command was not accepted, best effort.

        A command that had no effect leaves the record as it was before, so that a redelivery of the event sends it.
        """
        recorded, had_no_effect = decision.recorded, not error.may_have_acted
        is_final = isinstance(error, PermanentError) and not isinstance(error, DeviceNotFoundError)
        if not self._settings.report_status or not (is_final or (recorded and had_no_effect)):
            return
        reported = self._registry.reported(event.application, event.device) or Reported()
        report = recorded or decision.report
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
        if not taken_back.is_news(reported):
            return
        try:
            self._write(event, taken_back, deadline)
        except ConflictError:
            pass  # another process has recorded a later status
        except (PermanentError, TransientError) as refusal:
            _warn("status not reported", event, refusal)
            if recorded and had_no_effect:
                self._remember_unsent(event)

    def _report(self, event: Event, decision: Reply, deadline: Deadline, *, once_more: bool = True) -> None:
        """Report news if the deadline allows it; if not, a later status does."""
        names = (event.application, event.device)
        if decision.report is None or self._registry.has_given_up_reporting(*names):
            return
        try:
            self._write(event, decision.report, deadline)
        except ConflictError:
            # Another process has recorded something since; what there is to say beside that is still worth it.
            if once_more and (later := self._decide(event, deadline)).outcome == decision.outcome:
                self._report(event, later, deadline, once_more=False)
        except (PermanentError, TransientError) as error:
            self._registry.give_up_reporting(*names)
            _warn("status not reported", event, error)

    def _write(self, event: Event, report: Report, deadline: Deadline) -> None:
        """Writes a report into the device's object.

        Raises:
            ConflictError, PermanentError, TransientError: see `DeviceRegistry.report`.

        """
        now = datetime.fromtimestamp(self._now(), UTC)
        self._registry.report(event.application, event.device, report, now, deadline)

    def _send(self, event: Event, decision: Reply, deadline: Deadline) -> Outcome:
        """Sends what was decided, unless the device has stopped waiting for it meanwhile.

        Raises:
            PermanentError, TransientError: the command was not accepted.

        """
        if decision.command is None or decision.form is None:
            return decision.outcome
        if self._is_stale(event):
            return Outcome("stale")
        if deadline.remaining < _KEPT_FOR_COMMAND * deadline.total:
            # Sent now it could be accepted, and its acceptance come too late: then it would be sent again.
            if decision.recorded:
                self._remember_unsent(event)
            return (
                Outcome("retry", "no time is left to send the command")
                if decision.outcome.is_answer
                else decision.outcome
            )
        self._unsent.pop(event.key, None)
        payload = encode_command(decision.command, decision.form)
        try:
            with self._worth_a_retry(event, PermanentError):
                self._commands.send(
                    event.application, event.device, event.command, payload, decision.form.encoding.value, deadline
                )
        except (PermanentError, TransientError) as error:
            if decision.outcome.name != "failed":
                self._explain(event, decision, error, deadline)
                raise
            # The WAIT was a courtesy: what failed is still what there is to tell.
            _warn("WAIT not sent", event, error)
        return decision.outcome

    def _remember_unsent(self, event: Event) -> None:
        """Remember that the command of an event had no effect, for a redelivery to this process."""
        self._unsent[event.key] = None
        if len(self._unsent) > _MAX_UNSENT:
            self._unsent.popitem(last=False)

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

    def _worth_a_retry(self, event: Event, otherwise: type[PermanentError]) -> "_WorthARetry":
        return _WorthARetry(otherwise, lambda: self._time_left(event))


class _WorthARetry:
    """Where an upstream wants to be left alone until the event is stale, the failure that this is."""

    __slots__ = ("_otherwise", "_time_left")

    def __init__(self, otherwise: type[PermanentError], time_left: Callable[[], float]) -> None:
        self._otherwise = otherwise
        self._time_left = time_left

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, RateLimitedError) and error.after is not None and error.after > self._time_left():
            other = self._otherwise(f"{error.reason}, and wants to be left alone for too long")
            other.may_have_acted = error.may_have_acted
            raise other from error


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
    #: The target; None if none is named, or it could not be resolved.
    target: Firmware | None = None
    #: The firmware whose blocks the device gets: the target, or the one that it finishes first.
    served: Firmware | None = None
    verdict: Decision | None = None

    @property
    def rests_on(self) -> Freshness:
        """How fresh the facts behind it have to be."""
        return self.verdict.rests_on if self.verdict else Freshness.MEMORY


def _warn(what: str, event: Event, error: UpstreamError | NotReadyError) -> None:
    """Logs what an upstream would not do, where that is not what comes of the event."""
    fields = {"application": event.application, "device": event.device, "reason": error.reason, "id": event.id}
    if event.trace:
        fields["trace_id"] = event.trace.id
    logger.warning(what, extra={"fields": fields})


def _at(desired: Desired, origin: Origin) -> Desired:
    """Return what would be desired if the spec named an update's origin."""
    if origin.image:
        return desired._replace(source=Image(origin.image, platform=origin.platform))
    return desired._replace(source=File(origin.file or ""))


def _fingerprint(status: Status, form: AnswerForm) -> str:
    """Return a text that is the same for a status that is published twice, whatever its correlation id."""
    progress = status.progress and (status.progress.version, status.progress.offset)
    told = (status.version, status.mtu, progress, form.dialect.value, form.encoding.value)
    return f"{zlib.crc32(repr(told).encode()):08x}"


def _block_of(write: Write) -> Block:
    return Block(write.version, write.offset, len(write.data))


def _crosses_tenth(block: Block, size: int) -> bool:
    return 10 * block.offset // size < 10 * (block.offset + block.size) // size


def _text(version: bytes) -> str:
    return storable(version.decode("utf-8", "backslashreplace"))


def _read(firmware: Firmware, block: Block, deadline: Deadline) -> Write:
    with firmware.open(deadline.leaving(KEPT_FOR_WAIT)) as reader:
        return Write(block.version, block.offset, reader.read(block.offset, block.size))


def _wait(form: AnswerForm, poll: int) -> Wait | None:
    return Wait(poll) if form.has_wait else None
