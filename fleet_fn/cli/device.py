"""`device`: simulated devices in real updates at a Drogue HTTP endpoint."""

import contextlib
import itertools
import signal
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import get_args
from urllib.parse import urlsplit

import click

from fleet_fn.protocol.messages import U32_MAX
from fleet_fn.sandbox.device_run import Character, DeviceOptions, DeviceReport, DeviceRun
from fleet_fn.sandbox.device_wire import Dialect, Encoding

#: Seconds that a stopped command waits for devices that are in the middle of a request.
STOP_GRACE_SECONDS = 1.0
#: Marks a version for --reject that would be read as a number, such as 2.
VERSION_PREFIX = "version:"


def _check_url(_context: click.Context, _option: click.Parameter, value: str) -> str:
    try:
        url = urlsplit(value)
        _ = url.port  # raises ValueError if it is no number
        if url.scheme in ("http", "https") and url.hostname:
            return value
    except ValueError:
        pass
    raise click.BadParameter("expected a URL such as http://127.0.0.1:8081")


def _check_ca_file(_context: click.Context, _option: click.Parameter, value: str | None) -> str | None:
    try:
        ssl.create_default_context(cafile=value)
    except OSError as error:  # SSLError is one
        raise click.BadParameter("no certificates (PEM) in it") from error
    return value


