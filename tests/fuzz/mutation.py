"""Mutations that no bytes changed by chance would be: of the JSON in an input, value by value."""

import json
import random
import re
from typing import Any

_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**32 - 1, 2**32, 2**64, 10**400, 0.0, -0.5, 100.0, 1e308),
    *("", "a", "0", "\0", "\n", "\ud800", "\u202e", "é", ".", "..", "1.0.0", "latest", [], {}, [[]], {"": None}),
)
#: Where the JSON in an input may begin: with it, behind a byte that chooses something, or after what parts parts.
_BEGINNING = re.compile(r"(?:\A.?|\n\n|\n----\n)(?=[{\[])", re.DOTALL)


def mutated(content: bytes, dice: random.Random) -> bytes:
    """`content` with one value in its JSON replaced, taken out, or repeated elsewhere; as it is where it has none."""
    text = content.decode("latin-1")
    beginnings = [match.end() for match in _BEGINNING.finditer(text)]
    if not beginnings:
        return content
    start = dice.choice(beginnings)
    try:
        value, end = json.JSONDecoder().raw_decode(text, start)
        return (text[:start] + json.dumps(_changed(value, dice)) + text[end:]).encode("latin-1")
    except (ValueError, RecursionError):
        return content


def _changed(value: Any, dice: random.Random) -> Any:
    places = [(holder, key) for holder in _containers(value) for key in _keys(holder)]
    if not places:
        return dice.choice(_VALUES)
    (holder, key), (other, its) = dice.choice(places), dice.choice(places)
    match dice.randrange(4):
        case 0:
            del holder[key]
        case 1:
            holder[key] = json.loads(json.dumps(other[its]))  # a copy, so that nothing comes to hold itself
        case 2 if isinstance(holder, dict):
            holder[dice.choice(("", "version", "size", "\n", "é"))] = holder.pop(key)
        case _:
            holder[key] = dice.choice(_VALUES)
    return value


def _containers(value: Any) -> list[Any]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return [] if inner is None else [value, *(found for member in inner for found in _containers(member))]


def _keys(holder: Any) -> list[Any]:
    return list(holder) if isinstance(holder, dict) else list(range(len(holder)))
