"""Readers of CBOR and JSON that know nothing of statuses: slow, plain, and independent of the function's.

Maps are lists of pairs, so that keys which Python takes for the same (0, False and 0.0) stay apart.
"""

import json
import math
import struct
from typing import Any, NoReturn

#: Containers within containers.
MAX_DEPTH = 8


class Map(list[tuple[Any, Any]]):
    """A map's members, in their order."""

    def has(self, key: object) -> bool:
        return any(_same(known, key) for known, _ in self)

    def get(self, key: object) -> Any:
        return next((value for known, value in self if _same(known, key)), None)


def read_json(text: bytes) -> Any:
    """The value in `text`.

    Raises:
        ValueError: there is none, or one that no status may have.

    """
    try:
        value = json.loads(text.decode(), object_pairs_hook=Map, parse_constant=_refuse, parse_float=_finite)
    except RecursionError as error:
        raise ValueError("deep") from error
    return _checked(value, 0)


def read_cbor(content: bytes) -> Any:
    """The value in `content` (RFC 8949), without tags and simple values other than false, true and null.

    Raises:
        ValueError: there is none, or one that no status may have, or more than one.

    """
    reader = _Cbor(content)
    value = reader.item(0)
    if reader.position != len(content):
        raise ValueError("left over")
    return _checked(value, 0)


class _Cbor:
    def __init__(self, content: bytes) -> None:
        self._content = content
        self.position = 0

    def item(self, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise ValueError("deep")
        major, extra = divmod(self._take(1)[0], 32)
        if extra == 31 and 2 <= major <= 5:
            return self._indefinite(major, depth)
        if major == 7:
            return self._simple(extra)
        number = self._argument(extra)
        if major < 2:
            return -1 - number if major else number
        if major < 4:
            piece = self._take(number)
            return piece.decode() if major == 3 else piece
        if major == 4:
            return [self.item(depth + 1) for _ in self._counted(number)]
        if major == 5:
            return Map((self.item(depth + 1), self.item(depth + 1)) for _ in self._counted(number))
        raise ValueError("tagged")

    def _indefinite(self, major: int, depth: int) -> Any:
        pieces, members = [], []
        while self._content[self.position : self.position + 1] != b"\xff":
            if major < 4:
                chunk_major, extra = divmod(self._take(1)[0], 32)
                if chunk_major != major:
                    raise ValueError("a chunk of another kind")
                piece = self._take(self._argument(extra))
                pieces.append(piece)
                if major == 3:
                    piece.decode()  # no character may be cut
            elif major == 4:
                members.append(self.item(depth + 1))
            else:
                members.append((self.item(depth + 1), self.item(depth + 1)))
        self.position += 1
        if major < 4:
            return b"".join(pieces).decode() if major == 3 else b"".join(pieces)
        return members if major == 4 else Map(members)

    def _simple(self, extra: int) -> Any:
        if extra in (20, 21, 22):
            return (False, True, None)[extra - 20]
        if extra in (25, 26, 27):
            form = {25: ">e", 26: ">f", 27: ">d"}[extra]
            return struct.unpack(form, self._take(struct.calcsize(form)))[0]
        raise ValueError("no value that JSON has")

    def _argument(self, extra: int) -> int:
        if extra < 24:
            return extra
        if extra > 27:
            raise ValueError("reserved")
        return int.from_bytes(self._take(1 << (extra - 24)), "big")

    def _counted(self, number: int) -> range:
        if number > len(self._content):
            raise ValueError("cut short")  # each member has a byte at least
        return range(number)

    def _take(self, size: int) -> bytes:
        piece = self._content[self.position : self.position + size]
        if len(piece) != size:
            raise ValueError("cut short")
        self.position += size
        return piece


def _checked(value: Any, depth: int) -> Any:
    if isinstance(value, float) and math.isnan(value):
        raise ValueError("not a number")
    if isinstance(value, str):
        value.encode()
    if isinstance(value, Map | list):
        if depth == MAX_DEPTH:
            raise ValueError("deep")
        for member in value:
            for part in member if isinstance(value, Map) else (member,):
                _checked(part, depth + 1)
        if isinstance(value, Map):
            keys = [_frozen(key) for key, _ in value]
            if len({*keys}) != len(keys):
                raise ValueError("a key twice")
    return value


def _frozen(key: Any) -> Any:
    """A key as Python compares it, which takes 0 and False for one: such maps are refused, too."""
    if isinstance(key, Map):
        return frozenset((_frozen(k), _frozen(v)) for k, v in key)
    return tuple(map(_frozen, key)) if isinstance(key, list) else key


def _same(known: object, key: object) -> bool:
    return type(known) is type(key) and known == key


def _finite(digits: str) -> float:
    number = float(digits)
    return _refuse(digits) if math.isinf(number) else number


def _refuse(name: str) -> NoReturn:
    raise ValueError(name)
