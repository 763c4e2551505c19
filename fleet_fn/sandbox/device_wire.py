"""A device's codec: encodes a status, and decodes a command.

It was written from the protocol's description alone, independently of the function's codec. So an error in either shows
as soon as the two meet. It reads only what a device in the field reads. In the embedded-update dialects' CBOR, for
instance, a version, data or checksum that is not a byte string is an error.
"""

import base64
import binascii
import io
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import cbor2

from fleet_fn.protocol.messages import U32_MAX, Command, Status, Swap, Sync, Wait, Write

Dialect = Literal["documented", "named", "packed"]
Encoding = Literal["cbor", "json"]

# Fields in the order of embedded-update's structs, which is also their packed index.
_STATUS = ("version", "mtu", "correlation_id", "update")
_UPDATE = ("version", "offset")
_VARIANTS = {
    "Wait": ("correlation_id", "poll"),
    "Sync": ("version", "correlation_id", "poll"),
    "Write": ("version", "correlation_id", "offset", "data"),
    "Swap": ("version", "correlation_id", "checksum"),
}
_OPERATIONS = {"SYNC": "Sync", "WRITE": "Write", "SWAP": "Swap"}

_CHECKSUM_HEX = re.compile(r"[0-9a-f]{64}")


class CommandError(Exception):
    """A device cannot read an answer; the message says why."""


def encode_status(status: Status, dialect: Dialect, encoding: Encoding) -> tuple[bytes, str | None]:
    """Return the payload of a status and its content type.

    The type is None if devices in the field send none.

    Raises:
        ValueError: the dialect does not have this encoding, or a version is not text and the dialect needs text.

    """
    if dialect == "packed" and encoding == "json":
        raise ValueError("the packed dialect has integer keys, which JSON cannot express: use cbor, or named")
    body = (
        _documented_status(status)
        if dialect == "documented"
        else _embedded_update_status(status, packed=dialect == "packed", texts=encoding == "json")
    )
    if encoding == "json":
        return json.dumps(body).encode(), "application/json"
    # drgdfu, which speaks the named dialect, sends no content type.
    return cbor2.dumps(body), None if dialect == "named" else "application/cbor"


def _documented_status(status: Status) -> dict[str, object]:
    body: dict[str, object] = {"version": status.version.decode()}
    if status.mtu is not None:
        body["mtu"] = status.mtu
    # No correlation id: it would make the status one of the named dialect.
    if status.progress is not None:
        body["status"] = {"version": status.progress.version.decode(), "offset": status.progress.offset}
    return body


def _embedded_update_status(status: Status, *, packed: bool, texts: bool) -> dict[int | str, object]:
    def version(raw: bytes) -> bytes | str:
        return raw.decode() if texts else raw

    def fields(names: tuple[str, ...], *values: object) -> dict[int | str, object]:
        return dict(zip(range(len(names)) if packed else names, values, strict=True))

    progress = status.progress
    update = None if progress is None else fields(_UPDATE, version(progress.version), progress.offset)
    return fields(_STATUS, version(status.version), status.mtu, status.correlation_id, update)


def decode_command(payload: bytes, content_type: str | None) -> tuple[Command, int | None]:
    """Return the command in a payload, and its correlation id.

    The payload's shape decides the dialect. The content type, or else the first byte, decides between JSON and CBOR.

    Raises:
        CommandError: a device would not understand the payload.

    """
    is_json = _is_json(payload, content_type)
    body = _parse_json(payload) if is_json else _parse_cbor(payload)
    if not isinstance(body, Mapping):
        raise CommandError("the answer is not a map")
    if "op" in body:
        return _documented_command(body, _JSON if is_json else _DOCUMENTED_CBOR), None
    return _embedded_update_command(body, is_json=is_json)


def _is_json(payload: bytes, content_type: str | None) -> bool:
    essence = (content_type or "").partition(";")[0].strip().lower()
    if essence == "application/json" or essence.endswith("+json"):
        return True
    if essence == "application/cbor" or essence.endswith("+cbor"):
        return False
    return payload.lstrip(b" \t\r\n").startswith(b"{")


def _parse_json(payload: bytes) -> object:
    try:
        return json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise CommandError(f"the answer is not JSON: {error}") from error


