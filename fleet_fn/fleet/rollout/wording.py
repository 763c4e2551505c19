"""Parts of a rollout in words, as `rollout show` and the console have them."""

from collections.abc import Mapping
from typing import Any, Final

from fleet_fn.fleet.rollout.application import Application

#: The keys of a stage that ask for something, in the order in which people read them.
_CONDITIONS: Final = ("approval", "after", "success", "over")


def describe_firmware(application: Application) -> str:
    """Return the firmware source of an application.

    Raises:
        RefusedError: the source is malformed.

    """
    section = application.source_section
    return describe_source(*section) if section else "the default image"


def describe_source(kind: str, source: Mapping[str, Any]) -> str:
    """Return a firmware source: its kind, and the map below it in `spec.firmware`."""
    if source.get("version") is not None:
        return f"{source.get('image')} {source['version']}"
    return str(source.get("image") or f"{kind} {source.get('name') or source.get('controller') or ''}".strip())


def describe_conditions(stage: Mapping[str, Any]) -> list[str]:
    """Return the conditions of a stage as it stands in `spec.firmware`."""
    return [_condition(key, stage[key]) for key in _CONDITIONS if stage.get(key)]


def _condition(key: str, value: object) -> str:
    return key if key == "approval" else f"{key} {value}" + (" %" if key == "success" else "")
