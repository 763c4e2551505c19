"""`publish`: put a firmware into a registry or an image layout, as an artifact."""

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import click

from fleet_fn.cli.cures import cure_of_publishing
from fleet_fn.cli.failures import WRONG_USAGE, describe_os_error, fail
from fleet_fn.cli.options import access_options
from fleet_fn.cli.publish_annotations import Description
from fleet_fn.errors import PermanentError, UpstreamError
from fleet_fn.oci.access import Access, find_credentials, registry_reference
from fleet_fn.oci.attachment import Maker
from fleet_fn.oci.layout_writer import layout_reference, publish_to_layout
from fleet_fn.oci.manifest import REVISION_ANNOTATION, SOURCE_ANNOTATION
from fleet_fn.oci.publication import Content, Published, firmware_warnings
from fleet_fn.oci.publishing import publish_to_registry
from fleet_fn.oci.reference import LAYOUT_SCHEME, MAX_TAG_CHARACTERS, Reference, is_name, is_tag
from fleet_fn.oci.sbom import read_sbom
from fleet_fn.oci.signatures import BUNDLE
from fleet_fn.oci.signing import PASSWORD_VARIABLE, load_signing_key
from fleet_fn.protocol.messages import U32_MAX

#: Stands for the tag if neither the reference nor the version gives one.
_NO_TAG = "_no_tag_"
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
#: Names of attached documents in the output, by their media types.
_NAMES = {BUNDLE: "signature"}


@click.command("publish")
@click.argument("file", type=click.File("rb"))
@click.argument("reference", metavar="REF")
@click.option("--version", required=True, help="Version that the firmware reports when it runs.")
@click.option("--latest", is_flag=True, help="Also move the tag 'latest' to it.")
@click.option("--force", is_flag=True, help="Move the tag even from other bytes, hardware, or requirements.")
@click.option("--pad-to", type=click.IntRange(1, 1 << 20), metavar="N", help="Fill with 0xff to a multiple of N bytes.")
@click.option("--hardware", multiple=True, metavar="NAMES", help="Hardware that it is for: rev-a,rev-b. Repeatable.")
@click.option("--requires", metavar="RANGE", help="Versions of a device that may get it: '>=1.4'.")
@click.option("--source", metavar="URL", help="Repository that it was built from; else git tells.")
@click.option("--revision", metavar="COMMIT", help="Commit that it was built from; else git tells.")
@click.option("--sign-key", type=_FILE, metavar="PEM", help="Sign it with this private key.")
@click.option("--sbom", type=_FILE, metavar="FILE", help="Attach this SBOM: SPDX or CycloneDX.")
@click.option("--annotation", "annotations", multiple=True, metavar="KEY=VALUE", help="Annotate it. Repeatable.")
@access_options
def command(
    file: BinaryIO,
    reference: str,
    version: str,
    latest: bool,
    force: bool,
    pad_to: int | None,
    hardware: tuple[str, ...],
    requires: str | None,
    source: str | None,
    revision: str | None,
    sign_key: Path | None,
    sbom: Path | None,
    annotations: tuple[str, ...],
    insecure: bool,
    ca_file: str | None,
) -> None:
    """Publish the firmware in FILE as REF.

    \b
    REF is one of
      HOST/NAME:TAG       in an OCI registry, e.g. ghcr.io/acme/sensor:1.2.3
      oci-layout:DIR:TAG  in an OCI image layout; the folder DIR is made if
                          it does not exist
    Without :TAG, the tag is the version.

    Credentials for a registry come from FIRMWARE_REGISTRY_USER and FIRMWARE_REGISTRY_TOKEN, or else from docker login
    or podman login. Credential helpers are not run.

    The manifest tells where the firmware came from. If neither --source nor --revision does, and FILE is in a git
    checkout, git does. If DROGUE_USER is set, the manifest names that user as its author. The same bytes and options
    give the same digest.

    The key of --sign-key is an unencrypted one, or FIRMWARE_SIGN_KEY_PASSWORD is its password. The signature covers the
    manifest, and so the firmware and all annotations, but not the tag, nor the SBOM.

    Exits with 1 if it failed, and with 2 if REF, an option or a setting is wrong.
    """  # noqa: D301 - click's mark of a paragraph that is not wrapped
    try:
        description = Description(version, hardware, requires, revision, source, annotations)
        described = description.annotate(_folder(file))
        documents = _documents(sign_key, sbom)
        target = _target(reference, version, insecure, ca_file)
    except UpstreamError as error:
        fail("publish", error.reason, WRONG_USAGE)
    except OSError as error:
        fail("publish", describe_os_error(error))
    try:
        with _seekable(file) as firmware:
            _check_size(firmware, pad_to)
            published = target.publish(
                firmware, described, pad_to=pad_to or 1, latest=latest, force=force, documents=documents
            )
    except UpstreamError as error:
        fail("publish", f"{error.reason}{cure_of_publishing(error.reason)}")
    except OSError as error:
        fail("publish", describe_os_error(error))
    for warning in _warnings(target.reference, version, published):
        click.echo(f"warning: {warning}", err=True)
    click.echo(f"reference  {target}")
    click.echo(f"digest     {published.digest}")
    click.echo(f"version    {version}")
    click.echo(f"size       {published.size}")
    click.echo(f"sha256     {published.sha256}")
    for name, annotation in (("revision", REVISION_ANNOTATION), ("source", SOURCE_ANNOTATION)):
        if annotation in described:
            click.echo(f"{name:<9}  {described[annotation]}")
    for media_type, digest in published.attached:
        click.echo(f"{_NAMES.get(media_type, 'sbom'):<9}  {digest}")


