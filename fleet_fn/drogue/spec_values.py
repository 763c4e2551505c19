"""Values in `spec.firmware`, and the errors of malformed ones."""

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

from fleet_fn.errors import PermanentError, one_line

#: Characters of a value in a message.
_MAX_SHOWN_CHARACTERS: Final = 100
#: Keys that begin so are the users' own.
_FREE: Final = "x-"
#: How much alike a key and the one that is suggested for it have to be, from 0 to 1.
_LIKENESS: Final = 0.65
#: A whole number has few digits, so that no time overflows; the fraction too.
_TIME: Final = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,6})?)([a-z]+)")
_SECONDS: Final = {"s": 1, "m": 60, "h": 60 * 60, "d": 24 * 60 * 60}
#: The longest time.
MAX_TIME: Final = timedelta(days=3650)


class MalformedSpecError(PermanentError):
    """A key of `spec.firmware` is malformed.

    The text names the key, its value and the values that it may have.
    """


def read_map(value: object, path: str, keys: Sequence[str], elsewhere: Sequence[str] = ()) -> Mapping[str, Any]:
    """Return a map with known keys only; an empty one for null. See `check_keys`.

    Raises:
        MalformedSpecError: it is no map, or has a key that is not known.

    """
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise malformed(path, value, f"a map with {join_words(keys)}")
    check_keys(value, path, keys, elsewhere)
    return value


def check_keys(section: Mapping[str, Any], path: str, keys: Sequence[str], elsewhere: Sequence[str] = ()) -> None:
    """Refuse a map with a key that is not known.

    If a mistyped `percent` were ignored, all devices would be updated.

    Args:
        section: the map.
        path: its path, for the message.
        keys: the known keys.
        elsewhere: paths of keys in other maps, which are suggested too.

    Raises:
        MalformedSpecError: a key is not known. The text names it, and the nearest known one.

    """
    unknown = [key for key in section if key not in keys and not key.startswith(_FREE)]
    if unknown:
        described = shorten(", ".join(_with_nearest(key, keys, elsewhere) for key in unknown))
        raise MalformedSpecError(f"{path} contains {described}; it may contain {join_words(keys)}")


def _with_nearest(key: str, keys: Sequence[str], elsewhere: Sequence[str]) -> str:
    """Return a key with the known one that it resembles most, if it resembles any."""
    moved = [path for path in elsewhere if path.rpartition(".")[2] == key]
    # Cut first: the comparison takes time that grows with the square of the length.
    folded = {known.casefold(): known for known in reversed(keys)}
    near = difflib.get_close_matches(key[:_MAX_SHOWN_CHARACTERS].casefold(), folded, n=1, cutoff=_LIKENESS)
    nearest = moved or [folded[match] for match in near]
    return f"{key} (did you mean {nearest[0]}?)" if nearest else key


def read_flag(value: object, path: str) -> bool | None:
    """Return true or false; None for null."""
    if value is None or isinstance(value, bool):
        return value
    raise malformed(path, value, "true or false")


def read_choice(value: object, path: str, choices: Sequence[str]) -> str | None:
    """Return one of some words; None for null."""
    if value is None or (isinstance(value, str) and value in choices):
        return value
    raise malformed(path, value, " or ".join(choices))


def read_percent(value: object, path: str, least: float = 0) -> float | None:
    """Return a percentage from `least` to 100; None for null."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= 100:
        raise malformed(path, value, f"a number from {least:.15g} to 100")
    return float(value)


def read_text(value: object, path: str) -> str | None:
    """Return a text; None for null."""
    if value is None or isinstance(value, str):
        return value
    raise malformed(path, value, "a text")


def read_name(value: object, path: str, wanted: str) -> str:
    """Return a text that has to be there, and has to be described as `wanted`."""
    if value is None:
        raise MalformedSpecError(f"{path} is missing; it must be {wanted}")
    if not isinstance(value, str) or not value:
        raise malformed(path, value, wanted)
    return value


def read_count(value: object, path: str, most: int | None, wanted: str) -> int | None:
    """Return a whole number from 1 to `most`; None for null."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1 or (most is not None and value > most):
        raise malformed(path, value, wanted)
    return value


def read_time(value: object, path: str) -> timedelta | None:
    """Return a time such as `24h`; None for null."""
    if value is None:
        return None
    match = _TIME.fullmatch(value) if isinstance(value, str) else None
    if not match or match[2] not in _SECONDS:
        raise malformed(path, value, f"a number and a unit, such as 24h; the units are {join_words(list(_SECONDS))}")
    time = timedelta(seconds=float(match[1]) * _SECONDS[match[2]])
    if time > MAX_TIME:
        raise malformed(path, value, f"{MAX_TIME.days}d at most")
    return time


def read_list(value: object, path: str, wanted: str) -> Iterator[tuple[object, str]]:
    """Yield the entries of a list that is not empty, with their paths."""
    if not isinstance(value, list) or not value:
        raise malformed(path, value, wanted)
    return ((entry, f"{path}[{index}]") for index, entry in enumerate(value))


def malformed(path: str, value: object, wanted: str) -> MalformedSpecError:
    """Return the error of a value that a key does not take."""
    return MalformedSpecError(f"{path} is {describe(value)}; it must be {wanted}")


def describe(value: object) -> str:
    """Return a value as JSON in one line; a map or a list is only named."""
    if isinstance(value, dict | list):
        kind = "map" if isinstance(value, dict) else "list"
        return f"a {kind}" if value else f"an empty {kind}"
    if isinstance(value, str):
        return f'"{shorten(value)}"'
    return shorten(json.dumps(value))


def shorten(text: str) -> str:
    """Return foreign text in one line, cut to the room that a message has for it."""
    return one_line(text if len(text) <= _MAX_SHOWN_CHARACTERS else f"{text[:_MAX_SHOWN_CHARACTERS]}…")


def join_words(names: Sequence[str]) -> str:
    """Return names as people list them."""
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]
