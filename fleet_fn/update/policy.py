"""Hold back the updates that policy does not allow now."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Final

from fleet_fn.drogue.firmware_spec import Policy, shorten
from fleet_fn.update.window import opens_in

#: A float holds 53 bits exactly (IEEE 754, binary64), so no draw is rounded, least of all up to 1.
_DRAWN_BITS: Final = 53


@dataclass(frozen=True, slots=True)
class Hold:
    """An update must not go on now."""

    #: `rollout` or `window`.
    reason: str
    #: Why, for people, in one line.
    message: str
    #: Seconds until a window opens.
    opens_in: float | None = None


def hold_start(policy: Policy, uid: str, labels: Mapping[str, str], version: str, now: datetime) -> Hold | None:
    """Return why a device must not start its update; None if it may.

    Args:
        policy: the device's over its application's. Whether it is paused is not looked at.
        uid: the device's UID; empty if it is unknown.
        labels: the device's labels.
        version: the target's.
        now: any time zone.

    """
    return (
        _hold_labels(policy.labels or {}, labels)
        or _hold_percent(policy.percent, uid, version, policy.salt)
        or hold_swap(policy, now)
    )


def hold_swap(policy: Policy, now: datetime) -> Hold | None:
    """Return why a device with all blocks must not swap; None if it may.

    Only the policy's window counts.
    """
    window = policy.window
    closed_for = opens_in(window, now) if window else 0.0
    if not window or not closed_for:
        return None
    opening = (now.astimezone(UTC) + timedelta(seconds=closed_for)).astimezone(window.timezone)
    return Hold("window", f"the window opens at {opening.isoformat(timespec='minutes')}", closed_for)


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


def _hold_percent(percent: float | None, uid: str, version: str, salt: str | None) -> Hold | None:
    # All devices are in at 100, and none at 0: draws are below 1, and not below 0.
    if percent is None or percent == 100:
        return None
    devices = f"not among the {percent:.15g} % of devices"
    if not uid:
        return Hold("rollout", f"{devices}: it has no UID")  # else all such devices would be drawn as one
    return None if draw(uid, version, salt) < percent / 100 else Hold("rollout", devices)