@dataclass(frozen=True, slots=True)
class _Target:
    """The place where a firmware is published, and the function that does it."""

    scheme: str
    reference: Reference
    publish: Callable[..., Published]

    def __str__(self) -> str:
        return f"{self.scheme}{self.reference.prefix}{self.reference}"


def _target(text: str, version: str, insecure: bool, ca_file: str | None) -> _Target:
    """Return the target that `text` names; without a tag, the version is the tag.

    Raises:
        PermanentError: `text` is not a reference, or has no tag and the version cannot be one.

    """
    default_tag = version if is_tag(version) else _NO_TAG
    if text.startswith(LAYOUT_SCHEME):
        reference, form = layout_reference(text, default_tag), f"{LAYOUT_SCHEME}DIR:TAG"
        target = _Target(LAYOUT_SCHEME, reference, partial(publish_to_layout, reference))
    else:
        reference, form = registry_reference(text, default_tag), "HOST/NAME:TAG"
        access = Access(insecure, ca_file, find_credentials(reference))
        access.tls_context()  # fails if the file of trust anchors cannot be read
        target = _Target("", reference, partial(publish_to_registry, reference, access=access))
    if reference.tag == _NO_TAG:
        raise PermanentError(
            f"version {version!r} cannot be a tag ({_why_no_tag(version)}): name one, e.g. {text}:{_tag_like(version)}"
        )
    if reference.digest or reference.tag is None:
        raise PermanentError(f"{text!r}: name a tag, {form}")
    return target


def _why_no_tag(version: str) -> str:
    """Return why a version that is not empty cannot be a tag."""
    if odd := re.search(r"[^A-Za-z0-9._-]", version):
        return f"it has a {odd[0]!r}"
    if len(version) > MAX_TAG_CHARACTERS:
        return f"it has more than {MAX_TAG_CHARACTERS} characters"
    return f"it begins with {version[0]!r}"


def _tag_like(version: str) -> str:
    """Return the version if it can be a tag, else a tag that resembles it."""
    return re.sub(r"[^A-Za-z0-9._-]|^[.-]", "_", version)[:MAX_TAG_CHARACTERS]


def _documents(sign_key: Path | None, sbom: Path | None) -> list[Maker]:
    """Return the makers of the documents to attach, the signature last.

    Raises:
        PermanentError: the key or the SBOM is none.
        OSError: one of them cannot be read.

    """
    makers: list[Maker] = []
    if sbom:
        document = read_sbom(sbom)
        makers.append(lambda _: document)
    if sign_key:
        makers.append(load_signing_key(sign_key, os.environ.get(PASSWORD_VARIABLE)).sign_manifest)
    return makers


def _folder(file: BinaryIO) -> Path | None:
    """Return the folder of a file, or None for standard input."""
    name = getattr(file, "name", None)
    return Path(name).parent if isinstance(name, str) and Path(name).is_file() else None


@contextmanager
def _seekable(file: BinaryIO) -> Iterator[BinaryIO]:
    """Yield `file`; or a copy of its bytes, if it is a pipe."""
    if file.seekable():
        yield file
        return
    with tempfile.TemporaryFile() as copy:
        shutil.copyfileobj(file, copy)
        copy.seek(0)
        yield copy


def _check_size(file: BinaryIO, pad_to: int | None) -> None:
    size = Content(file, pad_to or 1).size
    if not 1 <= size <= U32_MAX:
        raise PermanentError(f"a firmware of {size} bytes cannot be sent: from 1 to {U32_MAX} can")


def _warnings(target: Reference, version: str, published: Published) -> list[str]:
    warnings = [
        f"version {version} had other bytes, at the tag {tag}; a device that was midway in those would end with a "
        "mixture: give each build a version of its own"
        for tag in published.conflicting_tags
    ]
    if target.tag not in (version, "latest", like := _tag_like(version)):
        warnings.append(
            f"the tag {target.tag} differs from the version {version}; spec.firmware names the tag, and devices report "
            f"the version: publish it as {like}"
        )
    if not is_name(target.name):
        warnings.append(f"the folder's name, {target.name!r}, is none that a reference can have: use lower case")
    return warnings + firmware_warnings(version, published.size)
