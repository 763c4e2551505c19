"""Strict JSON: texts that two readers could understand differently are refused."""

import json
from typing import Any, NoReturn


def parse_json(text: bytes) -> Any:
    """Parse JSON in UTF-8 (RFC 8259, section 8.1).

    Duplicate keys, NaN and lone surrogates are malformed.

    Raises:
        ValueError: the text is malformed. The error says why, in one line.

    """
    try:
        value = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_unique_members,
            parse_constant=_refuse_constant,
            parse_float=_parse_finite,
        )
        # Escapes can spell lone surrogates, which are not text: "\\ud800".
        if b"\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError("text that is not UTF-8") from error
    except UnicodeEncodeError as error:
        raise ValueError("text that is not valid Unicode") from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from error
    return value


def _unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return members


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _parse_finite(digits: str) -> float:
    number = float(digits)
    if number in (float("inf"), float("-inf")):
        raise ValueError("a number beyond the range of a double")
    return number
