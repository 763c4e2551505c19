"""References to an OCI registry (`HOST/NAME:TAG`), and access to it.

Access takes credentials and trust anchors for connections.
"""

import os
import re
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fleet_fn.errors import PermanentError
from fleet_fn.oci.docker_config import Credentials, from_docker_config
from fleet_fn.oci.reference import Reference, is_host, parse_reference

_EXPECTED: Final = "expected HOST/NAME:TAG or oci-layout:DIR:TAG"


@dataclass(frozen=True, slots=True)
class Access:
    """Connection options for one OCI registry."""

    #: Use plain HTTP instead of TLS.
    insecure: bool = False
    #: PEM file of trust anchors; None means the system's.
    ca_file: str | None = None
    credentials: Credentials | None = None

    def tls_context(self) -> ssl.SSLContext:
        """Return the TLS context for connections to the registry.

        Raises:
            PermanentError: `ca_file` is not a readable PEM file.

        """
        try:
            return ssl.create_default_context(cafile=self.ca_file)
        except OSError as error:  # SSLError is one
            raise PermanentError(f"--ca-file {self.ca_file}: not a readable file of certificates (PEM)") from error


def registry_reference(text: str, default_tag: str | None = None) -> Reference:
    """Parse `HOST[:PORT]/NAME[:TAG|@DIGEST]`; the reference's prefix is the host.

    Raises:
        PermanentError: `text` has another form.

    """
    host, slash, rest = text.partition("/")
    if "@" in host:  # the text before the @ may be a password, so the message does not quote it
        raise PermanentError(f"a reference has no user name or password in it; {_EXPECTED}")
    if not slash or not _names_host(host):
        raise PermanentError(f"{text!r}: {_EXPECTED}")
    if default_tag and not re.search("[:@]", rest):
        rest = f"{rest}:{default_tag}"
    return parse_reference(rest, f"{host}/")


def find_credentials(reference: Reference) -> Credentials | None:
    """Return credentials from the environment, else from docker's or podman's files.

    Raises:
        PermanentError: the credentials are malformed, or of a kind that is not supported.

    """
    user, token = (os.environ.get(f"FIRMWARE_REGISTRY_{name}") or None for name in ("USER", "TOKEN"))
    if token:
        return Credentials(user, token)
    if user:
        raise PermanentError("FIRMWARE_REGISTRY_USER is set, but FIRMWARE_REGISTRY_TOKEN is not")
    for config in _saved_credentials():
        if found := from_docker_config(config, reference.prefix.rstrip("/"), reference.name):
            return found
    return None


def _names_host(text: str) -> bool:
    """Return whether `text` is a registry's host, with or without a port.

    Otherwise it is the first component of a name.
    """
    return is_host(text) and ("." in text or ":" in text or text == "localhost")


def _saved_credentials() -> Iterator[Path]:
    """Yield the paths where docker and podman save credentials; the first match wins."""
    yield Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        yield Path(runtime, "containers", "auth.json")
