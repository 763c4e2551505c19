"""`rollout retry`: let devices that failed try again."""

from typing import Final

import click

from fleet_fn.cli.rollout.device_changes import Changed, change_devices
from fleet_fn.cli.rollout.shared import Operation, change_options, operate, print_diff, reading, warn
from fleet_fn.deadline import Deadline
from fleet_fn.drogue.listing import read_device
from fleet_fn.drogue.update_record import timestamp
from fleet_fn.errors import UpstreamError
from fleet_fn.fleet.rollout import actions
from fleet_fn.fleet.rollout.application import RefusedError
from fleet_fn.fleet.rollout.devices import needs_retry, read_rows, tell_retry, with_retry
from fleet_fn.fleet.rows import read_row
from fleet_fn.fleet.wording import describe_devices

#: Time for reading a device.
_DEVICE_SECONDS: Final = 15.0


@click.command("retry")
@change_options
@click.option("--failed", is_flag=True, help="Retry on all devices that rolled back or gave up.")
@click.option("--device", "names", multiple=True, metavar="NAME", help="Retry on this device; may be repeated.")
def command(application: str, dry_run: bool, failed: bool, names: tuple[str, ...]) -> None:
    """Let devices try again that rolled back, or gave the version up.

    Sets spec.firmware.retry of these devices to the time, which forgets their attempts. A device of --device that did
    neither is left as it is. While the version is halted, its devices wait for `rollout resume` all the same.
    """
    if failed == bool(names):
        raise click.UsageError("name either --failed or --device")
    with operate("retry", application, dry_run=dry_run) as operation:
        session = operation.session
        found = session.read()
        selected = _failed(operation) if failed else _named(operation, names)
        token = timestamp(session.now())
        changed = Changed()
        try:
            change_devices(
                session, list(selected), lambda device: with_retry(device, token), "changing devices", changed
            )
        except UpstreamError:
            if changed.names:  # the registry failed midway
                _print_result(operation, changed, token, is_empty=False)
            raise
        _print_result(operation, changed, token, is_empty=not selected)
        for version in sorted({*actions.halted_versions(found)} & {*selected.values()}):
            warn(f"{version} is halted: its devices get it only after rollout resume")
        if selected and not changed.names:
            raise RefusedError("none of the devices could be changed")


def _print_result(operation: Operation, changed: Changed, token: str, *, is_empty: bool) -> None:
    """Print the change of the first device, and how many try again; tell the sink."""
    made = changed.names
    if changed.first:
        print_diff(changed.first)
    if is_empty:
        click.echo("nothing to change: no device rolled back or gave up")
    elif operation.session.dry_run:
        click.echo(f"{describe_devices(len(made))} would try again (spec.firmware.retry: {token!r})")
        click.echo("--dry-run: nothing was written")
    else:
        click.echo(f"{describe_devices(len(made))} will try again (spec.firmware.retry: {token!r})")
        if made and (problem := tell_retry(operation.session, made, token)):
            warn(f"the change is made, but no event of it was sent: {problem}")


def _failed(operation: Operation) -> dict[str, str | None]:
    """Return the devices that rolled back or gave up, with their targets."""
    with reading() as seen:
        return {device.name: row.target for device, row in read_rows(operation.session, seen) if needs_retry(row)}


def _named(operation: Operation, names: tuple[str, ...]) -> dict[str, str | None]:
    """Return those of the named devices that rolled back or gave up."""
    session = operation.session
    selected: dict[str, str | None] = {}
    for name in dict.fromkeys(names):
        found, _ = session.api.fetch((session.name, name), Deadline(_DEVICE_SECONDS))
        row = read_row(read_device(found, session.name), session.now())
        if needs_retry(row):
            selected[name] = row.target
        else:
            warn(f"{name} is {row.state}: there is nothing to retry")
    return selected