def _parse_cbor(payload: bytes) -> object:
    stream = io.BytesIO(payload)
    try:
        body: object = cbor2.load(stream, allow_duplicate_keys=False, max_depth=8)
    except cbor2.CBORDecodeError as error:
        raise CommandError(f"the answer is not CBOR: {error}") from error
    if stream.read(1):
        raise CommandError("bytes are left over after the command")
    return body


def _documented_command(body: Mapping[object, object], form: "_Form") -> Command:
    operation = body["op"]
    if not isinstance(operation, str) or operation not in _OPERATIONS:
        raise CommandError(f"no such op: {operation!r}")
    command = _command(_OPERATIONS[operation], body, form)
    if isinstance(command, Write) and _u32(body, "size") != len(command.data):
        raise CommandError("size is not the length of data")
    return command


def _embedded_update_command(body: Mapping[object, object], *, is_json: bool) -> tuple[Command, int | None]:
    if len(body) != 1:
        raise CommandError("the answer is not a map of one variant")
    [(key, content)] = body.items()
    variants = {variant.lower() if is_json else variant: variant for variant in _VARIANTS}
    name = _name(key, tuple(variants), indexed=not is_json)
    if name not in variants or not isinstance(content, Mapping):
        raise CommandError(f"no such command: {key!r}")
    variant = variants[name]
    fields = {_name(key, _VARIANTS[variant], indexed=not is_json): value for key, value in content.items()}
    return _command(variant, fields, _JSON if is_json else _BYTES), _optional_u32(fields, "correlation_id")


def _name(key: object, names: tuple[str, ...], *, indexed: bool) -> object:
    """Return the name of a field or a variant; CBOR may give its index instead."""
    if indexed and type(key) is int and 0 <= key < len(names):
        return names[key]
    return key


def _command(variant: str, fields: Mapping[object, object], form: "_Form") -> Command:
    if variant == "Wait":
        return Wait(_optional_u32(fields, "poll"))
    version = form.version(fields, "version")
    if variant == "Sync":
        return Sync(version, _optional_u32(fields, "poll"))
    if variant == "Write":
        return Write(version, _u32(fields, "offset"), form.data(fields, "data"))
    return Swap(version, form.checksum(fields, "checksum"))


def _optional_u32(fields: Mapping[object, object], name: str) -> int | None:
    return None if fields.get(name) is None else _u32(fields, name)


def _u32(fields: Mapping[object, object], name: str) -> int:
    value = fields.get(name)
    if type(value) is not int or not 0 <= value <= U32_MAX:
        raise CommandError(f"{name} is not a 32-bit unsigned integer: {value!r}")
    return value


def _bytes(fields: Mapping[object, object], name: str) -> bytes:
    value = fields.get(name)
    if not isinstance(value, bytes):
        raise CommandError(f"{name} is not a byte string: {value!r}")
    return value


def _digest(fields: Mapping[object, object], name: str) -> bytes:
    value = _bytes(fields, name)
    if len(value) != 32:
        raise CommandError(f"{name} has {len(value)} bytes, not 32")
    return value


def _text(fields: Mapping[object, object], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise CommandError(f"{name} is not text: {value!r}")
    return value


def _utf8(fields: Mapping[object, object], name: str) -> bytes:
    try:
        return _text(fields, name).encode()
    except UnicodeEncodeError as error:
        raise CommandError(f"{name} is not Unicode text") from error


def _base64(fields: Mapping[object, object], name: str) -> bytes:
    try:
        return base64.b64decode(_text(fields, name), validate=True)
    except (binascii.Error, ValueError) as error:
        raise CommandError(f"{name} is not base64: {error}") from error


def _hex_digest(fields: Mapping[object, object], name: str) -> bytes:
    value = _text(fields, name)
    if not _CHECKSUM_HEX.fullmatch(value):
        raise CommandError(f"{name} is not 64 lower-case hex digits: {value!r}")
    return bytes.fromhex(value)


_Reader = Callable[[Mapping[object, object], str], bytes]


@dataclass(frozen=True, slots=True)
class _Form:
    """The form of versions, data and checksums in a dialect and an encoding."""

    version: _Reader
    data: _Reader
    checksum: _Reader


_JSON = _Form(version=_utf8, data=_base64, checksum=_hex_digest)
_DOCUMENTED_CBOR = _Form(version=_utf8, data=_bytes, checksum=_hex_digest)
_BYTES = _Form(version=_bytes, data=_bytes, checksum=_digest)
