"""Texts that Drogue Cloud can store: PostgreSQL's `jsonb` has no U+0000."""

from typing import TypeVar, cast

T = TypeVar("T")

_NUL = "\0"
_ESCAPED_NUL = "\\x00"


def storable(value: T) -> T:
    r"""Return a JSON value with the four characters `\x00` in the place of each U+0000.

    Drogue Cloud answers every write with U+0000 with 503, so retries would not help.
    """
    return cast(T, _escape(value))


def _escape(value: object) -> object:
    if isinstance(value, str):
        return value.replace(_NUL, _ESCAPED_NUL)
    if isinstance(value, dict):
        return {_escape(key): _escape(member) for key, member in value.items()}
    return [_escape(member) for member in value] if isinstance(value, list) else value
