"""The store of images without FIRMWARE_REGISTRY: it has none, and says why."""

from typing import Final, NoReturn

from fleet_fn.deadline import Deadline
from fleet_fn.errors import PermanentError
from fleet_fn.firmware.store import Firmware
from fleet_fn.oci.reference import Reference

NO_REGISTRY: Final = "FIRMWARE_REGISTRY is not set, so there are no container images: set it, or name a file"


class NoImages:
    """Refuses each reference."""

    def resolve(self, reference: Reference, deadline: Deadline, known: Firmware | None = None) -> Firmware:  # noqa: ARG002 - see `Store`
        """Raise `PermanentError`."""
        _refuse()

    def tags(self, reference: Reference, deadline: Deadline, *, whole: bool = False) -> list[str]:  # noqa: ARG002 - see `ImageStore`
        """Raise `PermanentError`."""
        _refuse()

    def close(self) -> None:
        """Do nothing: there are no connections."""


def _refuse() -> NoReturn:
    raise PermanentError(NO_REGISTRY)
