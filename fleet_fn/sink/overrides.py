"""Read K_CE_OVERRIDES: attributes that a SinkBinding adds to each event."""

import re
from collections.abc import Mapping
from typing import Final

from fleet_fn.strict_json import parse_json

#: Attributes that CloudEvents 1.0 defines itself. `data` is no attribute's name (JSON format, 3.1).
_DEFINED: Final = frozenset(
    {"id", "source", "specversion", "type", "datacontenttype", "dataschema", "subject", "time", "data"}
)


def read_overrides(text: str) -> Mapping[str, str]:
    """Return the values of extension attributes by their names.

    Raises:
        ValueError: the text is not `{"extensions": {NAME: VALUE}}`. Members beside `extensions` are ignored.

    """
    members = parse_json(text.encode())
    extensions = members.get("extensions", {}) if isinstance(members, dict) else None
    if not isinstance(extensions, dict):
        raise ValueError("no object of extensions")
    for name, value in extensions.items():
        if not re.fullmatch(r"[a-z0-9]+", name) or name in _DEFINED or not isinstance(value, str):
            raise ValueError(f"{name!r} is no extension with a text")
    return extensions
