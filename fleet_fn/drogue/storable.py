"""Text that Drogue Cloud can store: PostgreSQL's `jsonb` has no U+0000."""

from typing import TypeVar, cast

T = TypeVar("T")

_NUL = "\0"
_ESCAPED = "\\x00"


def storable(value: T) -> T:
    r"""Return a JSON value with `\x00` in the place of each U+0000 in its texts.

    Drogue Cloud answers 503 to a write with U+0000, however often it is sent.
    """
    return cast(T, _escaped(value))


def _escaped(value: object) -> object:
    if isinstance(value, str):
        return value.replace(_NUL, _ESCAPED)
    if isinstance(value, dict):
        return {_escaped(key): _escaped(member) for key, member in value.items()}
    return [_escaped(member) for member in value] if isinstance(value, list) else value
