"""Say in a device's object how its update goes."""

from typing import Final

from fleet_fn.drogue.status_report import (
    BLOCK_REFUSED,
    CONFIRMING,
    FAILED,
    FINISHING,
    GIVEN_UP,
    IN_SYNC,
    PROGRESS,
    SETTLING,
    UNKNOWN,
    Condition,
    Heartbeat,
    HoldReport,
    Report,
    Reported,
)
from fleet_fn.drogue.storable import storable
from fleet_fn.protocol.messages import Status, Swap, Sync
from fleet_fn.protocol.step import Block
from fleet_fn.update.assessment import SUSPICIOUS_REPEATS, View
from fleet_fn.update.values import Confirm, Decision, Hold, Settle

#: The reason of a device that has no target.
UNMANAGED: Final = "unmanaged"


def report_of(
    status: Status, view: View, decision: Decision, refusal: str, heartbeat: Heartbeat | None = None
) -> Report:
    """Return the report of a device whose target is known, or that hears SYNC anyway.

    Args:
        status: the device's.
        view: the facts that the decision rests on.
        decision: the decision.
        refusal: what `refusal_of` returned.
        heartbeat: the times between which a device in sync was last seen, unless its object has to say so anew.

    """
    reported, step, at_tenth = view.desired.reported, decision.step, False
    current = version_text(status.version)
    firmware, before, record = view.served, reported.record, decision.record
    if isinstance(step, Sync):
        return Report(current, current, (Condition(IN_SYNC, "True"),), before, record, heartbeat=heartbeat)
    if firmware is None or view.target is None:
        return Report(current, UNKNOWN, (Condition(IN_SYNC, "False", view.problem, view.message),), before, record)
    conditions = [Condition(IN_SYNC, "False", *_explanation(view, step, refusal))]
    written = 0
    if isinstance(step, Block):
        written, at_tenth = step.offset + step.size, crosses_tenth(step, firmware.size)
    elif isinstance(step, Swap):
        written = firmware.size
    elif isinstance(step, Hold | Settle) and status.progress:
        is_served = status.progress.version == firmware.version.encode()
        written = min(status.progress.offset, firmware.size) if is_served else 0
    if written:
        conditions.append(Condition(PROGRESS, "Unknown", message=f"{100 * written / firmware.size:.2f}"))
    if isinstance(step, Hold) and step.given_up:
        conditions.append(Condition(FAILED, "True", GIVEN_UP, step.given_up))
    hold = HoldReport(step.reason, step.message, step.until) if isinstance(step, Hold) else None
    return Report(current, view.target.version, tuple(conditions), before, record, at_tenth, hold)


def report_of_unassigned(current: str, reported: Reported) -> Report | None:
    """Return the report of a device whose source assigns it no firmware any more.

    None if its object says neither that an update is under way nor that it is held back. A version that was given up
    stays in the object.
    """
    behind, gave_up = reported.condition(IN_SYNC), reported.condition(FAILED)
    if behind is None or behind.status != "False" or (gave_up and gave_up.status == "True"):
        return None
    hold = HoldReport(UNMANAGED, "hawkBit assigns no firmware to it")
    return Report(current, current, (Condition(IN_SYNC, "False", hold.reason, hold.message),), hold=hold)


def _explanation(view: View, step: object, refusal: str) -> tuple[str, str]:
    """Return reason and message of a device out of sync; empty if all goes well."""
    if isinstance(step, Hold):
        return step.reason, step.message
    if isinstance(step, Settle):
        return SETTLING, "other bytes had this version a moment ago: waits until no process serves them"
    if isinstance(step, Confirm):
        return CONFIRMING, "it came up with its new version, and is told to keep it before the next update"
    if isinstance(step, Block) and refusal:
        return BLOCK_REFUSED, refusal
    if view.served and view.target and view.served.version != view.target.version:
        return FINISHING, f"gets the rest of {view.served.version} first, which it has begun"
    return "", ""


def refusal_of(block: Block, sent: int, reported: Reported) -> str:
    """Return the problem of a device that asks for the same block again and again.

    It is empty if the device does not.

    Args:
        block: the block that it gets now.
        sent: how often in a row this process has sent it that block already.
        reported: what its object says.

    """
    begin = f"refuses the block at {block.offset}, "
    asked = 1 + sent
    known = reported.condition(IN_SYNC)
    # Another process may have counted further, and this one must not take its word back.
    if asked < SUSPICIOUS_REPEATS and not (known and known.message.startswith(begin)):
        return ""
    return (
        f"{begin}or never gets it: asked for it {SUSPICIOUS_REPEATS} times in a row; "
        "firmware should be padded to 32 bytes (publish --pad-to 32)"
    )


def crosses_tenth(block: Block, size: int) -> bool:
    """Return whether a block reaches the next tenth of `size` bytes."""
    return 10 * block.offset // size < 10 * (block.offset + block.size) // size


def version_text(version: bytes) -> str:
    """Return a version as a device's object can hold it."""
    return storable(version.decode("utf-8", "backslashreplace"))
