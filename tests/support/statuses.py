"""Statuses of devices, and what they were told."""

from datetime import UTC, datetime, timedelta
from typing import Any, Final

import cbor2

from fleet_fn.sandbox.device_wire import Dialect, Encoding
from tests.support.drogue import Drogue
from tests.support.function import Answer, Client, Function, event

#: What devices may speak.
FORMS: Final[list[tuple[Dialect, Encoding]]] = [
    ("documented", "cbor"),
    ("documented", "json"),
    ("named", "cbor"),
    ("named", "json"),
    ("packed", "cbor"),
]
#: Of a device that has WAIT, and no progress.
STATUS = {0: b"0.1.0", 1: 512, 2: None, 3: None}


def midway(version: str, offset: int) -> dict[int, Any]:
    return {**STATUS, 3: {0: version.encode(), 1: offset}}


def in_sync(version: str) -> dict[int, Any]:
    return {**STATUS, 0: version.encode()}


def post(function: Client, device: str, status: dict[int, Any] = STATUS, **attributes: str | None) -> Answer:
    return function.post(event(device, datacontenttype="application/cbor", **attributes), cbor2.dumps(status))


def begin(function: Function, device: str) -> None:
    """Have a device begin its update: only one of which that is recorded is continued midway."""
    assert "; offset=0; " in post(function, device).outcome


def ago(seconds: float) -> str:
    """Return the `time` of an event that is so old. A status of another second is never one that came twice."""
    return (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat()


def record_start(drogue: Drogue, device: str, version: str, checksum: bytes, application: str = "example") -> None:
    """Record in a device's object that its update to a firmware was begun, as the function does before block 0.

    A process that remembers the object does not see it.
    """
    known = drogue.object(application, device)
    update = {"version": version, "checksum": checksum.hex(), "started": f"{datetime.now(UTC):%FT%TZ}", "attempts": 0}
    status = known.get("status", {})
    sections = {"spec": known.get("spec", {}), "status": {**status, "firmware": {"update": update}}}
    drogue.put(application, device, known["metadata"]["labels"], **sections)


def told(drogue: Drogue, device: str) -> list[tuple[str, dict[int, Any]]]:
    """All that a device was told: `("write", {fields by index})` and such."""
    commands = [cbor2.loads(command.payload) for command in drogue.commands_for(device)]
    return [(_VARIANTS[variant], fields) for command in commands for variant, fields in command.items()]


def blocks(drogue: Drogue, device: str) -> list[tuple[int, bytes]]:
    """Offset and bytes of all that a device was told to write."""
    return [(fields[2], fields[3]) for variant, fields in told(drogue, device) if variant == "write"]


def update(function: Function, drogue: Drogue, device: str, mtu: int = 512) -> tuple[str, bytes]:
    """Has a device do as it is told until it swaps; the version that it would boot, and its bytes."""
    flash, status = b"", {**STATUS, 1: mtu}
    for _ in range(1000):
        answer = post(function, device, status)
        assert answer.status == 204, answer.body
        variant, fields = told(drogue, device)[-1]
        if variant == "swap":
            return fields[0].decode(), flash
        assert (variant, fields[2]) == ("write", len(flash)), answer.outcome
        flash += fields[3]
        status = {**status, 3: {0: fields[0], 1: len(flash)}}
    raise AssertionError("an update without end")


_VARIANTS = {0: "wait", 1: "sync", 2: "write", 3: "swap"}
