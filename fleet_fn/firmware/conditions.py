"""Conditions that a firmware's publisher names: hardware, required versions."""

from collections.abc import Mapping
from typing import Final

from fleet_fn.errors import PermanentError
from fleet_fn.oci.manifest import HARDWARE_ANNOTATION, REQUIRES_ANNOTATION

#: Characters of a condition, which is kept with the firmware.
_MAX_CONDITION_CHARS: Final = 1024


def read_conditions(annotations: Mapping[str, str]) -> tuple[tuple[str, ...], str]:
    """Return the hardware of a firmware, and the range of versions that it requires.

    Raises:
        PermanentError: one that keeps it from devices is empty, or too long to be remembered.

    """
    hardware, requires = annotations.get(HARDWARE_ANNOTATION), annotations.get(REQUIRES_ANNOTATION)
    for name, value in ((HARDWARE_ANNOTATION, hardware), (REQUIRES_ANNOTATION, requires)):
        if value is not None and len(value) > _MAX_CONDITION_CHARS:
            raise PermanentError(f"annotation {name} has {len(value)} characters; at most {_MAX_CONDITION_CHARS} count")
    if requires is not None and not requires.strip():
        raise PermanentError(f"annotation {REQUIRES_ANNOTATION} is empty; * stands for any release")
    named = tuple(name for part in (hardware or "").split(",") if (name := part.strip()))
    if hardware is not None and not named:
        raise PermanentError(f"annotation {HARDWARE_ANNOTATION} names no hardware")
    return named, requires or ""
