"""The next command of a device, decided by the function's own code.

The function is not asked, so that the page needs no access to it. Nothing is written, and nothing is sent. Blocks are
not fetched, since a page shows their place only.
"""

import json
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, NamedTuple

import cbor2

from fleet_fn.concurrency.single_flight import SingleFlight
from fleet_fn.console.advice import Advice, advise
from fleet_fn.console.device import ReadDevice
from fleet_fn.console.unread import without_bytes
from fleet_fn.console.users import User
from fleet_fn.deadline import Deadline
from fleet_fn.drogue.cloud_events import InvalidEventError
from fleet_fn.drogue.commands import Commands
from fleet_fn.drogue.device_registry import DeviceRegistry
from fleet_fn.drogue.events import DEVICE_EVENT, DFU, Event
from fleet_fn.drogue.refusals import COMMAND_API
from fleet_fn.drogue.spec_source import HawkBit, Source
from fleet_fn.drogue.status_report import IN_SYNC, UNKNOWN, Condition, HoldReport
from fleet_fn.drogue.update_record import Record
from fleet_fn.errors import UpstreamError
from fleet_fn.firmware.file_store import file_reference
from fleet_fn.firmware.store import NotReadyError
from fleet_fn.fleet.rollout.progress import describe_time
from fleet_fn.fleet.rollout.target import Finders
from fleet_fn.oci.reference import image_reference
from fleet_fn.parts import Stores, make_previewer, make_resolvers
from fleet_fn.protocol.dialects import EMBEDDED_VERSION_BYTES, Dialect, InvalidStatusError
from fleet_fn.protocol.messages import Command, Swap, Sync, Wait, Write
from fleet_fn.settings import Settings
from fleet_fn.update.outcome import OutcomeName, Reply
from fleet_fn.update.target import Resolvers

NO_REGISTRY: Final = "FIRMWARE_REGISTRY is not set. Set it for the console as the function has it, e.g. ghcr.io/acme/"
#: The console does not ask hawkBit: a question makes targets there, and statuses of actions.
ASSIGNED: Final = (
    "hawkBit assigns its firmware, and the console does not ask hawkBit: see the target and its actions there."
)
#: Time for all that a page tells of a device's next command.
DECISION_SECONDS: Final = 4.0
#: A decision is kept for as many times as long as it took, and a second at least: upstreams may hang.
_PAUSE_SHARE: Final = 4.0
_LEAST_PAUSE_SECONDS: Final = 1.0
_MAX_KEPT: Final = 1000


@dataclass(frozen=True, slots=True)
class Case:
    """A status that the device may send, and the answer to it."""

    #: The status, in words.
    status: str
    outcome: OutcomeName
    #: The command, in words; empty if it gets none.
    command: str
    #: Why, in words; then the reason as the function gives it, which may be empty.
    why: str
    reason: str = ""
    advice: Advice | None = None


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a device would be told."""

    cases: tuple[Case, ...] = ()
    #: What was assumed, besides the statuses.
    assumptions: tuple[str, ...] = ()
    #: Why nothing can be told; empty if something is.
    problem: str = ""

    @property
    def is_ready(self) -> bool:
        """Nothing that the decision rests on is still being fetched."""
        return all(case.outcome is not OutcomeName.WAIT for case in self.cases)


class _Status(NamedTuple):
    """A status that a device may send."""

    words: str
    version: str
    #: Version and offset of an update in progress; None without one.
    progress: tuple[str, int] | None = None


class NextCommands:
    """Tells devices' next commands, and remembers them for a moment.

    Safe to use from several threads.
    """

    def __init__(
        self, settings: Settings, finders: Finders | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Decide with the operator's settings.

        `finders` is None without FIRMWARE_REGISTRY and FIRMWARE_DIR.
        """
        self._settings = settings
        self._finders = finders
        self._clock = clock
        self._lock = threading.Lock()
        #: Forecasts, and until when they hold, by user, device and version of its object.
        self._kept: OrderedDict[tuple[str, ...], tuple[float, Forecast]] = OrderedDict()

    def forecast(self, user: User, application: str, read: ReadDevice) -> Forecast:
        """Return what a device would be told if it reported now."""
        if self._finders is None:
            source = _source_of(DeviceRegistry(user.upstream), application, read, Deadline(DECISION_SECONDS))
            return Forecast(problem=ASSIGNED if isinstance(source, HawkBit) else NO_REGISTRY)
        if read.row.current in (None, UNKNOWN):
            return Forecast(problem="The device has never reported, so its version is not known.")
        key = (user.key, application, read.device.name, str(read.found["metadata"].get("resourceVersion")))
        began = self._clock()
        with self._lock:
            known = self._kept.get(key)
        if known and began < known[0]:
            return known[1]
        made = _Decision(self._settings, self._finders.stores, user, application, read).forecast()
        now = self._clock()
        with self._lock:
            self._kept[key] = (now + max(_LEAST_PAUSE_SECONDS, _PAUSE_SHARE * (now - began)), made)
            self._kept.move_to_end(key)
            while len(self._kept) > _MAX_KEPT:
                self._kept.popitem(last=False)
        return made


