"""Publishing to OCI registries, and naming what is in them: `HOST/NAME:TAG`."""

import os
import re
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, TypeVar
from urllib.parse import urlsplit

import click

from fleet_fn.cli.publication import (
    EMPTY_CONFIG,
    Content,
    Published,
    make_manifest,
    mixes,
    refuse_to_move,
)
from fleet_fn.errors import Failed, UpstreamError
from fleet_fn.firmware.credentials import Credentials, from_docker_config
from fleet_fn.firmware.manifest import VERSION_ANNOTATION, digest_of
from fleet_fn.firmware.reference import Reference, parse_reference

if TYPE_CHECKING:
    from fleet_fn.cli.registry_client import RegistryClient

F = TypeVar("F", bound=Callable[..., Any])

_EXPECTED: Final = "expected HOST/NAME:TAG or oci-layout:DIR:TAG"
_HOST: Final = re.compile(r"([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]+)?")
#: Manifests that are looked at for the sake of a warning.
_MAX_LOOKS: Final = 10


@dataclass(frozen=True, slots=True)
class Access:
    """How a registry is talked to."""

    #: By plain HTTP.
    insecure: bool = False
    #: PEM file of trust anchors; None trusts the system's.
    ca_file: str | None = None
    credentials: Credentials | None = None

    def tls_context(self) -> ssl.SSLContext:
        """What TLS connections are made with.

        Raises:
            Failed: `ca_file` is no such file.

        """
        try:
            return ssl.create_default_context(cafile=self.ca_file)
        except OSError as error:  # SSLError is one
            raise Failed(f"--ca-file {self.ca_file}: not a readable file of certificates (PEM)") from error


def access_options(command: F) -> F:
    """The options of every command that talks to a registry: `insecure` and `ca_file`."""
    insecure = click.option(
        "--insecure", is_flag=True, envvar="FIRMWARE_REGISTRY_INSECURE", help="Talk plain HTTP to the registry."
    )
    ca_file = click.option(
        "--ca-file", metavar="FILE", envvar="FIRMWARE_REGISTRY_CA_FILE", help="Trust anchors for the registry (PEM)."
    )
    return insecure(ca_file(command))


def registry_reference(text: str, default_tag: str | None = None) -> Reference:
    """The reference that `HOST[:PORT]/NAME[:TAG|@DIGEST]` spells; its prefix is the host.

    Raises:
        Failed: it spells none.

    """
    host, slash, rest = text.partition("/")
    if "@" in host:  # what stands before it may be a password
        raise Failed(f"a reference has no user name or password in it; {_EXPECTED}")
    if not slash or not _is_host(host):
        raise Failed(f"{text!r}: {_EXPECTED}")
    if default_tag and not re.search("[:@]", rest):
        rest = f"{rest}:{default_tag}"
    return parse_reference(rest, f"{host}/")


def find_credentials(reference: Reference) -> Credentials | None:
    """The credentials for the repository of `reference`: the environment's, else those that docker or podman saved.

    Raises:
        Failed: they are malformed, or of a kind that is not supported.

    """
    user, token = (os.environ.get(f"FIRMWARE_REGISTRY_{name}") or None for name in ("USER", "TOKEN"))
    if token:
        return Credentials(user, token)
    if user:
        raise Failed("FIRMWARE_REGISTRY_USER is set, but FIRMWARE_REGISTRY_TOKEN is not")
    for config in _saved_credentials():
        if found := from_docker_config(config, reference.prefix.rstrip("/"), reference.name):
            return found
    return None


def publish_to_registry(
    reference: Reference,
    firmware: BinaryIO,
    annotations: Mapping[str, str],
    *,
    access: Access,
    pad_to: int = 1,
    latest: bool = False,
    force: bool = False,
) -> Published:
    """Puts a firmware under the tag of `reference`, and makes sure that it is there.

    Args:
        reference: a repository and a tag.
        firmware: a file to be read from where it stands.
        annotations: the manifest's.
        access: how the registry is talked to.
        pad_to: the firmware is filled up with 0xff bytes to a multiple of this.
        latest: the tag `latest` is moved, too, once the other one is where it should be.
        force: the tag may be moved from other bytes.

    Raises:
        Failed: the tag has other bytes, or the registry does not take the firmware; the reason tells why.
        Retry: the registry is not there.

    """
    assert reference.tag  # noqa: S101 - `registry_reference` gave it one
    # Slow to import, and most commands do without.
    from fleet_fn.cli.registry_client import RegistryClient

    content = Content(firmware, pad_to)
    sha256 = content.sha256()
    manifest = make_manifest(content.size, sha256, annotations)
    with RegistryClient(reference.prefix.rstrip("/"), reference.name, access) as client:
        if not force and reference.tag != "latest" and (there := client.manifest(reference.tag)) is not None:
            refuse_to_move(there, reference.tag, sha256)
        client.upload(f"sha256:{sha256}", content)
        client.upload(digest_of(EMPTY_CONFIG), EMPTY_CONFIG)
        mixed = tuple(_mixed(client, reference.tag, sha256, annotations))
        client.tag(reference.tag, manifest)
        if latest and reference.tag != "latest":
            client.tag("latest", manifest)
    return Published(digest_of(manifest), content.size, sha256, mixed)


def _is_host(text: str) -> bool:
    """Whether `text` is a registry's host, perhaps with a port, rather than the beginning of a name."""
    try:
        _ = urlsplit(f"//{text}").port  # raises ValueError where it is none
        text.encode("idna")  # raises UnicodeError, a ValueError, where the resolver would
    except ValueError:
        return False
    return _HOST.fullmatch(text) is not None and ("." in text or ":" in text or text == "localhost")


def _mixed(client: "RegistryClient", tag: str, sha256: str, annotations: Mapping[str, str]) -> Iterator[str]:
    """Tags where the version has other bytes.

    A courtesy: only tags that look like it are looked at, and not many; nor does it matter what goes wrong.
    """
    with suppress(UpstreamError):
        version = annotations.get(VERSION_ANNOTATION, tag)
        alike = sorted((other for other in client.tags() if version in other), key=len)
        for other in list(dict.fromkeys([tag, "latest", *alike]))[:_MAX_LOOKS]:
            if (manifest := client.manifest(other)) and mixes(manifest, other, sha256, annotations):
                yield other


def _saved_credentials() -> Iterator[Path]:
    """Where docker and podman keep credentials, in the order in which they count."""
    yield Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        yield Path(runtime, "containers", "auth.json")
