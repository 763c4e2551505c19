"""Documents of a DDI server, read strictly: they are untrusted.

Keys that are not known are skipped, as in each version of the API. A known key of another type, or a word that the API
does not have, makes the document malformed: a guess could boot the wrong firmware.
"""

import re
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any, Final, NamedTuple

from fleet_fn.strict_json import parse_json

#: Bounds of a deployment, all its chunks together.
_MAX_CHUNKS: Final = 100
_MAX_ARTIFACTS: Final = 1000
#: Longest text. hawkBit's own are at most 512 characters, links aside.
_MAX_TEXT_CHARACTERS: Final = 4096
_ACTION: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SHA256: Final = re.compile(r"[0-9A-Fa-f]{64}")


class MalformedDocumentError(ValueError):
    """A document is not as the API describes it.

    The text completes "the server's answer …".
    """


class Handling(StrEnum):
    """How a server wants the download or the installation handled."""

    SKIP = "skip"
    ATTEMPT = "attempt"
    FORCED = "forced"


class Window(StrEnum):
    """State of a maintenance window."""

    AVAILABLE = "available"
    UNAVAILABLE = "unavailable"


class Base(NamedTuple):
    """The links of a controller's root resource; None without one."""

    deployment: str | None = None
    confirmation: str | None = None
    cancellation: str | None = None
    installed: str | None = None
    #: Where the server wants the controller's attributes.
    attributes: str | None = None


class Artifact(NamedTuple):
    """A file of a software module."""

    #: The module: its type, version and name.
    part: str
    version: str
    module: str
    #: The server says that the file is encrypted.
    is_encrypted: bool
    #: Those of the module that the target may see.
    metadata: Mapping[str, str]
    file: str
    #: None if the server does not tell.
    size: int | None
    #: SHA-256 of the bytes, 32 bytes; None if the server does not tell.
    checksum: bytes | None
    #: Where the bytes are: links for TLS and for plain HTTP, in this order.
    links: tuple[str, ...]


class Deployment(NamedTuple):
    """An action: what to install, and whether now."""

    action: str
    download: Handling
    update: Handling
    window: Window | None
    artifacts: tuple[Artifact, ...]


class Cancellation(NamedTuple):
    """The wish to cancel an action."""

    #: Id of the cancellation itself; hawkBit's is that of the action.
    id: str
    #: Id of the action to stop.
    stops: str


def read_base(text: bytes) -> Base:
    """Read a controller's root resource.

    Raises:
        MalformedDocumentError: it is malformed.

    """
    links = _links(_parse(text))
    names = ("deploymentBase", "confirmationBase", "cancelAction", "installedBase", "configData")
    return Base(*(links.get(name) for name in names))


def read_deployment(text: bytes, member: str) -> Deployment:
    """Read an action; `member` is `deployment` or `confirmation`.

    Raises:
        MalformedDocumentError: it is malformed.

    """
    document = _parse(text)
    action = _action(document.get("id"), "id")
    deployment = _map(document.get(member), member)
    window = deployment.get("maintenanceWindow")
    chunks = _list(deployment.get("chunks"), f"{member}.chunks", _MAX_CHUNKS)
    artifacts = tuple(_artifacts(chunks, f"{member}.chunks"))
    if len(artifacts) > _MAX_ARTIFACTS:
        raise MalformedDocumentError(f"has more than {_MAX_ARTIFACTS} artifacts")
    return Deployment(
        action,
        Handling(_word(deployment.get("download"), f"{member}.download", Handling)),
        Handling(_word(deployment.get("update"), f"{member}.update", Handling)),
        None if window is None else Window(_word(window, f"{member}.maintenanceWindow", Window)),
        artifacts,
    )


def read_cancellation(text: bytes) -> Cancellation:
    """Read the wish to cancel an action.

    Raises:
        MalformedDocumentError: it is malformed.

    """
    document = _parse(text)
    stop = _map(document.get("cancelAction"), "cancelAction")
    return Cancellation(_action(document.get("id"), "id"), _action(stop.get("stopId"), "cancelAction.stopId"))


