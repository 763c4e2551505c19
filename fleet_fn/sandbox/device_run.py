"""Simulated devices that go through real updates at a Drogue HTTP endpoint."""

import hashlib
import itertools
import random
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import quote

import requests
from requests.auth import HTTPBasicAuth

from fleet_fn.errors import one_line
from fleet_fn.protocol.messages import Command, Status, Write
from fleet_fn.sandbox.device_hints import Hints
from fleet_fn.sandbox.device_wire import CommandError, Dialect, Encoding, decode_command, encode_status
from fleet_fn.sandbox.simulated_device import (
    BRICKED,
    ERROR_PAUSE_SECONDS,
    Bootable,
    CarefulDevice,
    CrateDevice,
    FirmwareManagerDevice,
    Outcome,
    SimulatedDevice,
    Step,
)

Character = Literal["careful", "firmware-manager", "crate"]

#: How long a device waits for a command: the endpoint's parameter `ct`.
COMMAND_TIMEOUT_SECONDS = 30
#: Shortest such wait, at any speed: cloud and function need some seconds.
MIN_COMMAND_TIMEOUT_SECONDS = 5
#: How long after `ct` the endpoint itself counts as gone.
ENDPOINT_GRACE_SECONDS = 5
#: Shortest pause after WAIT, at any speed: the function has to fetch the firmware.
MIN_WAIT_SECONDS = 1.0
#: Pause after a wait without a command, at any speed. The cloud drops a command that comes meanwhile. Else it would
#: answer the next status, the next command the status after that, and so on.
LATE_PAUSE_SECONDS = 5.0
#: First pause after an unusable command, at any speed; doubles up to `LATE_PAUSE_SECONDS`.
MIN_SETTLE_SECONDS = 0.5
#: Bytes between two lines of progress if the firmware's size is unknown.
LINE_EVERY_BYTES = 65536

# Outcomes that are progress; any other uses up the device's patience.
_ADVANCES = {Outcome.WROTE, Outcome.IN_SYNC, Outcome.BOOTED, Outcome.ROLLED_BACK}


@dataclass(frozen=True, slots=True)
class DeviceOptions:
    """One simulated device: its endpoint, its dialect and its faults.

    Raises:
        ValueError: the dialect does not have this encoding, or cannot express the version.

    """

    url: str
    application: str
    device: str
    password: str = field(repr=False)
    #: PEM file of trust anchors for the endpoint; None means the system's.
    ca_file: str | None = None
    #: Authenticate as this gateway, and speak for `device`.
    gateway: str | None = None
    version: bytes = b"0.1.0"
    #: Largest block to ask for, bytes; None leaves it to the server.
    mtu: int | None = 512
    dialect: Dialect = "packed"
    encoding: Encoding = "cbor"
    character: Character = "careful"
    #: Bytes that the flash of a firmware-manager writes at once.
    flash_word: int = 4
    #: End when told to stay with the version that runs, or out of patience.
    once: bool = False
    #: With `once`: statuses in a row without progress, and rollbacks, until the device gives up.
    patience: int = 10
    #: Divides every pause; the constants above bound some of them.
    speed: float = 1.0
    #: Lose power, once, when so many bytes are written.
    crash_at: int | None = None
    #: Fraction of answers that are lost.
    drop: float = 0.0
    seed: int = 0
    #: Number of new images whose self-test fails, besides those of `reject_versions`.
    reject: int = 0
    #: Versions whose self-test fails at every boot.
    reject_versions: frozenset[bytes] = frozenset()
    #: Bytes of the new firmware, for the display only: no server tells it to a device.
    size: int | None = None

    def __post_init__(self) -> None:
        encode_status(Status(self.version), self.dialect, self.encoding)


