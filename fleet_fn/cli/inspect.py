"""`inspect`: what the function would see in a reference, told by the function's own code."""

import sys

import click

from fleet_fn.background import Background
from fleet_fn.cli.layouts import layout_reference
from fleet_fn.deadline import Deadline
from fleet_fn.errors import Failed
from fleet_fn.firmware.layout import LayoutStore
from fleet_fn.firmware.store import NotHere
from fleet_fn.firmware.verified import VerifiedFiles
from fleet_fn.settings import LAYOUT_SCHEME

#: Seconds for hashing the firmware.
_PATIENCE = 3600.0


@click.command("inspect")
@click.argument("reference", metavar="REF")
def command(reference: str) -> None:
    """Show the firmware that REF names, and verify its bytes.

    REF is oci-layout:DIR:TAG or oci-layout:DIR@sha256:…, and the tag 'latest' where it names none. Exits with 1 when
    the function would refuse it; the reason is the one that it would give.
    """
    deadline = Deadline(_PATIENCE)
    store = LayoutStore(VerifiedFiles(Background()))
    try:
        if not reference.startswith(LAYOUT_SCHEME):
            raise Failed(f"{reference!r}: only {LAYOUT_SCHEME}DIR:TAG can be inspected")
        firmware = store.resolve(layout_reference(reference), deadline)
        with store.open(firmware, deadline) as reader:
            reader.read(0, 1)
    except (Failed, NotHere) as error:
        click.echo(f"inspect: {error.reason}", err=True)
        sys.exit(1)
    click.echo(f"shape      {firmware.shape}")
    click.echo(f"version    {firmware.version}")
    click.echo(f"size       {firmware.size}")
    click.echo(f"sha256     {firmware.checksum.hex()} (verified)")