class _Decision:
    """The decision about one device, on facts that are read for it alone."""

    def __init__(self, settings: Settings, stores: Stores, user: User, application: str, read: ReadDevice) -> None:
        self._application = application
        self._read = read
        self._prefix = settings.firmware_prefix
        self._deadline = Deadline(DECISION_SECONDS)
        # These remember what they read for this decision, and are given up with it.
        self._device_registry = DeviceRegistry(user.upstream)
        self._resolvers: Resolvers = make_resolvers(without_bytes(stores), SingleFlight())
        commands = Commands(user.upstream.with_name(COMMAND_API))  # which a preview sends nothing to
        self._handler = make_previewer(settings, self._device_registry, self._resolvers, commands)

    def forecast(self) -> Forecast:
        """Return what the device would be told."""
        read, record = self._read, self._read.record
        if isinstance(_source_of(self._device_registry, self._application, read, self._deadline), HawkBit):
            return Forecast(problem=ASSIGNED)
        dialect, assumed = _dialect_of(read.row.current or "", record)
        try:
            self._device_registry.put(self._application, read.device.name, read.found)
            cases = tuple(self._case(status, dialect, record) for status in self._statuses(record))
        except (InvalidEventError, InvalidStatusError) as error:
            return Forecast(problem=f"Its next status cannot be told: {error}.")
        except UpstreamError as error:
            return Forecast(problem=error.reason)
        return Forecast(cases, (assumed, *_ASSUMED))

    def _case(self, status: _Status, dialect: Dialect, record: Record | None) -> Case:
        payload, content_type = _encode(status, dialect, numbers=bool(record and record.correlates))
        event = Event(
            id="",
            source="",
            type=DEVICE_EVENT,
            subject=DFU,
            application=self._application,
            device=self._read.device.name,
            time=None,
            content_type=content_type,
            payload=payload,
            device_uid=self._read.device.uid,
        )
        return _describe(status, self._handler.decide(event, self._deadline))

    def _statuses(self, record: Record | None) -> Iterator[_Status]:
        """Yield the statuses that the device may send now, by what its object tells."""
        current = self._read.row.current or ""
        plain = _Status(f"It reports that it runs {current}, and no update in progress", current)
        if record is None or record.synced or not record.started or current == record.version:
            yield plain
        elif record.swapped:
            yield _Status(f"It comes up with {record.version}", record.version)
            yield plain._replace(words=f"It comes back with {current}")
        else:
            if midway := self._midway(record, current):
                yield midway
            yield plain._replace(words=f"It has lost its progress, and reports that it runs {current}")

    def _midway(self, record: Record, current: str) -> _Status | None:
        """Return the status of a device that goes on with its update.

        None if its offset is unknown.
        """
        if restart := record.restart:
            offset = restart.midway if restart.stuck else restart.sent
            words = (
                "It reports the offset from before it was told to begin anew" if restart.stuck else "It has begun anew"
            )
            return _Status(f"{words}, at byte {offset:,}", current, (record.version, offset))
        percent, size = self._read.row.progress, self._size_of(record)
        if percent is None or size is None:
            return None
        offset = min(round(size * percent / 100), size)
        if offset == size:
            return _Status(f"It has all {size:,} bytes of {record.version}", current, (record.version, size))
        words = f"It goes on at about {percent:.4g} %, as last reported: some {offset:,} of {size:,} bytes"
        return _Status(words, current, (record.version, offset))

    def _size_of(self, record: Record) -> int | None:
        """Return the bytes of the firmware that a device has begun; None if unknown."""
        origin = record.origin
        try:
            if origin and origin.image:
                place = image_reference(origin.image, self._prefix, self._application, origin.platform)
                return self._resolvers.images.resolve(place, 0.0, self._deadline).size
            if origin and origin.file and self._resolvers.files:
                return self._resolvers.files.resolve(file_reference(origin.file), 0.0, self._deadline).size
        except (UpstreamError, NotReadyError):
            return None
        return None


