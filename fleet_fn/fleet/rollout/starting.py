"""What `rollout start` looks at before it changes anything."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from fleet_fn.drogue.spec_policy import REFUSE
from fleet_fn.drogue.spec_source import Image
from fleet_fn.errors import UpstreamError
from fleet_fn.firmware.store import Firmware, NotReadyError
from fleet_fn.fleet.rollout.actions import SELECTION_LABEL, Target, is_halted
from fleet_fn.fleet.rollout.application import Application, RefusedError
from fleet_fn.fleet.rollout.devices import Selection, read_rows
from fleet_fn.fleet.rollout.effects import share_of_selection
from fleet_fn.fleet.rollout.session import RolloutSession
from fleet_fn.fleet.rollout.target import FirmwareFinder, verify
from fleet_fn.oci.publication import firmware_warnings
from fleet_fn.oci.reference import LAYOUT_SCHEME, fill_in
from fleet_fn.oci.signature_search import Signature
from fleet_fn.update.fitness import required_by
from fleet_fn.version_range import Version


@dataclass(frozen=True, slots=True)
class Candidate:
    """A firmware to roll out, verified, and the one that it replaces."""

    #: Below FIRMWARE_REGISTRY.
    reference: str
    firmware: Firmware
    target: Target
    #: The application's firmware so far; None if it is not known.
    before: Target | None
    #: For people.
    warnings: tuple[str, ...] = ()
    #: The signature for which the function serves it; None if it needs none.
    signature: Signature | None = None


def check_firmware(finder: FirmwareFinder, application: Application, image: str) -> Candidate:
    """Check a firmware as the function would, bytes included.

    Args:
        finder: finds firmware.
        application: the application that it is for.
        image: a reference below FIRMWARE_REGISTRY, or a whole one.

    Raises:
        NotReadyError, PermanentError, TransientError: the function would refuse it, or could not fetch it.

    """
    reference, source = _below_prefix(finder, image), application.source
    wanted = Image(reference, platform=source.platform if isinstance(source, Image) else None)
    firmware = finder.resolve(wanted)
    verify(firmware)
    warnings = firmware_warnings(firmware.version, firmware.size) + _fit_warnings(application, firmware)
    before: Target | None = None
    try:
        before = finder.target(source) if source else None
    except (UpstreamError, NotReadyError) as error:
        if application.rollout.version is None:
            problem = "the application's firmware so far cannot be resolved, so its version is not known"
            warnings.append(f"{problem}: {error.reason}")
    target, signature = finder.target_of(wanted, firmware), finder.signature_of(firmware)
    return Candidate(reference, firmware, target, before, tuple(warnings), signature)


def _fit_warnings(application: Application, firmware: Firmware) -> list[str]:
    """Return which devices the function would refuse the firmware to.

    Raises:
        PermanentError: it would refuse it to each device.

    """
    warnings, policy = [], application.policy
    if firmware.requires:
        warnings.append(f"devices that run another version than {required_by(firmware)} do not get it")
    if firmware.hardware and policy.hardware not in firmware.hardware:
        told = f"has {policy.hardware}" if policy.hardware else "names none"
        warnings.append(
            f"it is built for {' or '.join(firmware.hardware)}, and the application {told} (spec.firmware.hardware): "
            "devices that do not name it themselves do not get it"
        )
    if policy.downgrades == REFUSE and Version.read(firmware.version) is None:
        warnings.append(f"downgrades is refuse, and {firmware.version} is no semantic version: devices do not get it")
    return warnings


def _below_prefix(finder: FirmwareFinder, image: str) -> str:
    prefix = fill_in(finder.settings.firmware_prefix, {"application": finder.application})
    return image.removeprefix(LAYOUT_SCHEME).removeprefix(prefix)


@dataclass(slots=True)
class Selected:
    """The devices of a selection, by name."""

    #: All that take the application's firmware, and those of them without the label.
    names: list[str] = field(default_factory=list)
    unlabelled: list[str] = field(default_factory=list)
    #: Devices that name a firmware of their own.
    own: list[str] = field(default_factory=list)


def select_devices(
    session: RolloutSession, selection: Selection, label: str, seen: Callable[[int], object] = lambda _: None
) -> Selected:
    """Return the devices that a rollout is to begin with.

    Args:
        session: of the application.
        selection: selects them.
        label: value of the label that they get.
        seen: is called after each page of devices with their number so far.

    Raises:
        RefusedError: no device is selected.
        PermanentError, TransientError: the devices cannot be read.

    """
    found = Selected()
    for device, row in read_rows(session, seen):
        if not selection.matches(row):
            continue
        if device.source is not None:
            found.own.append(device.name)
            continue
        found.names.append(device.name)
        if device.labels.get(SELECTION_LABEL) != label:
            found.unlabelled.append(device.name)
    if not found.names:
        raise RefusedError(f"no device is selected: {selection}")
    return found


def start_notes(application: Application, version: str, now: datetime) -> list[str]:
    """Return what keeps a started rollout from going on, and what has no effect."""
    notes = []
    policy = application.policy
    last = policy.stages[-1] if policy.stages else None
    if last and (last.approval or last.after or last.success is not None):
        notes.append("approval, after and success are about leaving a stage, so those of the last one have no effect")
    hasty = [stage for stage in (policy.stages or ())[:-1] if stage.success is not None and not stage.after]
    if hasty:
        shares = ", ".join(f"{stage.percent:.15g} %" for stage in hasty)
        notes.append(
            f"success without after ({shares}): the first results decide, and one device in sync is 100 %. Add an "
            "after that is longer than an update takes"
        )
    if (share := share_of_selection(application, version, now)) is not None:
        notes.append(
            f"stages and percent hold for the selected devices too: {share:.15g} % of them may start now; "
            "--percent 100 lets in all of them"
        )
    if policy.paused:
        notes.append("updates are paused: rollout resume lets them begin")
    if is_halted(application, version):
        count = application.rollout.failed[version].count
        notes.append(f"{version} is halted: it failed on {count} devices. rollout resume lets it go on")
    return notes
