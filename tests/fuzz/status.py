"""A device's status: `decode_status`, the decision on it, and the answer.

The first byte chooses the content type, the rest is the payload. What must hold:

- `decode_status` takes exactly the statuses of the protocol, and reads in each what a plain reader of the same bytes
  finds there; all else is `InvalidStatusError`, with a reason.
- What was read, written again by the simulated device, is read as the same.
- The decision on it lies within the firmware, and within what the device can take.
- Each answer in the status's form is what the simulated device understands it to be.
"""

from typing import Any

import cbor2

from fleet_fn.protocol.dialects import AnswerForm, Dialect, Encoding, InvalidStatusError, decode_status, encode_command
from fleet_fn.protocol.messages import U32_MAX, Command, Progress, Status, Swap, Sync, Wait, Write
from fleet_fn.protocol.step import Block, Target, next_command
from fleet_fn.sandbox.device_wire import decode_command, encode_status
from tests.fuzz.bounds import bounded
from tests.fuzz.wire import Map, read_cbor, read_json

CONTENT_TYPES = (
    None,
    "application/cbor",
    "application/json",
    "application/senml+cbor; x=y",
    "Application/Vnd.Acme+JSON",
    "text/plain",
)
TARGET = Target(b"0.1.1", 100_003, bytes(range(32)))
_MTU = 512


def one_input(data: bytes) -> None:
    content_type, payload = CONTENT_TYPES[data[0] % len(CONTENT_TYPES)] if data else None, data[1:]
    try:
        with bounded():
            status, form = decode_status(payload, content_type)
    except InvalidStatusError as refusal:
        assert str(refusal)
        assert _expected(payload, content_type) is None, f"refused: {refusal}"
        return
    assert (status, form) == _expected(payload, content_type)
    _check_written_again(status, form)
    _check_decision(status)
    for command in (
        Sync(status.version, U32_MAX),
        Sync(status.version),
        Write(b"0.1.1", U32_MAX, b"\0\xff{"),
        Swap(b"0.1.1", bytes(32)),
        Wait(0),
    ):
        _check_answer(command, form)


def _expected(payload: bytes, content_type: str | None) -> tuple[Status, AnswerForm] | None:
    """What the protocol's description makes of the payload; None is no status."""
    essence = (content_type or "").partition(";")[0].lower()
    if essence.endswith("cbor"):
        encoding = Encoding.CBOR
    elif essence.endswith("json") or payload.lstrip(b" \t\r\n")[:1] == b"{":
        encoding = Encoding.JSON
    elif payload and payload[0] in (*range(0xA0, 0xBC), 0xBF):
        encoding = Encoding.CBOR
    else:
        return None
    try:
        value = read_cbor(payload) if encoding is Encoding.CBOR else read_json(payload)
        return _read(value, encoding) if isinstance(value, Map) else None
    except ValueError:
        return None


def _read(fields: Map, encoding: Encoding) -> tuple[Status, AnswerForm]:
    keys: tuple[Any, ...]
    if fields.has(0):
        dialect, keys = Dialect.PACKED, (0, 1, 2, 3, 0, 1)
        if fields.has("version"):
            raise ValueError("two versions")
    elif fields.has("status") and not fields.has("update"):
        dialect, keys = Dialect.DOCUMENTED, ("version", "mtu", None, "status", "version", "offset")
    elif fields.has("update") or fields.has("correlation_id") or isinstance(fields.get("version"), bytes):
        dialect, keys = Dialect.NAMED, ("version", "mtu", "correlation_id", "update", "version", "offset")
    else:
        dialect, keys = Dialect.DOCUMENTED, ("version", "mtu", None, None, None, None)
    version, mtu, correlation_id, progress = (None if key is None else fields.get(key) for key in keys[:4])
    if not (mtu is None or (_is_u32(mtu) and mtu > 0)) or not (correlation_id is None or _is_u32(correlation_id)):
        raise ValueError("not a number from the range")
    position = None
    if progress is not None:
        if not isinstance(progress, Map) or not _is_u32(progress.get(keys[5])):
            raise ValueError("no progress")
        position = Progress(_version(progress.get(keys[4])), progress.get(keys[5]))
    if dialect is Dialect.DOCUMENTED:
        _version(version).decode()
    as_text = isinstance(version, str) and encoding is Encoding.CBOR and dialect is not Dialect.DOCUMENTED
    status = Status(_version(version), mtu, correlation_id, position)
    return status, AnswerForm(dialect, encoding, as_text, correlation_id)


def _is_u32(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**32


def _version(value: object) -> bytes:
    if not isinstance(value, bytes | str):
        raise ValueError("no version")
    version = value if isinstance(value, bytes) else value.encode()
    if len(version) > 255:
        raise ValueError("a version that is too long")
    return version


def _check_written_again(status: Status, form: AnswerForm) -> None:
    dialect, encoding = form.dialect.value, "json" if form.encoding is Encoding.JSON else "cbor"
    try:
        written, content_type = encode_status(status, dialect, encoding)  # type: ignore[arg-type]
    except UnicodeDecodeError:
        assert form.encoding is Encoding.CBOR  # bytes that are no text, where the device has text
        return
    assert decode_status(written, content_type)[0] == status


def _check_decision(status: Status) -> None:
    command = next_command(status, TARGET, mtu=status.mtu or _MTU, poll=1)
    match command:
        case Block(version, offset, size):
            assert version == TARGET.version != status.version
            assert 0 <= offset < offset + size <= TARGET.size
            assert size <= (status.mtu or _MTU)
            assert offset in (0, status.progress and status.progress.offset)
        case Sync(version):
            assert version == status.version
        case Swap(version, checksum):
            assert (version, checksum) == (TARGET.version, TARGET.checksum)
            assert status.progress
            assert status.progress.version == TARGET.version
            assert status.progress.offset - TARGET.size in range(32)


def _check_answer(command: Command, form: AnswerForm) -> None:
    if isinstance(command, Wait) and not form.has_wait:
        return
    if isinstance(command, Sync) and form.encoding is Encoding.JSON:
        command.version.decode()
    answer = encode_command(command, form)
    if form.text_versions:
        # What early clients take, the simulated device does not.
        (fields,) = cbor2.loads(answer).values()
        assert fields.get("version") == (None if isinstance(command, Wait) else command.version.decode())
        assert fields["correlation_id"] == form.correlation_id
        return
    echoed = None if form.dialect is Dialect.DOCUMENTED else form.correlation_id
    assert decode_command(answer, form.encoding.value) == (command, echoed)