def _source_of(
    device_registry: DeviceRegistry, application: str, read: ReadDevice, deadline: Deadline
) -> Source | None:
    """Return the source of a device's firmware; None if that cannot be told."""
    name = read.device.name
    try:
        device_registry.put(application, name, read.found)
        return device_registry.read_desired(application, name, math.inf, deadline).source
    except UpstreamError:
        return None


def _dialect_of(current: str, record: Record | None) -> tuple[Dialect, str]:
    """Return the dialect that a device seems to speak, and how that is known."""
    if len(current.encode(errors="replace")) > EMBEDDED_VERSION_BYTES:
        return Dialect.DOCUMENTED, "It speaks the documented dialect: its version is too long for the others."
    if record and record.correlates:
        return Dialect.PACKED, "It speaks the packed or the named dialect: it numbers its statuses."
    return (
        Dialect.PACKED,
        "Its dialect is not recorded, and taken for packed, that of embedded-update. The documented one has no WAIT.",
    )


def _encode(status: _Status, dialect: Dialect, *, numbers: bool) -> tuple[bytes, str]:
    """Return a status as a device sends it, with its media type."""
    version, progress = status.version.encode(errors="replace"), status.progress
    if dialect is Dialect.DOCUMENTED:
        fields: dict[str, Any] = {"version": status.version}
        if progress:
            fields["status"] = {"version": progress[0], "offset": progress[1]}
        return json.dumps(fields).encode(), "application/json"
    inner = {0: progress[0].encode(errors="replace"), 1: progress[1]} if progress else None
    return cbor2.dumps({0: version, 1: None, 2: 0 if numbers else None, 3: inner}), "application/cbor"


#: What else is assumed.
_ASSUMED: Final = (
    "Blocks have 512 bytes, unless the device asks for another size.",
    "The function's other settings, such as POLL_SECONDS, have their defaults.",
)


# --- Words ------------------------------------------------------------------------------------------------------------

_WHY: Final[Mapping[OutcomeName, str]] = {
    OutcomeName.SWAP: "It has all blocks. It is told to boot the new version, and to compare its SHA-256.",
    OutcomeName.WITHHELD: "It stays on its version for now.",
    OutcomeName.WAIT: "The console is still looking for the firmware in the image. The function may know it already.",
    OutcomeName.FAILED: "The update cannot go on until an operator has changed something.",
    OutcomeName.RETRY: "It cannot be told now: a server did not answer the console in time.",
}


def _describe(status: _Status, reply: Reply) -> Case:
    outcome = reply.outcome
    has_advice = outcome.name in (OutcomeName.WITHHELD, OutcomeName.FAILED, OutcomeName.RETRY)
    return Case(
        status.words,
        outcome.name,
        _describe_command(reply.command) if reply.command else "",
        _why(reply),
        _reason(reply),
        advise(outcome.reason or "") if has_advice else None,
    )


def _why(reply: Reply) -> str:
    if isinstance(reply.command, Write):
        if reply.command.offset:
            return "Its update goes on with the next block."
        return "Nothing holds it back, so its update begins."
    if reply.outcome.name is OutcomeName.SYNC:
        if (condition := _condition(reply)) and condition.status != "True":
            return "It is told to keep the version that it came up with, before anything else."
        return "It runs its target, and is told to keep it."
    return _WHY.get(reply.outcome.name, "")


def _reason(reply: Reply) -> str:
    """Return the reason as the function gives it, with the particulars that it has."""
    outcome = reply.outcome
    if outcome.name is OutcomeName.WITHHELD:
        hold: HoldReport | None = reply.report.hold if reply.report else reply.reported.hold
        message = hold.message if hold and hold.reason == outcome.reason else ""
    else:
        condition = _condition(reply)
        message = outcome.message or (condition.message if condition and condition.reason == outcome.reason else "")
    return ": ".join(filter(None, (outcome.reason, message)))


def _condition(reply: Reply) -> Condition | None:
    """Return the condition InSync that would be reported; None without news."""
    return next((each for each in reply.report.conditions if each.type == IN_SYNC), None) if reply.report else None


def _describe_command(command: Command) -> str:
    match command:
        case Sync(version, poll):
            return f"SYNC {_text(version)}{_again(poll)}"
        case Write(version, offset, data):
            return f"WRITE {len(data):,} bytes at {offset:,} of {_text(version)}"
        case Swap(version, _):
            return f"SWAP to {_text(version)}"
        case Wait(poll):
            return f"WAIT{_again(poll)}"


def _again(poll: int | None) -> str:
    return f", report again in {describe_time(timedelta(seconds=poll))}" if poll is not None else ""


def _text(version: bytes) -> str:
    return version.decode("utf-8", "replace")
