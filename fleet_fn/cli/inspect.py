"""`inspect`: show the firmware that a reference names, by the function's own code."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Self

import click

from fleet_fn.cli.cures import cure_of_access
from fleet_fn.cli.failures import WRONG_USAGE, describe_os_error, fail
from fleet_fn.cli.inspect_display import print_attached, print_firmware, print_signatures
from fleet_fn.cli.options import access_options
from fleet_fn.cli.tag_list import print_tags
from fleet_fn.concurrency.single_flight import SingleFlight
from fleet_fn.deadline import Deadline
from fleet_fn.errors import PermanentError, UpstreamError
from fleet_fn.firmware.deny_list import load_deny_list
from fleet_fn.firmware.store import ImageStore, NotReadyError, Store
from fleet_fn.firmware.trust import Trust
from fleet_fn.firmware.verified import VerifiedFiles
from fleet_fn.fleet.rollout.target import ANSWER_SECONDS, refuse_long_version, resolve, verify
from fleet_fn.oci.access import Access, find_credentials, registry_reference
from fleet_fn.oci.layout import NO_LAYOUT
from fleet_fn.oci.layout_writer import layout_reference
from fleet_fn.oci.reference import LAYOUT_SCHEME, Reference
from fleet_fn.oci.signature_keys import PublicKey, load_keys
from fleet_fn.parts import make_image_store
from fleet_fn.protocol.messages import U32_MAX
from fleet_fn.settings import Settings
from fleet_fn.update.fitness import required_by

#: Prefix of controllers of a DDI server.
HAWKBIT_SCHEME: Final = "hawkbit:"
#: Stands for the tag of a reference without one.
_NO_TAG: Final = "_no_tag_"


@click.command("inspect")
@click.argument("reference", metavar="REF")
@click.option("--platform", help="In an index, take the manifest for this platform: OS/ARCHITECTURE, or an annotation.")
@click.option(
    "--key",
    metavar="PEM",
    envvar="FIRMWARE_VERIFY_KEYS",
    show_envvar=True,
    help="Public keys; it has to be signed by one. A file or a folder.",
)
@access_options
def command(reference: str, platform: str | None, key: str | None, insecure: bool, ca_file: str | None) -> None:
    """Show the firmware that REF names. Verify its bytes and signatures.

    \b
    REF is one of
      HOST/NAME:TAG       HOST/NAME@sha256:…       in an OCI registry
      oci-layout:DIR:TAG  oci-layout:DIR@sha256:…  in an OCI image layout
      hawkbit:CONTROLLER                           assigned by hawkBit
    Without a tag or a digest, the tag is 'latest', and all tags are listed
    with their versions, sizes and digests.

    For hawkBit, set HAWKBIT_URL, HAWKBIT_GATEWAY_TOKEN and HAWKBIT_TENANT. It creates a target for a controller that it
    does not know, and notes that the action was looked at.

    Credentials for a registry come from FIRMWARE_REGISTRY_USER and FIRMWARE_REGISTRY_TOKEN, or else from docker login
    or podman login. Credential helpers are not run.

    With --key, a signature by one of the keys has to cover it. Without, signatures are listed and not checked. The
    function's FIRMWARE_DENY counts, too.

    Exits with 1, and the function's own reason, if the function would refuse the firmware; with 2 if REF, an option or
    a setting is wrong.
    """  # noqa: D301 - click's mark of a paragraph that is not wrapped
    try:
        verdict = _Verdict.of(key)
        if reference.startswith(HAWKBIT_SCHEME):
            from fleet_fn.cli.inspect_hawkbit import inspect_controller  # imported when needed: few inspect one

            inspect_controller(reference.removeprefix(HAWKBIT_SCHEME), verdict.trust, _warn)
            return
        place = _find(reference, insecure, ca_file)
    except UpstreamError as error:
        fail("inspect", error.reason, WRONG_USAGE)
    except OSError as error:
        fail("inspect", describe_os_error(error))
    wanted = replace(place.reference, platform=platform)
    try:
        with _open_store(place) as store:
            if place.is_bare:
                _inspect_all(store, wanted, verdict)
            else:
                _inspect(store, wanted, verdict)
    except UpstreamError as error:
        fail("inspect", f"{error.reason}{place.cure(error.reason)}")
    except NotReadyError as error:
        fail("inspect", error.reason)
    except OSError as error:
        fail("inspect", describe_os_error(error))


def _inspect_all(store: ImageStore, reference: Reference, verdict: "_Verdict") -> None:
    """Print the firmware that a reference names, and a list of its repository's tags."""
    tags, problem = [], ""
    try:
        tags = store.tags(reference, Deadline(ANSWER_SECONDS))
    except PermanentError as error:  # some registries list no tags; if something else is wrong, the firmware tells
        problem = error.reason
    if not tags or reference.tag in tags:
        _inspect(store, reference, verdict)
    else:
        _warn(f"no tag {reference.tag} in {reference.name}: a device whose image names no tag finds nothing")
    if problem:
        _warn(f"the tags cannot be listed: {problem}")
    if tags:
        print_tags(store, reference, tags, click.echo)


