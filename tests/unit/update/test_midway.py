"""The table for devices midway: which row applies to which device."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final

import pytest

from fleet_fn.drogue.update_record import PendingRestart, Record, Superseded
from fleet_fn.protocol.messages import Progress, Status, Swap
from fleet_fn.protocol.step import Block, Target, next_command
from fleet_fn.update.midway import TABLE, Midway
from fleet_fn.update.values import DecisionContext

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
TARGET = Target(b"0.1.1", 1300, bytes(32))
STARTED = Record("0.1.1", TARGET.checksum.hex(), started="2026-11-25T11:00:00Z")
ORDERED = replace(STARTED, restart=PendingRestart(sent=512, midway=1024, orders=1))
STUCK = replace(STARTED, restart=PendingRestart(sent=512, midway=1024, orders=1, stuck=True))
OTHER_BYTES = (Superseded("0.1.1", "ff" * 32, NOW - timedelta(seconds=3)),)


def device(
    offset: int | None, known: Record | None, *, version: bytes = b"0.1.1", record: Record | None = None, uid: str = ""
) -> Midway:
    progress = None if offset is None else Progress(version, offset)
    step = next_command(Status(b"0.1.0", progress=progress), TARGET, mtu=512, poll=300)
    assert isinstance(step, Block | Swap)
    record = record or known or Record("0.1.1", TARGET.checksum.hex())
    return Midway(step, progress, TARGET, known, record, DecisionContext(NOW, 512, 300, known, device_uid=uid))


#: Devices, and the row that applies to each.
EXAMPLES: Final = [
    (device(None, None), "reports no progress"),
    (device(512, replace(STARTED, device="first"), uid="second"), "is another one of the same name"),
    (device(0, None, version=b"0.1.0"), "has no block, of another version"),
    (device(700, STUCK), "is stuck"),
    (device(700, STUCK, record=replace(STUCK, retry="again")), "was stuck, and may try again"),
    (device(0, STARTED), "has no block"),
    (device(512, None), "has blocks that no record knows"),
    (device(512, replace(STARTED, checksum="ff" * 32), record=STARTED), "has blocks that no record knows"),
    (device(2000, STARTED), "is beyond the end"),
    (device(512, STARTED), "goes on"),
    (device(1300, STARTED), "goes on"),
    (device(1024, replace(ORDERED, earlier=OTHER_BYTES)), "may have other bytes"),
    (device(1024, ORDERED), "may not have heard its order"),
    (device(700, ORDERED), "has an offset that no order leads to"),
    (
        device(512, replace(ORDERED, restart=PendingRestart(sent=512, midway=512))),
        "has an offset that shows nothing",
    ),
    (device(512, ORDERED), "has obeyed its order"),
]


@pytest.mark.parametrize(("midway", "row"), EXAMPLES)
def test_first_row_that_applies(midway: Midway, row: str) -> None:
    assert next(each.device for each in TABLE if each.applies(midway)) == row


def test_each_row_has_an_example() -> None:
    assert {row for _, row in EXAMPLES} == {row.device for row in TABLE}
