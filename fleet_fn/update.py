"""The use case: an event in, an outcome out, and between them the next step of a device's update."""

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

from fleet_fn.deadline import Deadline
from fleet_fn.drogue.commands import Commands
from fleet_fn.drogue.events import REGISTRY_EVENT, Event
from fleet_fn.drogue.registry import File, Image, NotKnown, Registry
from fleet_fn.errors import Failed, Retry, Throttled
from fleet_fn.firmware.catalogue import Catalogue
from fleet_fn.firmware.file import file_reference
from fleet_fn.firmware.reference import fill_in, image_reference
from fleet_fn.firmware.store import KEPT_FOR_WAIT, Firmware, NotHere
from fleet_fn.protocol.dialects import AnswerForm, Dialect, Encoding, decode_status, encode_command
from fleet_fn.protocol.messages import Command, Status, Swap, Sync, Wait, Write
from fleet_fn.protocol.step import Block, Target, next_command, starts_or_ends_update
from fleet_fn.settings import Settings

#: Seconds that what starts or ends an update may have been known before (protocol, "What an answer may rest on").
_FRESH: Final = 1.0
#: TTLs for which updates under way go on with what their tag last stood at, where the registry does not answer.
_GOING_ON: Final = 10
#: The share of an event's time without which a command is not sent any more.
_KEPT_FOR_COMMAND: Final = 0.05
#: Bytes of a version: it goes into headers, where few take more than some thousand bytes.
_MAX_VERSION: Final = 255
#: Answered events that are remembered, to know them when they are delivered again.
_ANSWERED: Final = 10_000


@dataclass(frozen=True, slots=True)
class Outcome:
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


@dataclass(frozen=True, slots=True)
class Decision:
    """What a device is told, if anything, and why."""

    outcome: Outcome
    command: Command | None = None
    form: AnswerForm | None = None


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
        self._answered = _Answered()

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
            with self._answered.turn((event.source, event.id), deadline) as turn:
                if turn.is_duplicate:
                    return Outcome("duplicate")
                outcome = self._send(event, self.decide(event, deadline), deadline)
                turn.is_over = outcome.is_answer
                return outcome
        except Failed as error:
            return Outcome("failed", error.reason)
        except Retry as error:
            return Outcome("retry", error.reason, retry_after=error.after)

    def decide(self, event: Event, deadline: Deadline) -> Decision:
        """What to tell the device that `event` is about; nothing is sent.

        Raises:
            InvalidEvent, InvalidStatus: what the device sent is no status.

        """
        if not event.is_status:
            return Decision(Outcome("ignored"))
        payload, content_type = event.status_payload()
        status, form = decode_status(payload, content_type)
        if event.is_lorawan and form.encoding is Encoding.JSON:
            form = replace(form, encoding=Encoding.CBOR, text_versions=form.dialect is Dialect.NAMED)
        try:
            return self._next_step(event, status, form, deadline)
        except NotHere as error:
            return Decision(Outcome("wait", error.reason), _wait(form, self._settings.wait), form)
        except Retry as error:
            return Decision(Outcome("retry", error.reason, retry_after=error.after), None, form)
        except NotKnown as error:
            return Decision(Outcome("failed", error.reason), None, form)
        except Failed as error:
            return Decision(Outcome("failed", error.reason), _wait(form, self._settings.poll), form)

    def _next_step(self, event: Event, status: Status, form: AnswerForm, deadline: Deadline) -> Decision:
        settings = self._settings
        started = deadline.elapsed
        ages = _Ages(
            spec=lambda: settings.spec_ttl,
            manifest=lambda: settings.manifest_ttl,
            always=lambda: 0.0,
            stale=_GOING_ON * settings.manifest_ttl,
        )
        firmware = self._desired_firmware(event, ages, deadline)
        step = self._step(status, firmware)
        if firmware and starts_or_ends_update(step):
            # Read within the last second, or for this event, however long it has to wait for its turn.
            def fresh() -> float:
                return max(_FRESH, deadline.elapsed - started)

            firmware = self._desired_firmware(event, _Ages(fresh, fresh, fresh, stale=0.0), deadline)
            step = self._step(status, firmware)
        if firmware is None:
            return Decision(Outcome("withheld", "unmanaged"), step if isinstance(step, Sync) else None, form)
        if isinstance(step, Sync):
            return Decision(Outcome("sync"), step, form)
        if not form.takes_version(step.version) or len(step.version) > _MAX_VERSION:
            raise Failed("version-too-long")
        if isinstance(step, Swap):
            return Decision(Outcome("swap", version=firmware.version), step, form)
        with self._worth_a_retry(event, Failed):
            write = _read(firmware, step, deadline)
        outcome = Outcome("write", version=firmware.version, offset=step.offset, size=step.size)
        return Decision(outcome, write, form)

    def _desired_firmware(self, event: Event, ages: "_Ages", deadline: Deadline) -> Firmware | None:
        """The firmware that the device should run; None where none is named."""
        with self._worth_a_retry(event, NotKnown):
            source = self._registry.desired(event.application, event.device, ages.spec(), deadline)
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

    def _step(self, status: Status, firmware: Firmware | None) -> Sync | Swap | Block:
        if firmware is None:
            return Sync(status.version, self._settings.poll)
        target = Target(firmware.version.encode(), firmware.size, firmware.checksum)
        mtu = min(status.mtu or self._settings.mtu_default, self._settings.mtu_max)
        return next_command(status, target, mtu=mtu, poll=self._settings.poll)

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
        except (Failed, Retry):
            if decision.outcome.name != "failed":
                raise  # else the WAIT was a courtesy: what failed is still what there is to tell
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

    @contextmanager
    def _worth_a_retry(self, event: Event, otherwise: type[Failed]) -> Iterator[None]:
        """Where an upstream wants to be left alone until the event is stale, the failure that this is."""
        try:
            yield
        except Throttled as error:
            if error.after is not None and error.after > self._time_left(event):
                raise otherwise(f"{error.reason}, and wants to be left alone for {error.after} s") from error
            raise