@click.command("device")
@click.option("--url", required=True, callback=_check_url, help="Base URL of the HTTP endpoint, such as the sandbox's.")
@click.option(
    "--ca-file",
    type=click.Path(exists=True, dir_okay=False, readable=True),
    callback=_check_ca_file,
    metavar="FILE",
    envvar="DROGUE_CA_FILE",
    show_envvar=True,
    help="PEM file with the endpoint's trusted CAs.",
)
@click.option("--application", required=True, help="The device's application.")
@click.option("--device", required=True, help="The device's name; with --count, the beginning of the names.")
@click.option("--password", required=True, envvar="DEVICE_PASSWORD", show_envvar=True, help="The device's password.")
@click.option("--gateway", help="Authenticate as this gateway, and speak for --device.")
@click.option("--version", default="0.1.0", show_default=True, help="Version at the start.")
@click.option("--mtu", type=click.IntRange(1, U32_MAX), default=512, show_default=True, help="Largest block, in bytes.")
@click.option(
    "--dialect",
    type=click.Choice(get_args(Dialect)),
    default="packed",
    show_default=True,
    help="Form of the messages; packed has no json.",
)
@click.option("--encoding", type=click.Choice(get_args(Encoding)), default="cbor", show_default=True)
@click.option(
    "--character",
    type=click.Choice(get_args(Character)),
    default="careful",
    show_default=True,
    help="careful: verifies, and keeps its progress if it loses power. "
    "firmware-manager: does neither, like most devices in the field. "
    "crate: embedded-update's updater, over a device that writes at any offset.",
)
@click.option(
    "--flash-word",
    type=click.IntRange(1),
    default=4,
    show_default=True,
    help="Bytes that the flash of a firmware-manager writes at once.",
)
@click.option(
    "--count",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Number of devices, named DEVICE1, DEVICE2 and so on; they share the password.",
)
@click.option("--once", is_flag=True, help="End when told to stay, or after ten statuses in a row without progress.")
@click.option(
    "--speed",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    show_default=True,
    help="Divide every pause: between polls, between blocks, after errors.",
)
@click.option(
    "--size",
    type=click.IntRange(1),
    help="Size of the new firmware in bytes, for the progress bar: no server tells it to a device.",
)
@click.option("--crash-at", metavar="BYTES|PERCENT%", help="Lose power once, when so much is written.")
@click.option("--drop", type=click.FloatRange(0, 1, max_open=True), default=0.0, help="Fraction of answers to lose.")
@click.option("--seed", type=int, default=0, help="Choose which answers --drop loses.")
@click.option(
    "--reject",
    "rejections",
    multiple=True,
    is_flag=False,
    flag_value="1",
    metavar="[N|VERSION]",
    help="Fail the self-test and roll back: the first new firmware, the first N, or these versions at every boot. "
    f"Comma-separated, and repeatable. {VERSION_PREFIX}2 is the version 2.",
)
@click.pass_context
def command(
    context: click.Context,
    /,
    device: str,
    version: str,
    count: int,
    crash_at: str | None,
    size: int | None,
    rejections: tuple[str, ...],
    **rest: object,
) -> None:
    """Simulate devices that go through real updates.

    They talk to a Drogue HTTP endpoint, such as the sandbox's. The command ends on Ctrl-C, or by itself with --once.

    A device that was updated ends "in sync". One that was not updated was only "told to stay": no command says whether
    that is its target, or whether it is held back. `fleet` shows which.

    Exits with 0 if every device was told in the end to stay with the version that it runs, else with 1.
    """
    try:
        reject, reject_versions = _rejections(rejections)
        options = DeviceOptions(
            device=device,
            version=version.encode(),
            size=size,
            crash_at=None if crash_at is None else _crash_offset(crash_at, size),
            reject=reject,
            reject_versions=reject_versions,
            **rest,  # type: ignore[arg-type]  # the options not named above are fields of the same name and type
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    names = [device] if count == 1 else [f"{device}{number}" for number in range(1, count + 1)]
    with _signals() as signals:
        reports = _run_all([replace(options, device=name) for name in names], signals)
        for report in reports:
            click.echo(str(report))
    context.exit(0 if all(report.in_sync for report in reports) else 1)


def _crash_offset(text: str, size: int | None) -> int:
    number = text.removesuffix("%")
    if not number.isascii() or not number.isdigit():
        raise ValueError(f"--crash-at takes bytes or a percentage, not {text!r}")
    if number == text:
        return int(number)
    if size is None:
        raise ValueError("--crash-at as a percentage needs --size: a device is not told how much is to come")
    return size * int(number) // 100


def _rejections(texts: tuple[str, ...]) -> tuple[int, frozenset[bytes]]:
    """Return the number of images and the versions that --reject names.

    Raises:
        ValueError: an entry is empty, or there are two numbers.

    """
    entries = [entry.strip() for text in texts for entry in text.split(",")]
    numbers = [entry for entry in entries if entry.isascii() and entry.isdigit()]
    versions = [entry.removeprefix(VERSION_PREFIX) for entry in entries if entry not in numbers]
    if len(numbers) > 1:
        both, last = " and ".join(numbers), numbers[-1]
        raise ValueError(f"--reject takes one number, not {both}: write {VERSION_PREFIX}{last} for a version")
    if not all(versions):
        raise ValueError("--reject takes a number and versions; one is empty")
    return sum(map(int, numbers)), frozenset(version.encode() for version in versions)


def _run_all(options: list[DeviceOptions], signals: "_Signals") -> list[DeviceReport]:
    stop = threading.Event()
    with _display(options) as (on_line, on_progress):
        on_hint = _once(lambda hint: on_line(f"hint: {hint}"))
        runs = [
            DeviceRun(each, on_line=on_line, stop=stop, on_progress=on_progress, on_hint=on_hint) for each in options
        ]
        # Daemons: a device may wait 30 s for its answer, and must not keep a stopped command from ending.
        threads = [
            threading.Thread(target=run.run, name=each.device, daemon=True)
            for run, each in zip(runs, options, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive() and not signals.came:
                thread.join(0.1)
        if signals.came:
            stop.set()
        deadline = time.monotonic() + STOP_GRACE_SECONDS
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
    return [run.report() for run in runs]


def _once(show: Callable[[str], None]) -> Callable[[str], None]:
    """Return a function that shows each text once, whichever device has it first."""
    shown: set[str] = set()
    lock = threading.Lock()

    def show_once(text: str) -> None:
        with lock:
            if text in shown:
                return
            shown.add(text)
        show(text)

    return show_once


@dataclass(slots=True)
class _Signals:
    """Remembers whether a signal came to end the command."""

    came: bool = False

    def handle(self, *_: object) -> None:
        """Note a signal, and take no lock: the next handler may interrupt this one."""
        self.came = True


@contextlib.contextmanager
def _signals() -> Iterator[_Signals]:
    """Note Ctrl-C and SIGTERM while in here, however many come.

    After one came, the process is about to end: later ones must not change how it does. Python's own handlers go before
    the process does.
    """
    signals = _Signals()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, signals.handle) for number in numbers]
    try:
        yield signals
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, signal.SIG_IGN if signals.came else handler)


@contextlib.contextmanager
def _display(
    options: list[DeviceOptions],
) -> Iterator[tuple[Callable[[str], None], Callable[[str, int], None] | None]]:
    """Yield functions that take a line and a device's offset.

    A terminal shows a progress bar, a pipe shows lines only.
    """
    lock = threading.Lock()
    if not sys.stdout.isatty():

        def plain(line: str) -> None:
            with lock:
                click.echo(line)

        yield plain, None
        return

    size = options[0].size
    offsets: dict[str, int] = {}
    label = options[0].device if len(options) == 1 else f"{len(options)} devices"
    # Without a size, an iterable of unknown length: the bar shows bytes, and no end.
    length = None if size is None else size * len(options)
    with click.progressbar(
        itertools.count(), length=length, label=label, show_eta=False, show_pos=length is None
    ) as bar:

        def above(line: str) -> None:
            with lock:
                click.echo(f"\r\x1b[K{line}")
                bar.render_progress()

        def move(device: str, offset: int) -> None:
            with lock:
                offsets[device] = offset  # set, not added: a device that lost power starts again
                bar.pos = sum(offsets.values())
                bar.render_progress()

        yield above, move
