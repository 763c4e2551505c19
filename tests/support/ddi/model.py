"""Targets, actions and modules of a hawkBit, and what becomes of them: read from the sources of hawkBit 1.1.0."""

import hashlib
import itertools
from dataclasses import dataclass, field
from typing import Any, Final

#: Quotas: statuses of an action, messages of a status, attributes of a target.
MAX_STATUSES: Final = 1000
MAX_MESSAGES: Final = 50
MAX_ATTRIBUTES: Final = 100

_ids = itertools.count(1)


@dataclass(frozen=True)
class File:
    """An artifact."""

    name: str
    content: bytes
    #: Some older ones have no SHA-256.
    has_sha256: bool = True
    #: Where clients are sent for it, if not to hawkBit itself.
    link: str = ""


@dataclass(frozen=True)
class Module:
    """A software module."""

    part: str
    version: str
    files: tuple[File, ...]
    metadata: dict[str, str] = field(default_factory=dict)
    is_encrypted: bool = False
    name: str = "firmware"
    id: int = field(default_factory=lambda: next(_ids))


def module(version: str, content: bytes, part: str = "os", file: str = "firmware.bin", **more: Any) -> Module:
    """A module with one file."""
    return Module(part, version, (File(file, content),), **more)


class RefusedError(Exception):
    """A request is answered with this status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


@dataclass
class Action:
    """The assignment of modules to a target."""

    controller: str
    modules: tuple[Module, ...]
    #: `forced`, `soft` or `downloadonly`.
    type: str = "forced"
    #: None without a maintenance window.
    window: str | None = None
    status: str = "running"
    active: bool = True
    #: The statuses, each with its messages, the first one first.
    statuses: list[tuple[str, list[str]]] = field(default_factory=list)
    #: Counts the changes of the action, as JPA does.
    revision: int = 1
    number: int = field(default_factory=lambda: next(_ids))

    @property
    def id(self) -> str:
        return str(self.number)

    @property
    def is_canceling(self) -> bool:
        return self.status in ("canceling", "canceled")

    @property
    def is_waiting(self) -> bool:
        return self.status == "wait_for_confirmation"

    @property
    def etag(self) -> int:
        """The parameter `c` of its links."""
        return hash((self.number, self.revision, self.window == "available")) % 2**31

    @property
    def told(self) -> list[str]:
        """The statuses that a device has told, in one word each."""
        return [status for status, _ in self.statuses if status not in ("running at start", "retrieved", "canceling")]

    def change(self, status: str) -> None:
        self.status = status
        self.revision += 1

    def add(self, status: str, messages: list[str], *, is_final: bool) -> None:
        """Adds a status, within the quotas; those that close an action are not counted."""
        if not is_final and len(self.statuses) >= MAX_STATUSES:
            raise RefusedError(429)
        if len(messages) > MAX_MESSAGES:
            raise RefusedError(429)
        self.statuses.append((status, messages))

    def retrieve(self) -> None:
        """Notes that a device asked what to do, unless the last status says so."""
        if self.statuses and self.statuses[-1][0] == "retrieved":
            return
        self.statuses.append(("retrieved", []))
        if not self.is_canceling:
            self.change("retrieved")

    def document(self, url: str) -> dict[str, Any]:
        """Returns the action as DDI shows it; `url` is that of the target."""
        download = "attempt" if self.type == "soft" else "forced"
        update = "skip" if self.type == "downloadonly" or self.window == "unavailable" else download
        document: dict[str, Any] = {"download": download, "update": update}
        if self.window is not None:
            document["maintenanceWindow"] = self.window
        document["chunks"] = [_chunk(each, url) for each in self.modules]
        return document


@dataclass
class Target:
    """A controller."""

    attributes: dict[str, str] = field(default_factory=dict)
    wants_attributes: bool = True
    installed: Action | None = None


def _chunk(module: Module, url: str) -> dict[str, Any]:
    part = {"application": "bApp", "runtime": "jvm"}.get(module.part, module.part)
    chunk: dict[str, Any] = {"part": part, "version": module.version, "name": module.name}
    if module.is_encrypted:
        chunk["encrypted"] = True
    chunk["artifacts"] = [_artifact(file, f"{url}/softwaremodules/{module.id}/artifacts/") for file in module.files]
    if module.metadata:
        chunk["metadata"] = [{"key": key, "value": value} for key, value in module.metadata.items()]
    return chunk


def _artifact(file: File, folder: str) -> dict[str, Any]:
    hashes = {
        "sha1": hashlib.sha1(file.content, usedforsecurity=False).hexdigest(),
        "md5": hashlib.md5(file.content, usedforsecurity=False).hexdigest(),
    }
    if file.has_sha256:
        hashes["sha256"] = hashlib.sha256(file.content).hexdigest()
    link = file.link or folder + file.name
    links = {"download-http": {"href": link}, "md5sum-http": {"href": f"{link}.MD5SUM"}}
    return {"filename": file.name, "hashes": hashes, "size": len(file.content), "_links": links}