def _inspect(store: Store, reference: Reference, verdict: "_Verdict") -> None:
    """Print the firmware that a reference names.

    Raises:
        NotReadyError, PermanentError, TransientError: the function would refuse it, or could not serve it now.

    """
    firmware = resolve(store, reference)
    verify(firmware)
    print_firmware(firmware, click.echo, _warn)
    if firmware.signed:
        print_signatures(firmware.signed, verdict.keys, click.echo, _warn)
        print_attached(firmware.signed, click.echo, _warn)
    verdict.trust.check(firmware, "", Deadline(ANSWER_SECONDS))
    refuse_long_version(firmware)
    if firmware.requires:
        required_by(firmware)


def _warn(text: str) -> None:
    click.echo(f"warning: {text}", err=True)


@dataclass(frozen=True, slots=True)
class _Verdict:
    """Keys to check signatures with, and what the function decides by them."""

    keys: Sequence[PublicKey]
    trust: Trust

    @classmethod
    def of(cls, key: str | None) -> Self:
        """Return the verdict by the keys in a file or folder, and by FIRMWARE_DENY.

        Raises:
            PermanentError: the keys or the list cannot be used.

        """
        if key and "{application}" in key:
            raise PermanentError(f"{key}: has {{application}} in it; name the application's own keys with --key")
        deny = os.environ.get("FIRMWARE_DENY") or None
        if deny:
            try:
                load_deny_list(Path(deny))
            except PermanentError as error:
                raise PermanentError(f"FIRMWARE_DENY: {error.reason}") from error
        return cls(load_keys(Path(key)) if key else (), Trust(key or None, deny))


@dataclass(frozen=True, slots=True)
class _Place:
    """A repository in a registry or a layout, and how to reach it."""

    #: `FIRMWARE_REGISTRY`, as the function would have it.
    prefix: str
    reference: Reference
    #: The text named neither a tag nor a digest.
    is_bare: bool
    #: None for a layout.
    access: Access | None

    def cure(self, reason: str) -> str:
        """Return the cure that follows a reason; empty if none is likely."""
        if self.access:
            return cure_of_access(reason, self.reference.prefix.rstrip("/"), self.access)
        if reason.startswith(NO_LAYOUT):
            return f" in {self.reference.prefix}: publish one there, or correct the folder"
        return ""


def _find(text: str, insecure: bool, ca_file: str | None) -> _Place:
    """Return the place that the reference in `text` names.

    Raises:
        PermanentError: `text` is not a reference; or the credentials or the trust anchors cannot be used.

    """
    if text.startswith(LAYOUT_SCHEME):
        reference = layout_reference(text, _NO_TAG)
        return _Place(f"{LAYOUT_SCHEME}{reference.prefix}", *_with_tag(reference), None)
    reference = registry_reference(text, _NO_TAG)
    access = Access(insecure, ca_file, find_credentials(reference))
    access.tls_context()  # its error is clearer than the store's
    return _Place(reference.prefix, *_with_tag(reference), access)


def _with_tag(reference: Reference) -> tuple[Reference, bool]:
    """Return the reference with a tag or a digest, and whether it had none."""
    if reference.tag == _NO_TAG:
        return replace(reference, tag="latest"), True
    return reference, False


@contextmanager
def _open_store(place: _Place) -> Iterator[ImageStore]:
    """Yield the function's store for a place, with a temporary cache."""
    access = place.access or Access()
    single_flight = SingleFlight()
    with tempfile.TemporaryDirectory(prefix="fleet-inspect-", ignore_cleanup_errors=True) as folder:
        settings = Settings(
            drogue_api_url="",
            firmware_registry=place.prefix,
            firmware_registry_user=access.credentials.user if access.credentials else None,
            firmware_registry_token=access.credentials.secret if access.credentials else None,
            firmware_registry_insecure=access.insecure,
            firmware_registry_ca_file=access.ca_file,
            firmware_cache_dir=folder,
            firmware_cache_bytes=2 * U32_MAX,
        )
        with closing(make_image_store(settings, VerifiedFiles(single_flight), single_flight)) as store:
            yield store
