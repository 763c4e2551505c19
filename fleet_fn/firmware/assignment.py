"""What a DDI server wants a controller to do, at one reading."""

import itertools
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, NamedTuple

from fleet_fn.ddi.client import DDI_SERVER
from fleet_fn.ddi.documents import Artifact, Deployment, Handling, Window
from fleet_fn.errors import PermanentError
from fleet_fn.firmware.store import Firmware

#: Artifacts that a message names.
_MAX_NAMED: Final = 5
_numbers = itertools.count(1)


class Controller(NamedTuple):
    """A controller of a DDI server, and which of several artifacts is its firmware."""

    name: str
    #: Type of the software module; None for any.
    part: str | None = None
    #: Name of the file; None for any.
    file: str | None = None


class Kind(Enum):
    """Kinds of wishes."""

    #: No action is open.
    NOTHING = "nothing"
    DEPLOYMENT = "deployment"
    #: A deployment that a person has to confirm first.
    CONFIRMATION = "confirmation"
    CANCELLATION = "cancellation"


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a server wants of a controller."""

    kind: Kind = Kind.NOTHING
    #: The open action, or the one to cancel; empty without one.
    action: str = ""
    #: That of a deployment or a confirmation; the installed one if no action is open, as far as the server tells.
    firmware: Firmware | None = None
    #: Why a deployment has no firmware that can be served; empty if it has one.
    problem: str = ""
    #: Blocks may be written, and the device may boot them.
    may_write: bool = True
    may_swap: bool = True
    #: The action ends once the device has all blocks.
    ends_with_download: bool = False
    #: Id of a cancellation.
    cancellation: str = ""
    #: Path of the firmware's bytes at the server's own origin; empty if they are elsewhere.
    path: str = ""
    #: The server tells which deployment is installed. Old ones do not.
    tells_installed: bool = True
    #: Where the server wants the controller's attributes; None if it does not.
    attributes: str | None = None
    #: Distinguishes the readings of a process.
    number: int = field(default_factory=lambda: next(_numbers), compare=False)


def may_write(deployment: Deployment) -> bool:
    """Return whether a device may get the blocks now."""
    return deployment.download is not Handling.SKIP


def may_swap(deployment: Deployment) -> bool:
    """Return whether a device may boot its new firmware now."""
    is_open = deployment.window is not Window.UNAVAILABLE
    return is_open and may_write(deployment) and deployment.update is not Handling.SKIP


def ends_with_download(deployment: Deployment) -> bool:
    """Return whether an action is to download only, and not to wait for a window."""
    return deployment.update is Handling.SKIP and deployment.window is None


def choose(deployment: Deployment, controller: Controller) -> Artifact:
    """Return the one artifact of a deployment that is the controller's firmware.

    Raises:
        PermanentError: there is none, or more than one, or its bytes cannot be verified or read.

    """
    found = [
        artifact
        for artifact in deployment.artifacts
        if controller.part in (None, artifact.part) and controller.file in (None, artifact.file)
    ]
    action = f"{DDI_SERVER}: action {deployment.action}"
    if len(found) != 1:
        all_of_them = _list_artifacts(deployment.artifacts)
        if not deployment.artifacts:
            raise PermanentError(f"{action} has no artifact: add a file to its software module")
        if not found:
            wanted = "/".join(each for each in (controller.part, controller.file) if each)
            raise PermanentError(f"{action} has no artifact {wanted}, only {all_of_them}")
        raise PermanentError(
            f"{action} has {len(deployment.artifacts)} artifacts, {all_of_them}: choose one by "
            "spec.firmware.hawkbit.part and file"
        )
    artifact = found[0]
    if artifact.is_encrypted:
        raise PermanentError(
            f"{action}: artifact {artifact.part}/{artifact.file} is encrypted; no device can decrypt it"
        )
    if artifact.checksum is None or artifact.size is None:
        what = "SHA-256" if artifact.checksum is None else "size"
        raise PermanentError(
            f"{action}: artifact {artifact.part}/{artifact.file} has no {what}, so it is not verifiable"
        )
    if not artifact.links:
        raise PermanentError(f"{action}: artifact {artifact.part}/{artifact.file} has no link for its download")
    return artifact


def _list_artifacts(artifacts: tuple[Artifact, ...]) -> str:
    named = [f"{artifact.part}/{artifact.file}" for artifact in artifacts[:_MAX_NAMED]]
    return ", ".join(named) + (", …" if len(artifacts) > _MAX_NAMED else "")
