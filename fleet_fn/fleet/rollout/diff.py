"""The difference between two versions of an object, for people and for events."""

import difflib
import json
from collections.abc import Mapping
from typing import Any, Final

#: The parts that rollouts change, by their paths.
_PARTS: Final = ("metadata.labels", "spec.firmware", "status.firmware.rollout")


def diff_lines(before: Mapping[str, Any], after: Mapping[str, Any], name: str) -> list[str]:
    """Return a unified diff of what rollouts change of an object; empty if equal."""
    old, new = _text(parts_of(before)), _text(parts_of(after))
    return list(difflib.unified_diff(old, new, name, f"{name} (changed)", lineterm="", n=2))


def change_of(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Return the changed parts of an object as JSON: `{path: {"before", "after"}}`."""
    old, new = parts_of(before), parts_of(after)
    return {
        path: {"before": old.get(path), "after": new.get(path)} for path in _PARTS if old.get(path) != new.get(path)
    }


def parts_of(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of an object that rollouts change, by path."""
    parts: dict[str, Any] = {}
    for path in _PARTS:
        value: Any = found
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if value:
            parts[path] = value
    return parts


def _text(parts: Mapping[str, Any]) -> list[str]:
    return json.dumps(parts, indent=2, sort_keys=True, ensure_ascii=False).splitlines()
