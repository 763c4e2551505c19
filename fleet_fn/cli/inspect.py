"""`inspect`: what the function would see in a reference, told by the function's own code."""

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import click

from fleet_fn.cli.options import access_options
from fleet_fn.concurrency.single_flight import SingleFlight
from fleet_fn.deadline import Deadline
from fleet_fn.errors import UpstreamError, one_line
from fleet_fn.firmware.store import Firmware, NotReadyError, Store
from fleet_fn.firmware.verified import VerifiedFiles
from fleet_fn.oci.access import Access, find_credentials, registry_reference
from fleet_fn.oci.layout_writer import layout_reference
from fleet_fn.oci.publication import firmware_warnings
from fleet_fn.oci.reference import LAYOUT_SCHEME, Reference
from fleet_fn.parts import make_image_store
from fleet_fn.protocol.messages import U32_MAX
from fleet_fn.settings import Settings

#: Seconds for all that a registry has to answer, and for what may take long: downloads, and hashing.
_ANSWER = 15.0
_PATIENCE = 3600.0
#: Seconds between two looks at how far that is.
_PAUSE = 0.2


@click.command("inspect")
@click.argument("reference", metavar="REF")
@click.option("--platform", help="Of an index, the manifest for this platform: OS/ARCHITECTURE, or an annotation.")
@access_options
def command(reference: str, platform: str | None, insecure: bool, ca_file: str | None) -> None:
    """Show the firmware that REF names, and verify its bytes.

    REF is HOST/NAME:TAG or HOST/NAME@sha256:… in an OCI registry, or oci-layout:DIR:TAG or oci-layout:DIR@sha256:…;
    the tag is 'latest' where it names none. Exits with 1 when the function would refuse it; the reason is the one that
    it would give.

    Credentials for a registry are those in FIRMWARE_REGISTRY_USER and FIRMWARE_REGISTRY_TOKEN, or else those that
    docker login or podman login saved.
    """
    try:
        with _store(reference, insecure, ca_file) as (store, parsed):
            firmware = _resolve(store, replace(parsed, platform=platform))
            with firmware.open(Deadline(_PATIENCE)) as reader:
                reader.read(0, 1)
    except (UpstreamError, NotReadyError) as error:
        click.echo(f"inspect: {error.reason}", err=True)
        sys.exit(1)
    except OSError as error:
        click.echo(f"inspect: {error}", err=True)
        sys.exit(1)
    for warning in firmware_warnings(firmware.version, firmware.size):
        click.echo(f"warning: {one_line(warning)}", err=True)
    click.echo(f"shape      {firmware.shape}")
    click.echo(f"digest     {firmware.manifest}")
    click.echo(f"version    {one_line(firmware.version)}")
    click.echo(f"size       {firmware.size}")
    click.echo(f"sha256     {firmware.checksum.hex()} (verified)")


@contextmanager
def _store(text: str, insecure: bool, ca_file: str | None) -> Iterator[tuple[Store, Reference]]:
    """The store that the function would use for what `text` names, with a cache that lasts as long; and the reference.

    Raises:
        PermanentError: `text` names nothing.

    """
    access = Access()
    if text.startswith(LAYOUT_SCHEME):
        reference = layout_reference(text)
        prefix = f"{LAYOUT_SCHEME}{reference.prefix}"
    else:
        reference = registry_reference(text)
        prefix = reference.prefix
        access = Access(insecure, ca_file, find_credentials(reference))
        access.tls_context()  # whose complaint is clearer than that of the store
    single_flight = SingleFlight()
    with tempfile.TemporaryDirectory(prefix="fleet-inspect-", ignore_cleanup_errors=True) as folder:
        settings = Settings(
            drogue_api_url="",
            firmware_registry=prefix,
            firmware_registry_user=access.credentials.user if access.credentials else None,
            firmware_registry_token=access.credentials.secret if access.credentials else None,
            firmware_registry_insecure=access.insecure,
            firmware_registry_ca_file=access.ca_file,
            firmware_cache_dir=folder,
            firmware_cache_bytes=2 * U32_MAX,
        )
        yield make_image_store(settings, VerifiedFiles(single_flight), single_flight), reference


def _resolve(store: Store, reference: Reference) -> Firmware:
    limit = Deadline(_PATIENCE)
    while True:
        try:
            return store.resolve(reference, Deadline(_ANSWER))
        except NotReadyError:  # an image's layers are being looked through, which goes on
            if not limit.remaining:
                raise
        time.sleep(_PAUSE)