@dataclass(frozen=True, slots=True)
class _Ages:
    """Seconds that what an answer rests on may have been known before, at the moment that somebody asks."""

    #: Specs.
    spec: Callable[[], float]
    #: Tags' manifests.
    manifest: Callable[[], float]
    #: Tags' manifests, where they are to be looked up for each status.
    always: Callable[[], float]
    #: Tags' manifests, where the registry that has them does not answer.
    stale: float


def _read(firmware: Firmware, block: Block, deadline: Deadline) -> Write:
    with firmware.open(deadline.leaving(KEPT_FOR_WAIT)) as reader:
        return Write(block.version, block.offset, reader.read(block.offset, block.size))


def _wait(form: AnswerForm, poll: int) -> Wait | None:
    return Wait(poll) if form.has_wait else None


@dataclass(slots=True)
class _Turn:
    """The right to answer an event."""

    is_duplicate: bool
    #: Set by whoever answered it for good.
    is_over: bool = False


class _Answered:
    """Which events this process answered, and which it is answering."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answered: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._under_way: dict[tuple[str, str], threading.Event] = {}

    @contextmanager
    def turn(self, key: tuple[str, str], deadline: Deadline) -> Iterator[_Turn]:
        """Waits until nobody else answers the event of `key`; its answer is remembered if the turn is over then.

        Raises:
            Retry: an earlier delivery of the event is being answered until the deadline.

        """
        while True:
            with self._lock:
                turn = _Turn(is_duplicate=key in self._answered)
                earlier = self._under_way.get(key)
                if not turn.is_duplicate and earlier is None:
                    ended = self._under_way[key] = threading.Event()
                    break
            if turn.is_duplicate:
                yield turn
                return
            if earlier is not None and not earlier.wait(deadline.remaining):
                raise Retry("an earlier delivery of this event is still being answered")
        try:
            yield turn
        finally:
            with self._lock:
                del self._under_way[key]
                if turn.is_over:
                    self._answered[key] = None
                    if len(self._answered) > _ANSWERED:
                        self._answered.popitem(last=False)
            ended.set()
