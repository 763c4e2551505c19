"""Decode statuses and encode commands in three dialects, in CBOR and in JSON.

The device chooses the dialect, so decoding a status also yields the form of its answer. The packed and named dialects
are those of the Rust crate embedded-update, which serializes with serde_cbor.
"""

import base64
import io
import json
import math
from collections.abc import Iterable, Mapping
from enum import Enum
from itertools import chain
from typing import Any, NamedTuple, NoReturn

import cbor2

from fleet_fn.protocol.messages import U32_MAX, Command, Progress, Status, Swap, Sync, Wait, Write
from fleet_fn.strict_json import parse_json

#: Levels of nested containers in a status.
MAX_DEPTH = 8
#: Buffer for a version in devices of the embedded-update family. A longer version makes them panic.
EMBEDDED_VERSION_BYTES = 16
#: Longest version, of a device or a firmware. It goes into reports, log lines, and headers, of which few servers take
#: more than some thousand bytes.
MAX_VERSION_BYTES = 255


class InvalidStatusError(Exception):
    """The payload is not a status.

    The text tells the device's developer why, in one line.
    """


class Encoding(Enum):
    """A serialization of messages. Values are media types."""

    CBOR = "application/cbor"
    JSON = "application/json"


class Dialect(Enum):
    """A naming of fields.

    The values are the names that documentation, logs and previews use.
    """

    DOCUMENTED = "documented"
    NAMED = "named"
    PACKED = "packed"


class AnswerForm(NamedTuple):
    """The form in which a device can read the answer to its status."""

    #: Dialect of the status.
    dialect: Dialect
    encoding: Encoding
    #: Versions are texts: an early client sent a text in CBOR where the embedded-update family sends bytes.
    text_versions: bool = False
    correlation_id: int | None = None

    @property
    def has_wait(self) -> bool:
        """Return whether the dialect has WAIT."""
        return self.dialect is not Dialect.DOCUMENTED

    def takes_version(self, version: bytes) -> bool:
        """Return whether a device of this dialect can hold `version`."""
        return self.dialect is Dialect.DOCUMENTED or len(version) <= EMBEDDED_VERSION_BYTES


# --- Decoding ---------------------------------------------------------------------------------------------------------


def decode_status(payload: bytes, content_type: str | None = None) -> tuple[Status, AnswerForm]:
    """Decode a status; return it with the form of its answer.

    Args:
        payload: the bytes that the device sent.
        content_type: their media type. Unless it stands for CBOR or JSON, the first byte tells the encoding.

    Raises:
        InvalidStatusError: the payload is not a status of any dialect.

    """
    encoding = _encoding(payload, content_type)
    try:
        fields = _parse_cbor(payload) if encoding is Encoding.CBOR else _parse_json(payload)
    except ValueError as error:
        raise InvalidStatusError(str(error)) from error
    if not isinstance(fields, _MAPS):
        raise InvalidStatusError("neither a CBOR map nor a JSON object")
    fields = _with_our_keys(fields)
    return _read_packed(fields) if 0 in fields else _read_named(fields, encoding)


def _encoding(payload: bytes, content_type: str | None) -> Encoding:
    media_type = (content_type or "").partition(";")[0].strip().lower()
    if media_type == "application/cbor" or media_type.endswith("+cbor"):
        return Encoding.CBOR
    if media_type == "application/json" or media_type.endswith("+json"):
        return Encoding.JSON
    if payload and (0xA0 <= payload[0] <= 0xBB or payload[0] == 0xBF):
        return Encoding.CBOR
    if payload.lstrip(b" \t\r\n").startswith(b"{"):
        return Encoding.JSON
    raise InvalidStatusError("neither a CBOR map nor a JSON object" if payload else "the payload is empty")


def _read_packed(fields: Mapping[Any, Any]) -> tuple[Status, AnswerForm]:
    if "version" in fields:
        raise InvalidStatusError("has two versions, under the integer key 0 and under the text key 'version'")
    status = Status(
        version=_version(fields, 0, "version (key 0)"),
        mtu=_mtu(fields, 1, "mtu (key 1)"),
        correlation_id=_u32(fields, 2, "correlation_id (key 2)"),
        progress=_progress(fields, 3, 0, 1, "update (key 3)"),
    )
    text = isinstance(fields[0], str)
    return status, AnswerForm(Dialect.PACKED, Encoding.CBOR, text, status.correlation_id)


