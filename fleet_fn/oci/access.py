"""References to an OCI registry (`HOST/NAME:TAG`), and access to it.

Access takes credentials and trust anchors for connections.
"""

import os
import re
import ssl
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fleet_fn.errors import PermanentError
from fleet_fn.oci.docker_config import Credentials, from_docker_config, names_helper
from fleet_fn.oci.reference import Reference, is_host, parse_reference
from fleet_fn.oci.token_file import read_token_file

_CONFIG_FILE: Final = "config.json"
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
    user, token = _variable("FIRMWARE_REGISTRY_USER"), _variable("FIRMWARE_REGISTRY_TOKEN")
    if token:
        return Credentials(user, token)
    if file := _variable("FIRMWARE_REGISTRY_TOKEN_FILE"):
        return read_token_file(file, user)
    if user:
        raise PermanentError("FIRMWARE_REGISTRY_USER is set, but FIRMWARE_REGISTRY_TOKEN is not")
    for path, name in _saved_credentials():
        if found := from_docker_config(path, reference.prefix.rstrip("/"), reference.name, name=name):
            return found
    return None


def credential_helper() -> str | None:
    """Return the first file that names a credential helper, which is not run; or None.

    Raises:
        PermanentError: a file before it is unreadable or malformed.

    """
    return next((name for path, name in _saved_credentials() if names_helper(path)), None)


def _variable(name: str) -> str | None:
    """Return the value of an environment variable, or None if it is not set or empty.

    Raises:
        PermanentError: it has a character that would end a header.

    """
    value = os.environ.get(name) or None
    if value and any(unicodedata.category(character) == "Cc" for character in value):
        raise PermanentError(f"{name} contains a control character (a trailing newline?)")
    return value


def _names_host(text: str) -> bool:
    """Return whether `text` is a registry's host, with or without a port.

    Otherwise it is the first component of a name.
    """
    return is_host(text) and ("." in text or ":" in text or text == "localhost")


def _saved_credentials() -> Iterator[tuple[Path, str]]:
    """Yield the files in which docker and podman save credentials, with their names.

    The first match wins.
    """
    if configured := os.environ.get("DOCKER_CONFIG"):
        yield Path(configured), f"{Path(configured, _CONFIG_FILE)} (DOCKER_CONFIG)"
    else:
        file = Path.home() / ".docker" / _CONFIG_FILE
        yield file, str(file)
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        file = Path(runtime, "containers", "auth.json")
        yield file, str(file)
