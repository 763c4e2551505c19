"""Where an event's CPU goes, part by part, in this process and without a server around it."""

import io
import itertools
import os
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from unittest import mock

import click

from fleet_fn.concurrency.single_flight import SingleFlight
from fleet_fn.deadline import Deadline
from fleet_fn.drogue.commands import Commands
from fleet_fn.drogue.device_registry import DeviceRegistry
from fleet_fn.drogue.events import read_event
from fleet_fn.firmware.resolver import ImageResolver
from fleet_fn.firmware.verified import VerifiedFiles
from fleet_fn.observability import log, metrics
from fleet_fn.oci.reference import image_reference
from fleet_fn.parts import Parts, make_image_store
from fleet_fn.protocol.dialects import decode_status, encode_command
from fleet_fn.protocol.messages import Write
from fleet_fn.protocol.step import Block, Target
from fleet_fn.settings import Settings
from fleet_fn.update.decision import decide
from fleet_fn.update.outcome import Outcome, OutcomeName
from fleet_fn.update.values import DecisionContext
from fleet_fn.upstreams import make_drogue
from fleet_fn.web.event_log import log_event
from fleet_fn.web.routes import make_app
from tests.bench.peers import BLOCK, DONE, IN_SYNC, Cloud, midway
from tests.support.function import event

_TIMES: Final = 5
_EACH: Final = 600
_SIZE: Final = 1024 * 1024


def show(peers: Cloud, folder: Path) -> None:
    """Prints microseconds of CPU for each part of an event that is answered with a block."""
    environment = {**peers.environment(), "FIRMWARE_CACHE_DIR": str(folder / "cache")}
    with mock.patch.dict(os.environ, environment):
        settings = Settings.from_environment()
    single_flight = SingleFlight()
    drogue = make_drogue(settings)
    registry, commands = DeviceRegistry(drogue), Commands(drogue)
    images = ImageResolver(make_image_store(settings, VerifiedFiles(single_flight), single_flight), single_flight)

    body = midway(_SIZE)
    attributes = event("device-1", "medium", time=datetime.now(UTC).isoformat())
    headers = [(f"CE-{name.upper()}", value) for name, value in attributes.items() if value is not None]
    headers.append(("content-type", "application/cbor"))
    cloud_event = read_event(headers, body)
    status, form = decode_status(body, "application/cbor")

    def soon() -> Deadline:
        return Deadline(60)

    def spec() -> Any:
        desired = registry.read_desired("medium", "device-1", 3600, soon())
        source: Any = desired.source
        reference = image_reference(source.reference, settings.firmware_prefix, "medium", None)
        return desired, images.resolve(reference, 3600, soon())

    desired, firmware = spec()
    target = Target(firmware.version.encode(), firmware.size, firmware.checksum)

    def step() -> Any:
        record = desired.reported.record
        return decide(status, target, DecisionContext(now=datetime.now(UTC), mtu=BLOCK, poll=300, record=record)).step

    def block() -> bytes:
        with firmware.open(soon()) as reader:
            read: bytes = reader.read(chosen.offset, chosen.size)
            return read

    chosen: Block = step()
    command = Write(chosen.version, chosen.offset, block())
    payload = encode_command(command, form)
    count_event, count_request = metrics.events(("write",)), metrics.exchanges("command")
    count_look_up, count_sent = metrics.lookups("spec"), metrics.sent()

    def count() -> None:
        count_event("write", 0.003)
        count_request(202, 0.002)
        for _ in range(4):  # the device's object, its application's, the manifest, the firmware
            count_look_up(hit=True)
        count_sent(BLOCK)

    outcome = Outcome(
        OutcomeName.WRITE, version="2", offset=0, size=BLOCK, checksum="ab" * 32, manifest=f"sha256:{'cd' * 32}"
    )

    def line() -> None:
        log_event(cloud_event, outcome, 0.003)

    measured = {
        "CloudEvent": _cost(lambda: read_event(headers, body)),
        "status": _cost(lambda: decode_status(body, "application/cbor")),
        "spec, from memory": _cost(spec),
        "step": _cost(step),
        "block, from disk": _cost(block),
        "encode": _cost(lambda: encode_command(command, form)),
        "command": _cost(lambda: commands.send("medium", "device-1", "dfu", payload, "application/cbor", soon())),
        "metrics": _cost(count),
        "log line": _logged(settings, line),
    }
    click.echo(f"\nmicroseconds of CPU of an event that is answered with a block, by part\n{'-' * 72}")
    for part, cost in measured.items():
        click.echo(f"{part:20} {cost:>9.1f} {cost / sum(measured.values()):>9.1%}")
    click.echo(f"{'together':20} {sum(measured.values()):>9.1f}")
    _show_whole(settings, body)


def _show_whole(settings: Settings, body: bytes) -> None:
    """Prints the same of whole events, from the server's hand to the answer."""
    parts = Parts(settings)
    for what, name, sent in (("a block", "medium", body), ("a poll", DONE, IN_SYNC)):
        post = _sender(make_app(settings, parts.updater, parts.previewer), name, sent)
        click.echo(f"{what + ' in all':20} {_logged(settings, post):>9.1f}   the server comes on top")
    parts.close()


def _sender(application: Any, name: str, status: bytes) -> Callable[[], None]:
    """Hands an event of its own with each call to the application, which has answered one."""
    attributes = event("device-1", name)
    environ: Mapping[str, Any] = {
        **{f"HTTP_CE_{key.upper()}": value for key, value in attributes.items() if value is not None},
        "REQUEST_METHOD": "POST",
        "PATH_INFO": "/",
        "CONTENT_TYPE": "application/cbor",
        "CONTENT_LENGTH": str(len(status)),
        "wsgi.input_terminated": True,
    }
    ids, outcomes = itertools.count(), [""]

    def start_response(_: str, headers: list[tuple[str, str]], __: object = None) -> None:
        outcomes[0] = dict(headers)["Fleet-Outcome"]

    def post() -> None:
        own = {"HTTP_CE_ID": f"{name}-{next(ids)}", "HTTP_CE_TIME": datetime.now(UTC).isoformat()}
        application({**environ, **own, "wsgi.input": io.BytesIO(status)}, start_response)

    while not outcomes[0].startswith(("write", "sync")):
        post()
        time.sleep(0.1)
    return post


def _cost(part: Callable[[], object]) -> float:
    """Microseconds of CPU, of the fastest of several turns: what disturbs makes it slower only."""
    costs = []
    for _ in range(_TIMES):
        began = time.process_time()
        for _ in range(_EACH):
            part()
        costs.append((time.process_time() - began) / _EACH)
    return 1e6 * min(costs)


def _logged(settings: Settings, part: Callable[[], object]) -> float:
    """The same of what writes a line, which nobody reads."""
    with Path(os.devnull).open("w") as nowhere, mock.patch("sys.stdout", nowhere):
        log.configure(settings.log_level, settings.log_format)
        cost = _cost(part)
    log.logger.handlers.clear()
    return cost
