"""What the registry is shown, if it asks: a user and a password, or a token."""

import base64
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from fleet_fn.errors import PermanentError
from fleet_fn.files import read_small
from fleet_fn.oci.reference import api_host
from fleet_fn.protocol.strict_json import parse_json

#: Bytes of a configuration that are read: a Kubernetes Secret has no more.
_MAX_CONFIG: Final = 1024 * 1024
_WHERE: Final = "OCI registry credentials: DOCKER_CONFIG:"
_WAY_OUT: Final = "set FIRMWARE_REGISTRY_USER and FIRMWARE_REGISTRY_TOKEN instead"


@dataclass(frozen=True, slots=True)
class Credentials:
    """Credentials for a registry, which a header can carry.

    Raises:
        PermanentError: no header can (RFC 7617, section 2; RFC 6750, section 2.1).

    """

    #: None: the secret is itself a bearer token for the registry.
    user: str | None
    secret: str = field(repr=False)

    def __post_init__(self) -> None:
        if self.user is None:
            if not re.fullmatch(r"[!-~]+", self.secret):
                raise PermanentError("OCI registry credentials: a token that no header can carry")
        elif ":" in self.user or not self.user.isprintable() or not self.secret.isprintable():
            raise PermanentError("OCI registry credentials: a user name or password that no header can carry")


def from_docker_config(config: str | Path, host: str, repository: str) -> Credentials | None:
    """What a Docker or Podman configuration has for a repository; None if that is nothing.

    It is read anew each time, because secrets change under mounted volumes. As containers-auth.json(5) says, the most
    specific key wins that has credentials: `host/some/repository` before `host/some` before `host`. Programs that the
    configuration names as keepers of credentials are not run: there are none where a function runs.

    Args:
        config: the folder of a `config.json`, or such a file itself; need not exist.
        host: the registry, with its port if there is one in references.
        repository: the repository's name.

    Raises:
        PermanentError: the configuration cannot be read or understood, or has nothing for the host but what is not
            supported.

    """
    found = _read(Path(config))
    wanted = _components(f"{host}/{repository}")
    entries = _entries(found, "auths", wanted)
    for entry in entries:
        if not isinstance(entry, dict):
            raise PermanentError(f"{_WHERE} the entry for the registry is no object")
        if credentials := _credentials(entry):
            return credentials
    if any(entry.get("identitytoken") for entry in entries):
        raise PermanentError(f"{_WHERE} identity tokens are not supported: {_WAY_OUT}")
    if any(_entries(found, "credHelpers", wanted)) or (entries and found.get("credsStore")):
        raise PermanentError(f"{_WHERE} credential helpers are not supported: {_WAY_OUT}")
    return None


def _read(path: Path) -> Mapping[str, Any]:
    try:
        if path.is_dir():
            path /= "config.json"
        content = read_small(path, _MAX_CONFIG, f"{_WHERE} {path.name}")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise PermanentError(f"{_WHERE} {path.name}: {error.strerror}") from error
    found: object = None
    problem = "not a JSON object"
    try:
        found = parse_json(content)
    except ValueError as error:
        problem = str(error)
    # Not raised above: some of those errors quote what they could not decode, and it would stay with ours.
    if not isinstance(found, dict):
        raise PermanentError(f"{_WHERE} {path.name}: {problem}")
    return found


def _entries(found: Mapping[str, Any], section: str, wanted: list[str]) -> list[Any]:
    """The values of a section's keys that cover what is `wanted`, the most specific first.

    Where a key stands as host and as URL, the host comes first, as with Docker.
    """
    values = found.get(section)
    if values is None:
        return []
    if not isinstance(values, dict):
        raise PermanentError(f"{_WHERE} {section} is no object")
    keys = [key for key in values if (parts := _components(key)) == wanted[: len(parts)]]
    keys.sort(key=lambda key: (-len(_components(key)), "://" in key))
    return [values[key] for key in keys]


def _components(key: str) -> list[str]:
    """The host and the path's components of a key.

    The path of a URL says nothing, as with Docker, nor does the version of the interface that some keys end in.
    """
    _, is_url, rest = key.rpartition("://")
    host, _, path = rest.partition("/")
    host = host.lower()
    components = [component for component in path.split("/") if component]
    if is_url or components in (["v1"], ["v2"]):
        components = []
    return [api_host(host), *components]


def _credentials(entry: Mapping[str, Any]) -> Credentials | None:
    if token := _text(entry, "registrytoken"):
        return Credentials(None, token)
    if auth := _text(entry, "auth"):
        user, secret = _decoded(auth)
    else:
        user, secret = _text(entry, "username"), _text(entry, "password")
    if user and secret:
        return Credentials(user, secret)
    if (user or secret) and not entry.get("identitytoken"):
        raise PermanentError(f"{_WHERE} the entry for the registry lacks a {'password' if user else 'user name'}")
    return None


def _text(entry: Mapping[str, Any], key: str) -> str:
    value = entry.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise PermanentError(f"{_WHERE} {key} of the entry for the registry is no string")
    return value


def _decoded(auth: str) -> tuple[str, str]:
    digits = "".join(auth.split()).rstrip("=")
    text = ""
    with suppress(ValueError):  # and nothing is raised from there: the error quotes what it could not decode
        text = base64.b64decode(digits + "=" * (-len(digits) % 4), validate=True).decode()
    user, colon, secret = text.partition(":")
    if not colon:
        raise PermanentError(f"{_WHERE} auth of the entry for the registry is not user:password in base64")
    return user, secret.strip("\0")  # which Docker leaves at the end of some
