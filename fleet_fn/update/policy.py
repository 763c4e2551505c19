"""Hold back the updates that policy does not allow now."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Final, NamedTuple

from fleet_fn.drogue.rollout_status import NO_ROLLOUT, RolloutStatus
from fleet_fn.drogue.spec_policy import Policy
from fleet_fn.drogue.spec_values import shorten
from fleet_fn.update.stages import Position
from fleet_fn.update.window import opens_in

#: A float holds 53 bits exactly (IEEE 754, binary64), so no draw is rounded, least of all up to 1.
_DRAWN_BITS: Final = 53


@dataclass(frozen=True, slots=True)
class Hold:
    """An update must not go on now."""

    #: `rollout`, `approval` or `window`.
    reason: str
    #: Why, for people, in one line. It stays the same as long as nothing changes.
    message: str
    #: Seconds until a window opens.
    opens_in: float | None = None
    #: When the hold ends; None if unknown.
    until: datetime | None = None


class Candidate(NamedTuple):
    """A device that may be updated."""

    #: Its UID; empty if it is unknown.
    uid: str
    labels: Mapping[str, str]


def hold_start(
    policy: Policy, device: Candidate, version: str, now: datetime, rollout: RolloutStatus = NO_ROLLOUT
) -> Hold | None:
    """Return why a device must not start its update; None if it may.

    Args:
        policy: the device's over its application's. Whether it is paused is not looked at.
        device: the device.
        version: the target's.
        now: any time zone.
        rollout: the state of the application's rollout.

    """
    return hold_draw(policy, device, version, now, rollout) or hold_swap(policy, now)


def hold_draw(
    policy: Policy, device: Candidate, version: str, now: datetime, rollout: RolloutStatus = NO_ROLLOUT
) -> Hold | None:
    """Return why a device is not among those that are updated; None if it is.

    The hour makes no difference.
    """
    if missing := _hold_labels(policy.labels or {}, device.labels):
        return missing
    if rollout.of(version).complete:
        return None
    if policy.stages:
        return _hold_stage(Position.of(policy.stages, rollout, version), device.uid, version, policy.salt, now)
    return _hold_percent(policy.percent, device.uid, version, policy.salt)


def hold_swap(policy: Policy, now: datetime) -> Hold | None:
    """Return why a device with all blocks must not swap; None if it may.

    Only the policy's window counts.
    """
    window = policy.window
    closed_for = opens_in(window, now) if window else 0.0
    if not window or not closed_for:
        return None
    opening = (now.astimezone(UTC) + timedelta(seconds=closed_for)).astimezone(window.timezone)
    return Hold(
        "window", f"the window opens at {opening.isoformat(timespec='minutes')}", closed_for, opening.astimezone(UTC)
    )


def draw(uid: str, version: str, salt: str | None) -> float:
    """Return a device's place among all devices, from 0 up to and without 1.

    It is the same each time, and evenly spread over devices. Each version draws anew; with `salt` all versions draw the
    same.
    """
    device = uid.encode()
    # The length tells where the UID ends, so no other pair of texts is hashed as the same bytes.
    digest = sha256(b"%d:%b%b" % (len(device), device, (version if salt is None else salt).encode())).digest()
    return (int.from_bytes(digest[:8], "big") >> (64 - _DRAWN_BITS)) / (1 << _DRAWN_BITS)


def _hold_labels(wanted: Mapping[str, str], labels: Mapping[str, str]) -> Hold | None:
    missing = ", ".join(f"{key}={value}" for key, value in wanted.items() if labels.get(key) != value)
    return Hold("rollout", f"its labels are not {shorten(missing)}") if missing else None


def _hold_stage(position: Position, uid: str, version: str, salt: str | None, now: datetime) -> Hold | None:
    percent = position.percent_at(now)
    if percent == 100:
        return None
    devices = f"not in {position.describe()}"
    drawn = draw(uid, version, salt) if uid else None
    if drawn is not None and drawn < percent / 100:
        return None
    if drawn is not None and (until := position.lets_in_at(100 * drawn)):
        return Hold("rollout", f"not yet in {position.describe()}", until=until)
    if position.waits_for_approval:
        return Hold("approval", f"{devices}, which waits for approval")
    return Hold("rollout", devices if uid else f"{devices}: it has no UID")


def _hold_percent(percent: float | None, uid: str, version: str, salt: str | None) -> Hold | None:
    # All devices are in at 100, and none at 0: draws are below 1, and not below 0.
    if percent is None or percent == 100:
        return None
    devices = f"not among the {percent:.15g} % of devices"
    if not uid:
        return Hold("rollout", f"{devices}: it has no UID")  # else all such devices would be drawn as one
    return None if draw(uid, version, salt) < percent / 100 else Hold("rollout", devices)