@dataclass(frozen=True, slots=True)
class DeviceReport:
    """The state of a device at the end of its run, or before."""

    device: str
    #: Version at the start.
    started: bytes
    #: Version that runs; empty if nothing boots.
    version: bytes
    #: SHA-256 of the image that runs, in hex; None for the delivered image.
    sha256: str | None
    #: Checksum in hex that the SWAP to that image announced: a wrong image may boot too.
    announced: str | None
    #: Bytes of that image.
    size: int
    blocks: int
    power_losses: int
    rollbacks: int
    #: Answers that `drop` lost.
    lost: int
    #: It was told to stay with the version that it runs.
    in_sync: bool
    #: Commands against the protocol that the device got.
    violations: tuple[str, ...]
    #: Why the device ended out of sync.
    reason: str

    def __str__(self) -> str:
        version = _text(self.version) or "nothing"
        parts = [version if self.version == self.started else f"{_text(self.started)} -> {version}"]
        if self.sha256 is not None:
            parts += [f"{self.size} bytes", f"sha256 {self.sha256}"]
        if self.sha256 != self.announced:
            parts.append(f"NOT the announced {self.announced}")
        for count, one, many in (
            (self.blocks, "block", "blocks"),
            (self.power_losses, "power loss", "power losses"),
            (self.rollbacks, "rollback", "rollbacks"),
            (self.lost, "answer lost", "answers lost"),
            (len(self.violations), "violation", "violations"),
        ):
            if count:
                parts.append(f"{count} {one if count == 1 else many}")
        parts.append(self._describe_end())
        return one_line(f"{self.device}: {', '.join(parts)}")

    def _describe_end(self) -> str:
        if self.in_sync:
            # SYNC says only that the device may stay. One that was not updated cannot know that it is not held back.
            return "in sync" if self.sha256 is not None else "told to stay with it"
        return f"not in sync: {self.reason}" if self.reason else "not in sync"


def run_device(
    options: DeviceOptions,
    *,
    on_line: Callable[[str], None],
    stop: threading.Event,
    bootable: Bootable | None = None,
) -> DeviceReport:
    """Run a device until it ends, and return its report.

    It ends if `stop` is set, if the endpoint refuses it or, with `once`, if it is done.

    Args:
        options: the device.
        on_line: takes a line for every transition and each tenth of the way.
        stop: ends the device at once between two requests, else within `COMMAND_TIMEOUT_SECONDS`.
        bootable: tells whether an image (its bytes, its version) boots; without it, every image does.

    """
    return DeviceRun(options, on_line=on_line, stop=stop, bootable=bootable).run()