def _artifacts(chunks: list[Any], path: str) -> Iterator[Artifact]:
    for number, value in enumerate(chunks):
        here = f"{path}[{number}]"
        chunk = _map(value, here)
        part, version, name = (_text(chunk.get(key), f"{here}.{key}") for key in ("part", "version", "name"))
        if not version or not version.isprintable():
            raise MalformedDocumentError(f"has an empty or unprintable {here}.version")
        is_encrypted = chunk.get("encrypted") not in (None, False)
        metadata = _metadata(chunk.get("metadata"), f"{here}.metadata")
        artifacts = _list(_present(chunk.get("artifacts"), []), f"{here}.artifacts", _MAX_ARTIFACTS)
        for index, each in enumerate(artifacts):
            yield _artifact((part, version, name, is_encrypted, metadata), each, f"{here}.artifacts[{index}]")


def _artifact(module: tuple[str, str, str, bool, Mapping[str, str]], value: object, path: str) -> Artifact:
    artifact = _map(value, path)
    hashes = _map(_present(artifact.get("hashes"), {}), f"{path}.hashes")
    checksum, size = hashes.get("sha256"), artifact.get("size")
    if checksum is not None and not _SHA256.fullmatch(_text(checksum, f"{path}.hashes.sha256")):
        raise MalformedDocumentError(f"has a {path}.hashes.sha256 that is no SHA-256 in hex")
    if size is not None and (type(size) is not int or size < 0):
        raise MalformedDocumentError(f"has a {path}.size that is no number of bytes")
    links = _links(artifact)
    found = (links.get("download"), links.get("download-http"))
    return Artifact(
        *module,
        _text(artifact.get("filename"), f"{path}.filename"),
        size,
        bytes.fromhex(checksum) if checksum else None,
        tuple(link for link in found if link),
    )


def _metadata(value: object, path: str) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for index, each in enumerate(_list(_present(value, []), path, _MAX_ARTIFACTS)):
        entry = _map(each, f"{path}[{index}]")
        key = _text(entry.get("key"), f"{path}[{index}].key")
        found[key] = _text(entry.get("value"), f"{path}[{index}].value")
    return found


def _links(document: Mapping[str, Any]) -> dict[str, str]:
    """Return the links of a document by relation, in the form of HAL."""
    links = _map(_present(document.get("_links"), {}), "_links")
    return {
        name: _text(_map(link, f"_links.{name}").get("href"), f"_links.{name}.href")
        for name, link in links.items()
        if isinstance(link, dict)  # HAL allows lists, which no relation of the API has
    }


def _parse(text: bytes) -> Mapping[str, Any]:
    try:
        return _map(parse_json(text), "document")
    except MalformedDocumentError:
        raise
    except ValueError as error:
        raise MalformedDocumentError(f"is malformed: {error}") from error


def _present(value: object, otherwise: object) -> object:
    """Return a value that may be left out, or be null."""
    return otherwise if value is None else value


def _map(value: object, path: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise MalformedDocumentError(f"has no {path}, or one that is no object")
    return value


def _list(value: object, path: str, most: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > most:
        raise MalformedDocumentError(f"has no {path}, or one that is no list of at most {most} entries")
    return value


def _text(value: object, path: str) -> str:
    if not isinstance(value, str) or len(value) > _MAX_TEXT_CHARACTERS:
        raise MalformedDocumentError(f"has no {path}, or one that is no text of at most {_MAX_TEXT_CHARACTERS} letters")
    return value


def _action(value: object, path: str) -> str:
    if not isinstance(value, str) or not _ACTION.fullmatch(value) or value in (".", ".."):
        raise MalformedDocumentError(f"has no {path}, or one that is no id of an action")
    return value


def _word(value: object, path: str, words: type[StrEnum]) -> str:
    known = [word.value for word in words]
    if not isinstance(value, str) or value not in known:
        raise MalformedDocumentError(f"has a {path} that is none of {', '.join(known)}")
    return value
