"""`inspect hawkbit:CONTROLLER`: what the function would see of a controller."""

import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Final

import click

from fleet_fn.cli.failures import WRONG_USAGE, fail
from fleet_fn.cli.inspect_display import print_fact, print_firmware
from fleet_fn.concurrency.single_flight import SingleFlight
from fleet_fn.deadline import Deadline
from fleet_fn.errors import UpstreamError
from fleet_fn.firmware.assignment import Assignment, Controller, Kind
from fleet_fn.firmware.hawkbit_store import HawkbitStore
from fleet_fn.firmware.store import NotReadyError
from fleet_fn.firmware.trust import Trust
from fleet_fn.firmware.verified import VerifiedFiles
from fleet_fn.fleet.rollout.target import ANSWER_SECONDS, refuse_long_version, verify
from fleet_fn.parts import make_ddi_source
from fleet_fn.protocol.messages import U32_MAX
from fleet_fn.settings import Settings, SettingsError
from fleet_fn.update.assigned import Assigned

#: The kinds of wishes, in words.
_KINDS: Final = {
    Kind.NOTHING: "nothing",
    Kind.DEPLOYMENT: "deployment",
    Kind.CONFIRMATION: "deployment, to be confirmed",
    Kind.CANCELLATION: "cancellation",
}


def inspect_controller(name: str, trust: Trust, warn: Callable[[str], object]) -> None:
    """Print what a DDI server wants of a controller, and verify the bytes.

    Exits with 1 and the function's reason if the function would refuse the firmware; with 2 if a setting is wrong.
    """
    try:
        settings = Settings.for_hawkbit()
    except SettingsError as error:
        fail("inspect", str(error), WRONG_USAGE)
    single_flight, controller = SingleFlight(), Controller(name)
    with tempfile.TemporaryDirectory(prefix="fleet-inspect-", ignore_cleanup_errors=True) as folder:
        settings = replace(settings, firmware_cache_dir=folder, firmware_cache_bytes=2 * U32_MAX)
        source = make_ddi_source(settings, VerifiedFiles(single_flight), single_flight)
        assert source is not None  # noqa: S101 - there is a HAWKBIT_URL
        with closing(source.client):
            try:
                assignment = HawkbitStore(*source).assignment(controller, 0.0, Deadline(ANSWER_SECONDS))
                _print(Assigned(controller, assignment, assignment.firmware), assignment, trust, warn)
            except (UpstreamError, NotReadyError) as error:
                fail("inspect", error.reason)


def _print(assigned: Assigned, assignment: Assignment, trust: Trust, warn: Callable[[str], object]) -> None:
    """Print an assignment and its firmware.

    Raises:
        NotReadyError, PermanentError, TransientError: the function would refuse it, or could not serve it now.

    """
    action = f", action {assignment.action}" if assignment.action else ""
    print_fact("assigned", f"{_KINDS[assignment.kind]}{action}", click.echo)
    if assignment.problem:
        fail("inspect", assignment.problem)
    firmware = assignment.firmware
    if assignment.kind is Kind.NOTHING:
        if firmware:
            print_fact("installed", firmware.version, click.echo)
        return
    if (hold := assigned.hold) and firmware:
        print_fact("held", f"{hold.reason}: {hold.message}", click.echo)
    if firmware is None:
        return
    verify(firmware)
    print_firmware(firmware, click.echo, warn)
    trust.check(firmware, "", Deadline(ANSWER_SECONDS))
    refuse_long_version(firmware)