class _NoAnswerError(Exception):
    """A status got no answer; the next one may get one.

    Args:
        reason: why.
        pause: least seconds until the next status, at any speed.

    """

    def __init__(self, reason: str, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.pause = pause


class _NoCommandError(_NoAnswerError):
    """The endpoint answered a status, but no command came in time."""


class _RefusedError(Exception):
    """The endpoint refuses the device, or is no Drogue endpoint.

    Another status would not help.
    """


class _CredentialsError(_RefusedError):
    """The endpoint does not take the device's credentials."""


class _BrickedError(Exception):
    """Nothing boots: the device reports no more."""


class DeviceRun:
    """The run of one device.

    `run` it in a thread; `report` returns its state at any time.

    Args:
        on_progress: takes the device's name and offset after each block, instead of a line for each tenth.
        on_hint: takes the possible causes, without the device's name, if the device does not get on.

    """

    def __init__(
        self,
        options: DeviceOptions,
        *,
        on_line: Callable[[str], None],
        stop: threading.Event,
        bootable: Bootable | None = None,
        on_progress: Callable[[str, int], None] | None = None,
        on_hint: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._options = options
        self._on_line = on_line
        self._on_progress = on_progress
        self._stop = stop
        self._hints = Hints(options.application, options.dialect, on_hint)
        self._device = _build(options, bootable)
        self._dice = random.Random(f"{options.seed}/{options.device}")
        self._timeout = max(MIN_COMMAND_TIMEOUT_SECONDS, round(COMMAND_TIMEOUT_SECONDS / options.speed))
        self._last_line = ""
        self._reached = False
        self._writing: bytes | None = None
        self._fruitless = 0
        self._settle = 0.0
        self._blocks = 0
        self._power_losses = 0
        self._lost = 0
        self._in_sync = False
        #: The device was rolled back, and has made no progress since.
        self._came_back = False
        self._unreadable: list[str] = []
        self._setback = ""
        self._end = ""

    def run(self) -> DeviceReport:
        """Report statuses and obey commands until there is a reason to end.

        Return the report.
        """
        options = self._options
        self._say(f"runs {_text(self._device.version)}, speaks {options.dialect} {options.encoding}")
        try:
            with requests.Session() as session:
                while not self._stop.is_set():
                    pause = self._report_and_obey(session)
                    if options.once and (self._in_sync or self._out_of_patience()):
                        break
                    self._stop.wait(pause)
        except (_RefusedError, _BrickedError) as error:
            self._in_sync, self._end = False, str(error)
            self._say(self._end)
            if isinstance(error, _CredentialsError):
                self._hints.take_refusal()
        return self.report()

    def report(self) -> DeviceReport:
        """Return the device's state."""
        image = self._device.image
        sha256 = hashlib.sha256(image).hexdigest() if image else None
        boot = next((boot for boot in reversed(self._device.boots) if boot.sha256 == sha256), None)
        return DeviceReport(
            device=self._options.device,
            started=self._options.version,
            version=self._device.version,
            sha256=sha256,
            announced=boot.announced if boot else None,
            size=len(image),
            blocks=self._blocks,
            power_losses=self._power_losses,
            rollbacks=self._device.rollbacks,
            lost=self._lost,
            in_sync=self._in_sync,
            violations=(*self._device.violations, *self._unreadable),
            reason=self._end or ("stopped" if self._stop.is_set() else ""),
        )

    def _report_and_obey(self, session: requests.Session) -> float:
        """Report one status and obey its answer; return real seconds until the next one."""
        speed = self._options.speed
        try:
            answer = self._post(session)
            if self._dice.random() < self._options.drop:
                self._lost += 1
                return ERROR_PAUSE_SECONDS / speed
            command, correlation_id = decode_command(*answer)
        except _NoAnswerError as error:
            self._set_back(str(error))
            if isinstance(error, _NoCommandError):
                self._hints.take_silence()
            return max(ERROR_PAUSE_SECONDS / speed, error.pause)
        except CommandError as error:
            self._unreadable.append(f"unreadable answer: {error}")
            self._set_back(self._unreadable[-1])
            return ERROR_PAUSE_SECONDS / speed
        step = self._device.handle(command, correlation_id)
        self._follow(command, step)
        self._hints.take(command)
        return max(step.pause / speed, self._least_pause(step.outcome))

    def _least_pause(self, outcome: Outcome) -> float:
        """Return the least pause in real seconds, at any speed."""
        if outcome in (Outcome.IGNORED, Outcome.FAILED):
            # The command may have answered an earlier status. Let the answer to the last one pass.
            self._settle = min(2 * self._settle or MIN_SETTLE_SECONDS, LATE_PAUSE_SECONDS)
            return self._settle
        self._settle = 0.0
        return MIN_WAIT_SECONDS if outcome is Outcome.WAITING else 0.0

    def _set_back(self, reason: str) -> None:
        self._fruitless += 1
        self._setback = reason
        self._say(reason)

    def _out_of_patience(self) -> bool:
        if self._fruitless < self._options.patience and self._device.rollbacks < self._options.patience:
            return False
        self._end = f"gave up, no progress in {self._options.patience} tries: {self._setback}"
        return True

    def _post(self, session: requests.Session) -> tuple[bytes, str | None]:
        """Publish a status and wait for the command. Return its payload and content type."""
        options = self._options
        payload, content_type = encode_status(self._device.status(), options.dialect, options.encoding)
        query = {"ct": str(self._timeout)} | ({"as": options.device} if options.gateway else {})
        # The endpoint splits the user name at the first @ and the first colon, and decodes the device's name.
        user = f"{quote(options.gateway or options.device, safe='')}@{options.application}"
        sent = time.monotonic()
        try:
            response = session.post(
                f"{options.url.rstrip('/')}/v1/dfu",
                params=query,
                data=payload,
                headers={"Content-Type": content_type} if content_type else {},
                auth=HTTPBasicAuth(user.encode(), options.password.encode()),
                timeout=(ENDPOINT_GRACE_SECONDS, self._timeout + ENDPOINT_GRACE_SECONDS),
                allow_redirects=False,
                verify=options.ca_file or True,
            )
        except (
            requests.exceptions.InvalidURL,
            requests.exceptions.InvalidSchema,
            requests.exceptions.MissingSchema,
        ) as error:
            raise _RefusedError(f"check --url: {options.url!r} is no http:// or https:// URL") from error
        except requests.exceptions.SSLError as error:
            raise _RefusedError(_tls_problem(options.url, error)) from error
        except requests.ConnectionError as error:
            reason = f"cannot reach {options.url}: is the sandbox, or the cloud, running there?"
            raise (_NoAnswerError(reason) if self._reached else _RefusedError(reason)) from error
        except requests.RequestException as error:
            raise _NoAnswerError(f"{options.url} does not answer: {error}", self._pause_after(sent)) from error
        self._reached = True
        self._check(response, user)
        if not response.content:
            raise _NoCommandError(f"no command within {self._timeout} s", self._pause_after(sent))
        return response.content, response.headers.get("Content-Type")

    def _pause_after(self, sent: float) -> float:
        """Return the real seconds in which a late command passes, or 0.

        A command may be late if the wait since `sent` ran out.
        """
        return LATE_PAUSE_SECONDS if time.monotonic() - sent >= self._timeout / 2 else 0.0

    def _check(self, response: requests.Response, user: str) -> None:
        code = response.status_code
        if code in (401, 403):
            raise _CredentialsError(
                f"refused as {user} ({code}): check --device, --application, --password and, with a gateway, --gateway"
            )
        if code == 406:
            raise _RefusedError(
                f"the endpoint does not take a status in {self._options.encoding} (406): check --encoding"
            )
        if code == 404:
            raise _RefusedError(f"{self._options.url} has no /v1/dfu (404): is --url a Drogue HTTP endpoint?")
        if code == 429 or code >= 500:
            raise _NoAnswerError(f"the endpoint answered {code}")
        if code not in (200, 202):
            raise _RefusedError(f"the endpoint answered {code}: is --url a Drogue HTTP endpoint?")
        name = response.headers.get("command", "dfu")
        if name != "dfu":
            raise _NoAnswerError(f"a command named {name!r}, not dfu")

    def _follow(self, command: Command, step: Step) -> None:
        """Log the effect of a command, and let the device's faults happen."""
        version = _text(self._device.version)
        if step.outcome is Outcome.IN_SYNC and self._came_back:
            self._in_sync = False
            self._set_back(f"told to stay with {version} for now")
            self._hints.take_stay()
            return
        was_in_sync, self._in_sync = self._in_sync, step.outcome is Outcome.IN_SYNC
        if step.outcome in _ADVANCES:
            self._fruitless = 0
            self._came_back = step.outcome is Outcome.ROLLED_BACK
        match step.outcome:
            case Outcome.WROTE if isinstance(command, Write):
                self._count_block(command)
            case Outcome.IN_SYNC:
                if not was_in_sync:
                    self._say(f"{'in sync' if self._device.image else 'told to stay'} with {version}")
                if not self._device.image:
                    self._hints.take_stay()
            case Outcome.BOOTED:
                boot = self._device.boots[-1]
                self._say(f"booted {version}: {boot.size} bytes, sha256 {boot.sha256}")
            case Outcome.ROLLED_BACK:
                self._setback = f"{_text(self._device.boots[-1].version)} does not come up, rolled back to {version}"
                self._say(self._setback)
            case Outcome.BRICKED:
                raise _BrickedError(step.reason)
            case _:
                self._set_back(step.reason or step.outcome.value)

    def _count_block(self, command: Write) -> None:
        self._blocks += 1
        if command.offset == 0 or command.version != self._writing:
            self._writing = command.version
            self._say(f"writes {_text(command.version)} from byte {command.offset}")
        end = command.offset + len(command.data)
        if self._on_progress is not None:
            self._on_progress(self._options.device, end)
        else:
            self._say_tenth(command.offset, end)
        if self._options.crash_at is not None and not self._power_losses and end >= self._options.crash_at:
            self._power_losses += 1
            self._writing = None
            self._device.power_cycle()
            self._say(f"lost power at byte {end}")
            if self._device.is_bricked:
                raise _BrickedError(BRICKED)

    def _say_tenth(self, start: int, end: int) -> None:
        size = self._options.size
        if size is None:
            if start // LINE_EVERY_BYTES < end // LINE_EVERY_BYTES:
                self._say(f"{end} bytes")
        elif 10 * start // size < 10 * end // size:
            self._say(f"{min(10 * end // size, 10)}0 %, {end} bytes")

    def _say(self, line: str) -> None:
        """Log a line, but not the same one twice in a row: a device repeats itself."""
        if line != self._last_line:
            self._last_line = line
            self._on_line(one_line(f"{self._options.device}: {line}"))  # a version may contain anything


def _build(options: DeviceOptions, bootable: Bootable | None) -> SimulatedDevice:
    rejects = itertools.count(options.reject, -1)

    def comes_up(image: bytes, version: bytes) -> bool:
        if version in options.reject_versions or next(rejects) > 0:
            return False
        return bootable is None or bootable(image, version)

    if options.character == "firmware-manager":
        return FirmwareManagerDevice(options.version, mtu=options.mtu, bootable=comes_up, flash_word=options.flash_word)
    if options.character == "crate":
        return CrateDevice(options.version, mtu=options.mtu, bootable=comes_up)
    correlate = options.dialect != "documented"
    return CarefulDevice(options.version, mtu=options.mtu, bootable=comes_up, correlate=correlate)


def _text(version: bytes) -> str:
    return version.decode(errors="backslashreplace")


def _tls_problem(url: str, error: BaseException) -> str:
    """Return the problem with the endpoint's TLS, and what helps."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLError):
        cause = cause.__context__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"{url}: certificate not trusted: {cause.verify_message}; name the trust anchors with --ca-file"
    if cause is not None and cause.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"):
        return f"{url} does not speak TLS: use http://"
    return f"{url}: TLS: {(cause and cause.reason) or 'handshake failed'}"
