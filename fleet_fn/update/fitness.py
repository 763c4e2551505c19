"""Decide whether a firmware fits a device's hardware and its version.

Pure. An order is never guessed: versions that have to be compared and are no semantic versions are an error.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, NamedTuple

from fleet_fn.errors import PermanentError
from fleet_fn.firmware.store import Firmware
from fleet_fn.oci.manifest import REQUIRES_ANNOTATION

if TYPE_CHECKING:
    from fleet_fn.version_range import Range, Version

#: The reasons of a firmware that does not fit.
HARDWARE: Final = "hardware"
REQUIRES: Final = "requires"
DOWNGRADE: Final = "downgrade"


class Fitting(NamedTuple):
    """What a firmware has to fit."""

    #: The version that the device runs.
    version: str
    #: The device's hardware; None if unknown.
    hardware: str | None = None
    #: No version below the device's may be sent.
    refuses_downgrades: bool = False
    #: Only signed manifests count. No signature covers a tag.
    trusts_no_tag: bool = False


class UnfitError(PermanentError):
    """A firmware is not for the device.

    The reason is `hardware`, `requires` or `downgrade`.
    """


def check(firmware: Firmware, device: Fitting) -> None:
    """Refuse a firmware that is not for a device.

    Raises:
        UnfitError: it is not.
        PermanentError: that cannot be told, because a version is no semantic version, or nothing vouches for it.

    """
    if unfit := find_misfit(firmware, device):
        raise unfit
    check_order(firmware, device)


def find_misfit(firmware: Firmware, device: Fitting) -> UnfitError | None:
    """Return why a device cannot take a firmware; None if it can.

    The order of their versions makes no difference.

    Raises:
        PermanentError: that cannot be told.

    """
    if firmware.hardware and device.hardware not in firmware.hardware:
        built_for = f"{firmware.version} is built for {' or '.join(firmware.hardware)}"
        hardware = f"is {device.hardware}" if device.hardware else "is unknown (spec.firmware.hardware is not set)"
        return UnfitError(HARDWARE, f"{built_for}, and the device's hardware {hardware}")
    if not firmware.requires:
        return None
    required = required_by(firmware)
    current = _read(device.version, f"{firmware.version} requires {required}, but the device's version")
    if current in required:
        return None
    return UnfitError(REQUIRES, f"{firmware.version} requires {required}, and the device runs {device.version}")


def required_by(firmware: Firmware) -> "Range":
    """Return the range that a device's version must be in before it gets a firmware.

    Raises:
        PermanentError: the annotation is no range.

    """
    from fleet_fn.version_range import MalformedRangeError, parse_range  # imported when needed: few firmwares ask

    try:
        return parse_range(firmware.requires)
    except MalformedRangeError as error:
        raise PermanentError(f"{firmware.version}: annotation {REQUIRES_ANNOTATION} {error}") from error


def check_order(firmware: Firmware, device: Fitting) -> None:
    """Refuse a version below the device's, if the device takes none.

    Raises:
        UnfitError: it is below.
        PermanentError: that cannot be told.

    """
    if not device.refuses_downgrades:
        return
    what = "downgrades is refuse, but"
    if device.trusts_no_tag and not firmware.has_own_version:
        raise PermanentError(f"{what} only its tag gives {firmware.version} a version, and no signature covers a tag")
    target = _read(firmware.version, f"{what} the firmware's version")
    current = _read(device.version, f"{what} the device's version")
    if target < current:
        message = f"{firmware.version} is below {device.version}, which the device runs, and downgrades is refuse"
        raise UnfitError(DOWNGRADE, message)


def choose(candidates: Iterable[Firmware], device: Fitting, wanted: str) -> Firmware:
    """Return the highest firmware that a device may take.

    The one that it runs is taken, too. If a higher one is not for the device, none below the device's own is taken in
    its place: else a device that needs another version first would go back unseen.

    Args:
        candidates: those in the range, the highest first; only as many are looked at as are needed.
        device: what it has to fit.
        wanted: the range, for messages.

    Raises:
        UnfitError: none fits. The message names the highest, and why it does not.
        PermanentError: there is none, or its order to the device's version cannot be told.

    """
    skipped: UnfitError | None = None
    for candidate in candidates:
        if candidate.version == device.version:
            return candidate
        if skipped and _is_below(candidate, device):
            message = f"{skipped.message}; the next lower, {candidate.version}, is below {device.version}"
            raise UnfitError(skipped.reason, message)
        unfit = find_misfit(candidate, device)
        if unfit is None:
            return candidate
        skipped = skipped or unfit
    if skipped:
        raise UnfitError(skipped.reason, f"{skipped.message}; no other version in {wanted} may be sent")
    raise PermanentError(f"no tag is a semantic version in {wanted}")


def _is_below(firmware: Firmware, device: Fitting) -> bool:
    current = _read(device.version, "a higher version is not for this device, and the device's version")
    return _read(firmware.version, "the firmware's version") < current


def _read(text: str, what: str) -> "Version":
    from fleet_fn.version_range import Version

    version = Version.read(text)
    if version is None:
        raise PermanentError(f"{what} is no semantic version: {text}")
    return version
