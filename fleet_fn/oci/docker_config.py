"""Credentials for an OCI registry, from Docker's or Podman's configuration."""

import base64
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from fleet_fn.errors import PermanentError
from fleet_fn.files import read_small
from fleet_fn.http.authorization import basic
from fleet_fn.oci.reference import api_host
from fleet_fn.strict_json import parse_json

#: Upper bound of a configuration file, which is also that of a Kubernetes Secret.
_MAX_CONFIG_BYTES: Final = 1024 * 1024
_WHERE: Final = "OCI registry credentials:"
_WAY_OUT: Final = "set FIRMWARE_REGISTRY_USER and FIRMWARE_REGISTRY_TOKEN instead"


@dataclass(frozen=True, slots=True)
class Credentials:
    """Credentials for an OCI registry, in a form that an HTTP header can carry.

    Raises:
        PermanentError: no header can carry them (RFC 7617, section 2; RFC 6750, section 2.1).

    """

    #: None means that the secret is a bearer token for the registry.
    user: str | None
    secret: str = field(repr=False)

    def __post_init__(self) -> None:
        if self.user is None:
            if not re.fullmatch(r"[!-~]+", self.secret):
                raise PermanentError(
                    "OCI registry credentials: the token is empty or has characters that no header can carry"
                )
        elif ":" in self.user or not self.user.isprintable() or not self.secret.isprintable():
            raise PermanentError(
                "OCI registry credentials: the user name or password has characters that no header can carry"
            )

    @property
    def scheme(self) -> str:
        """Authentication scheme that carries them, in lower case."""
        return "bearer" if self.user is None else "basic"

    @property
    def header(self) -> str:
        """Value of the header `Authorization`."""
        return f"Bearer {self.secret}" if self.user is None else basic(self.user, self.secret)


class _ProblemError(Exception):
    """A problem with a configuration, without the configuration's name."""


def from_docker_config(
    config: str | Path, host: str, repository: str, *, name: str | None = None
) -> Credentials | None:
    """Return a repository's credentials in a Docker or Podman configuration, or None.

    The file is read each time, because Kubernetes replaces mounted secrets. The most specific key with credentials wins
    (containers-auth.json(5)): `host/some/repository` before `host/some` before `host`. Credential helpers are not run:
    the function's image has none.

    Args:
        config: a `config.json`, or its folder; need not exist.
        host: the registry, with its port if references have one.
        repository: the repository's name.
        name: the file's name in reasons; by default, the variable `DOCKER_CONFIG`, with no path of this machine.

    Raises:
        PermanentError: the configuration is unreadable or malformed, or has only unsupported credentials for the host.

    """
    try:
        return _find(_read(Path(config), name), host, repository)
    except _ProblemError as problem:
        raise PermanentError(f"{_WHERE} {name or 'DOCKER_CONFIG'}: {problem}") from problem


def names_helper(config: str | Path) -> bool:
    """Return whether a configuration has credential helpers, which are not run.

    Raises:
        PermanentError: the configuration is unreadable or malformed.

    """
    try:
        found = _read(Path(config), None)
    except _ProblemError as problem:
        raise PermanentError(f"{_WHERE} {problem}") from problem
    return bool(found.get("credsStore") or found.get("credHelpers"))


def _find(found: Mapping[str, Any], host: str, repository: str) -> Credentials | None:
    wanted = _components(f"{host}/{repository}")
    entries = _entries(found, "auths", wanted)
    for entry in entries:
        if not isinstance(entry, dict):
            raise _ProblemError("the entry for the registry is no object")
        if credentials := _credentials(entry):
            return credentials
    if any(entry.get("identitytoken") for entry in entries):
        raise _ProblemError(f"identity tokens are not supported: {_WAY_OUT}")
    if any(_entries(found, "credHelpers", wanted)) or (entries and found.get("credsStore")):
        raise _ProblemError(f"credential helpers are not supported: {_WAY_OUT}")
    return None


def _read(path: Path, name: str | None) -> Mapping[str, Any]:
    try:
        if path.is_dir():
            path /= "config.json"
        content = read_small(path, _MAX_CONFIG_BYTES, f"{_WHERE} {name or f'DOCKER_CONFIG: {path.name}'}")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise _ProblemError(f"{'' if name else f'{path.name}: '}{error.strerror}") from error
    found: object = None
    problem = "not a JSON object"
    try:
        found = parse_json(content)
    except ValueError as error:
        problem = str(error)
    # Not raised inside the `except`: some of those errors quote the secret, and ours would be chained to them.
    if not isinstance(found, dict):
        raise _ProblemError(f"{'' if name else f'{path.name}: '}{problem}")
    return found


def _entries(found: Mapping[str, Any], section: str, wanted: list[str]) -> list[Any]:
    """Return values of keys that are a prefix of `wanted`, most specific first.

    The keys are those of a section. If a key stands both as host and as URL, the host comes first, as in Docker.
    """
    values = found.get(section)
    if values is None:
        return []
    if not isinstance(values, dict):
        raise _ProblemError(f"{section} is no object")
    keys = [key for key in values if (parts := _components(key)) == wanted[: len(parts)]]
    keys.sort(key=lambda key: (-len(_components(key)), "://" in key))
    return [values[key] for key in keys]


def _components(key: str) -> list[str]:
    """Split a key into its host and the components of its path.

    As in Docker, the path of a URL is ignored; so is the API version (`v1`, `v2`) at the end of some keys.
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
        user, secret = _decode_auth(auth)
    else:
        user, secret = _text(entry, "username"), _text(entry, "password")
    if user and secret:
        return Credentials(user, secret)
    if (user or secret) and not entry.get("identitytoken"):
        raise _ProblemError(f"the entry for the registry lacks a {'password' if user else 'user name'}")
    return None


def _text(entry: Mapping[str, Any], key: str) -> str:
    value = entry.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _ProblemError(f"{key} of the entry for the registry is no string")
    return value


def _decode_auth(auth: str) -> tuple[str, str]:
    digits = "".join(auth.split()).rstrip("=")
    text = ""
    with suppress(ValueError):  # not chained to an error of ours: it quotes the secret
        text = base64.b64decode(digits + "=" * (-len(digits) % 4), validate=True).decode()
    user, colon, secret = text.partition(":")
    if not colon:
        raise _ProblemError("auth of the entry for the registry is not user:password in base64")
    return user, secret.strip("\0")  # Docker pads some secrets with NUL