def _read_named(fields: Mapping[Any, Any], encoding: Encoding) -> tuple[Status, AnswerForm]:
    version = _version(fields, "version", "version")
    mtu = _mtu(fields, "mtu", "mtu")
    as_bytes = isinstance(fields["version"], bytes)
    is_embedded = "update" in fields or "correlation_id" in fields or as_bytes
    if is_embedded and ("update" in fields or "status" not in fields):
        correlation_id = _u32(fields, "correlation_id", "correlation_id")
        progress = _progress(fields, "update", "version", "offset", "update")
        text = encoding is Encoding.CBOR and not as_bytes
        return Status(version, mtu, correlation_id, progress), AnswerForm(Dialect.NAMED, encoding, text, correlation_id)
    progress = _progress(fields, "status", "version", "offset", "status")
    try:
        version.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidStatusError("version: not UTF-8, which this dialect's answers require") from error
    return Status(version, mtu, None, progress), AnswerForm(Dialect.DOCUMENTED, encoding)


def _with_our_keys(fields: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """Return the fields without keys of other kinds than ours.

    Unlike in Python, False and 0.0 are not the key 0.
    """
    return {key: value for key, value in fields.items() if type(key) in (int, str)}


def _version(fields: Mapping[Any, Any], key: int | str, name: str) -> bytes:
    value = fields.get(key)
    if not isinstance(value, bytes | str):
        raise InvalidStatusError(f"{name}: {'missing' if value is None else 'neither text nor a byte string'}")
    version = value.encode("utf-8") if isinstance(value, str) else value
    if len(version) > MAX_VERSION_BYTES:
        raise InvalidStatusError(f"{name} has {len(version)} bytes; it may have at most {MAX_VERSION_BYTES}")
    return version


def _u32(fields: Mapping[Any, Any], key: int | str, name: str) -> int | None:
    value = fields.get(key)
    if value is not None and (type(value) is not int or not 0 <= value <= U32_MAX):
        raise InvalidStatusError(f"{name}: not an integer from 0 to {U32_MAX}")
    return value


def _mtu(fields: Mapping[Any, Any], key: int | str, name: str) -> int | None:
    mtu = _u32(fields, key, name)
    if mtu == 0:
        raise InvalidStatusError(f"{name} is 0; it must be at least 1 byte")
    return mtu


def _progress(
    fields: Mapping[Any, Any], key: int | str, version: int | str, offset: int | str, name: str
) -> Progress | None:
    inner = fields.get(key)
    if inner is None:
        return None
    if not isinstance(inner, _MAPS):
        raise InvalidStatusError(f"{name}: not a map")
    inner = _with_our_keys(inner)
    position = _u32(inner, offset, f"offset in {name}")
    if position is None:
        raise InvalidStatusError(f"offset in {name}: missing")
    return Progress(_version(inner, version, f"version in {name}"), position)


# --- Parsing ----------------------------------------------------------------------------------------------------------


def _refuse_tag(*_: object) -> NoReturn:
    raise ValueError("tagged")


#: Each tag that cbor2 turns into another type (dates, bignums, references, …). Statuses have no tags.
_TAG_DECODERS = dict.fromkeys(
    (0, 1, 2, 3, 4, 5, 25, 28, 29, 30, 35, 36, 37, 52, 54, 100, 256, 258, 260, 261, 1004, 43000, 55799), _refuse_tag
)
#: A dict is found to be one in a tenth of the time.
_MAPS = (dict, Mapping)
#: Types of values that need no look: JSON has all of theirs.
_SCALARS = frozenset((int, str, bytes, bool, type(None)))


def _parse_cbor(payload: bytes) -> Any:
    source = io.BytesIO(payload)
    decoder = cbor2.CBORDecoder(
        source,
        max_depth=MAX_DEPTH,
        allow_duplicate_keys=False,
        tag_hook=_refuse_tag,
        semantic_decoders=_TAG_DECODERS,
    )
    try:
        value = decoder.decode()
    except cbor2.CBORDecodeError as error:
        cause = error.__cause__
        raise ValueError(f"not CBOR of a status: {error}{f': {cause}' if cause else ''}") from error
    if source.tell() != len(payload):
        raise ValueError(f"{len(payload) - source.tell()} bytes follow the CBOR map")
    _check_values(value)
    return value


def _parse_json(payload: bytes) -> Any:
    value = parse_json(payload)
    _check_values(value)
    return value


def _check_values(value: object, depth: int = 0) -> None:
    """Raise ValueError for NaN, values that JSON does not have, and too deep nesting."""
    if type(value) in _SCALARS:
        return
    if type(value) is float:
        if math.isnan(value):
            raise ValueError("NaN, which JSON does not have")
        return
    if depth == MAX_DEPTH:
        raise ValueError(f"containers nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, _MAPS):
        parts: Iterable[object] = chain(value, value.values())
    elif isinstance(value, list | tuple):
        parts = value
    else:
        raise ValueError(f"a value that JSON does not have ({value!r})")
    for part in parts:
        if type(part) not in _SCALARS:  # checked here, too: most parts are
            _check_values(part, depth + 1)


# --- Encoding ---------------------------------------------------------------------------------------------------------

_VARIANTS = {Wait: (0, "Wait"), Sync: (1, "Sync"), Write: (2, "Write"), Swap: (3, "Swap")}


def encode_command(command: Command, form: AnswerForm) -> bytes:
    """Encode a command in the form of an answer.

    Raises:
        ValueError: the dialect has no such command, see `AnswerForm.has_wait`.

    """
    if form.dialect is Dialect.DOCUMENTED:
        if isinstance(command, Wait):
            raise ValueError("the documented dialect has no WAIT")
        if form.encoding is Encoding.JSON:
            return _json_bytes(documented_json(command))
        return cbor2.dumps(_documented_fields(command))
    index, name = _VARIANTS[type(command)]
    if form.encoding is Encoding.JSON:
        fields = _embedded_fields(command, form.correlation_id, text=True)
        return _json_bytes({name.lower(): {key: _json_value(key, value) for key, value in fields if value is not None}})
    fields = _embedded_fields(command, form.correlation_id, text=form.text_versions)
    if form.text_versions:
        return cbor2.dumps({name: dict(fields)})
    return cbor2.dumps({index: {position: value for position, (_, value) in enumerate(fields)}})


def room_for_data(form: AnswerForm, version: bytes, offset: int, limit: int) -> int:
    """Return the bytes of data that a WRITE has room for, exact from 256 to 65,535.

    Args:
        form: form of the command.
        version: version of the WRITE.
        offset: offset of the WRITE.
        limit: bytes of the encoded command at most.

    """
    is_documented, is_cbor = form.dialect is Dialect.DOCUMENTED, form.encoding is Encoding.CBOR
    # Lengths from 256 to 65,535 take more room than the length 0: two bytes more each in CBOR, four digits more for
    # `size` in JSON.
    lengths = (4 if is_documented else 2) if is_cbor else (4 if is_documented else 0)
    room = limit - len(encode_command(Write(version, offset, b""), form)) - lengths
    return max(0, room if is_cbor else room // 4 * 3)


def documented_json(command: Command) -> dict[str, Any]:
    """Return a command, WAIT included, in the documented dialect's JSON."""
    return {key: _json_value(key, value) for key, value in _documented_fields(command).items()}


def _documented_fields(command: Command) -> dict[str, Any]:
    fields: dict[str, Any]
    match command:
        case Sync(version, poll):
            fields = {"op": "SYNC", "version": _text(version), "poll": poll}
        case Write(version, offset, data):
            fields = {"op": "WRITE", "version": _text(version), "offset": offset, "size": len(data), "data": data}
        case Swap(version, checksum):
            fields = {"op": "SWAP", "version": _text(version), "checksum": checksum.hex()}
        case Wait(poll):
            fields = {"op": "WAIT", "poll": poll}
    return {key: value for key, value in fields.items() if value is not None}


def _embedded_fields(command: Command, correlation_id: int | None, *, text: bool) -> list[tuple[str, Any]]:
    """Return the fields in the crate's order of declarations, for packed indices."""
    encode: Any = _text if text else bytes
    match command:
        case Wait(poll):
            return [("correlation_id", correlation_id), ("poll", poll)]
        case Sync(version, poll):
            return [("version", encode(version)), ("correlation_id", correlation_id), ("poll", poll)]
        case Write(version, offset, data):
            return [
                ("version", encode(version)),
                ("correlation_id", correlation_id),
                ("offset", offset),
                ("data", data),
            ]
        case Swap(version, checksum):
            return [("version", encode(version)), ("correlation_id", correlation_id), ("checksum", checksum)]


def _text(version: bytes) -> str:
    """Return a version as text. It is UTF-8, except in previews for operators."""
    return version.decode("utf-8", "replace")


def _json_value(key: str, value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex() if key == "checksum" else base64.b64encode(value).decode("ascii")
    return value


def _json_bytes(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
