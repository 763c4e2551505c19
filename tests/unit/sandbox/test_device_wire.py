"""The device's codec, with bytes of the Rust crate, and with a server written from the description."""

import base64
import contextlib
import json
from typing import get_args

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_fn.protocol.messages import U32_MAX, Command, Progress, Status, Swap, Sync, Wait, Write
from fleet_fn.sandbox.device_wire import CommandError, Dialect, Encoding, decode_command, encode_status
from tests.support.vectors import COMMANDS, STATUSES


@pytest.mark.parametrize(("status", "named", "packed"), STATUSES)
def test_an_embedded_update_status_is_byte_for_byte_the_crates(status: Status, named: str, packed: str) -> None:
    assert encode_status(status, "named", "cbor") == (bytes.fromhex(named), None)
    assert encode_status(status, "packed", "cbor") == (bytes.fromhex(packed), "application/cbor")


@pytest.mark.parametrize("content_type", ["application/cbor", "application/octet-stream", None])
@pytest.mark.parametrize(("command", "correlation_id", "named", "packed"), COMMANDS)
def test_both_forms_of_a_command_are_read(
    command: Command, correlation_id: int | None, named: str, packed: str, content_type: str | None
) -> None:
    assert decode_command(bytes.fromhex(named), content_type) == (command, correlation_id)
    assert decode_command(bytes.fromhex(packed), content_type) == (command, correlation_id)


def test_a_documented_status_leaves_out_what_is_absent() -> None:
    payload, content_type = encode_status(Status(b"0.1.0"), "documented", "json")
    assert json.loads(payload) == {"version": "0.1.0"}
    assert content_type == "application/json"


def test_a_documented_status_is_the_same_map_in_both_encodings_and_carries_no_correlation_id() -> None:
    status = Status(b"0.1.0", 512, 7, Progress(b"0.1.1", 1024))
    expected = {"version": "0.1.0", "mtu": 512, "status": {"version": "0.1.1", "offset": 1024}}
    assert json.loads(encode_status(status, "documented", "json")[0]) == expected
    payload, content_type = encode_status(status, "documented", "cbor")
    assert cbor2.loads(payload) == expected
    assert content_type == "application/cbor"


def test_a_named_status_in_json_shows_its_dialect_by_a_null_update() -> None:
    payload, content_type = encode_status(Status(b"0.1.0", 512, 7), "named", "json")
    assert json.loads(payload) == {"version": "0.1.0", "mtu": 512, "correlation_id": 7, "update": None}
    assert content_type == "application/json"


def test_there_is_no_packed_json() -> None:
    with pytest.raises(ValueError, match="integer keys"):
        encode_status(Status(b"0.1.0"), "packed", "json")


def test_a_version_that_is_no_text_cannot_be_told_in_a_dialect_of_text() -> None:
    with pytest.raises(ValueError, match="utf-8"):
        encode_status(Status(b"\xff"), "documented", "cbor")


def documented(command: Command, encoding: Encoding) -> object:
    """A command as the server shows it in the documented dialect."""

    def shown(data: bytes) -> object:
        return base64.b64encode(data).decode() if encoding == "json" else data

    match command:
        case Sync(version, poll):
            return {"op": "SYNC", "version": version.decode(), "poll": poll}
        case Write(version, offset, data):
            size = len(data)
            return {"op": "WRITE", "version": version.decode(), "offset": offset, "size": size, "data": shown(data)}
        case Swap(version, checksum):
            return {"op": "SWAP", "version": version.decode(), "checksum": checksum.hex()}
        case Wait():
            raise AssertionError("the documented dialect has no WAIT")


def named_json(command: Command, correlation_id: int | None) -> object:
    """A command as the server shows it to a named status in JSON."""
    fields: dict[str, object]
    match command:
        case Wait(poll):
            variant, fields = "wait", {"poll": poll}
        case Sync(version, poll):
            variant, fields = "sync", {"version": version.decode(), "poll": poll}
        case Write(version, offset, data):
            shown = base64.b64encode(data).decode()
            variant, fields = "write", {"version": version.decode(), "offset": offset, "data": shown}
        case Swap(version, checksum):
            variant, fields = "swap", {"version": version.decode(), "checksum": checksum.hex()}
    fields["correlation_id"] = correlation_id
    return {variant: {name: value for name, value in fields.items() if value is not None}}


def embedded_update_cbor(command: Command, correlation_id: int | None, *, packed: bool) -> object:
    """A command as the crate shows it."""
    fields: dict[str, object]
    match command:
        case Wait(poll):
            name, index, fields = "Wait", 0, {"correlation_id": correlation_id, "poll": poll}
        case Sync(version, poll):
            name, index = "Sync", 1
            fields = {"version": version, "correlation_id": correlation_id, "poll": poll}
        case Write(version, offset, data):
            name, index = "Write", 2
            fields = {"version": version, "correlation_id": correlation_id, "offset": offset, "data": data}
        case Swap(version, checksum):
            name, index = "Swap", 3
            fields = {"version": version, "correlation_id": correlation_id, "checksum": checksum}
    return {index: dict(enumerate(fields.values()))} if packed else {name: fields}


u32 = st.integers(0, U32_MAX)
optional_u32 = st.none() | u32
versions = st.text(max_size=20).map(str.encode)
commands: st.SearchStrategy[Command] = st.one_of(
    st.builds(Sync, versions, optional_u32),
    st.builds(Write, versions, u32, st.binary(max_size=64)),
    st.builds(Swap, versions, st.binary(min_size=32, max_size=32)),
    st.builds(Wait, optional_u32),
)


@given(commands, optional_u32, st.sampled_from(["named", "packed"]), st.booleans())
def test_whatever_the_server_says_in_embedded_update_is_understood(
    command: Command, correlation_id: int | None, form: str, labelled: bool
) -> None:
    payload = cbor2.dumps(embedded_update_cbor(command, correlation_id, packed=form == "packed"))
    assert decode_command(payload, "application/cbor" if labelled else None) == (command, correlation_id)


@given(commands, optional_u32, st.booleans())
def test_whatever_the_server_says_in_named_json_is_understood(
    command: Command, correlation_id: int | None, labelled: bool
) -> None:
    payload = json.dumps(named_json(command, correlation_id)).encode()
    assert decode_command(payload, "application/json" if labelled else None) == (command, correlation_id)


@given(commands.filter(lambda command: not isinstance(command, Wait)), st.sampled_from(get_args(Encoding)))
def test_whatever_the_server_says_in_the_documented_dialect_is_understood(command: Command, encoding: Encoding) -> None:
    body = documented(command, encoding)
    payload = json.dumps(body).encode() if encoding == "json" else cbor2.dumps(body)
    assert decode_command(payload, f"application/{encoding}; charset=utf-8") == (command, None)


@given(st.builds(Status, versions, optional_u32, optional_u32, st.none() | st.builds(Progress, versions, u32)))
def test_a_status_loses_nothing_on_the_wire(status: Status) -> None:
    progress = status.progress
    update = None if progress is None else {"version": progress.version, "offset": progress.offset}
    expected = {
        "version": status.version,
        "mtu": status.mtu,
        "correlation_id": status.correlation_id,
        "update": update,
    }
    assert cbor2.loads(encode_status(status, "named", "cbor")[0]) == expected
    packed = None if progress is None else {0: progress.version, 1: progress.offset}
    assert list(cbor2.loads(encode_status(status, "packed", "cbor")[0]).items()) == [
        (0, status.version),
        (1, status.mtu),
        (2, status.correlation_id),
        (3, packed),
    ]


@given(st.binary(max_size=80), st.sampled_from(["application/cbor", "application/json", None]))
def test_noise_is_a_bad_command_and_nothing_worse(payload: bytes, content_type: str | None) -> None:
    with contextlib.suppress(CommandError):
        decode_command(payload, content_type)


CHECKSUM = bytes(range(32))


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ({"Write": {"version": "0.1.1", "offset": 0, "data": b"x"}}, "version is not a byte string"),
        ({"Write": {"version": b"0.1.1", "offset": 0, "data": "x"}}, "data is not a byte string"),
        ({"Write": {"version": b"0.1.1", "data": b"x"}}, "offset is not"),
        ({"Write": {"version": b"0.1.1", "offset": -1, "data": b"x"}}, "offset is not"),
        ({"Write": {"version": b"0.1.1", "offset": True, "data": b"x"}}, "offset is not"),
        ({"Swap": {"version": b"0.1.1", "checksum": CHECKSUM.hex()}}, "checksum is not a byte string"),
        ({"Swap": {"version": b"0.1.1", "checksum": CHECKSUM[:31]}}, "31 bytes, not 32"),
        ({"Sync": {"version": b"0.1.0", "poll": 2**32}}, "poll is not"),
        ({"Sync": {"version": b"0.1.0", "correlation_id": "7"}}, "correlation_id is not"),
        ({"sync": {"version": b"0.1.0"}}, "no such command"),
        ({4: {}}, "no such command"),
        ({True: {}}, "no such command"),
        ({1: [b"0.1.0"]}, "no such command"),
        ({}, "one variant"),
        ({0: {}, 1: {}}, "one variant"),
        ([0], "not a map"),
        ({"op": "WRITE", "version": "0.1.1", "offset": 0, "size": 2, "data": b"x"}, "size is not the length"),
        ({"op": "WRITE", "version": "0.1.1", "offset": 0, "data": b"x"}, "size is not"),
        ({"op": "WRITE", "version": "0.1.1", "offset": 0, "size": 1, "data": "eA=="}, "data is not a byte string"),
        ({"op": "SYNC", "version": b"0.1.0"}, "version is not text"),
        ({"op": "SWAP", "version": "0.1.1", "checksum": CHECKSUM}, "checksum is not text"),
        ({"op": "SWAP", "version": "0.1.1", "checksum": CHECKSUM.hex().upper()}, "lower-case hex"),
        ({"op": "WAIT", "poll": 10}, "no such op"),
        ({"op": ["SYNC"]}, "no such op"),
    ],
)
def test_what_a_device_would_not_understand_in_cbor_is_refused(body: object, complaint: str) -> None:
    with pytest.raises(CommandError, match=complaint):
        decode_command(cbor2.dumps(body), "application/cbor")


@pytest.mark.parametrize(
    ("payload", "complaint"),
    [
        ('{"Write": {"version": "0.1.1", "offset": 0, "data": ""}}', "no such command"),
        ('{"write": {"version": "0.1.1", "offset": 0, "data": "eA"}}', "not base64"),
        ('{"write": {"version": "0.1.1", "offset": 0, "data": "e A=="}}', "not base64"),
        ('{"write": {"version": "0.1.1", "offset": 1.0, "data": "eA=="}}', "offset is not"),
        ('{"sync": {"version": "\\ud800"}}', "not Unicode"),
        ('{"0": {}}', "no such command"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_what_a_device_would_not_understand_in_json_is_refused(payload: str, complaint: str) -> None:
    with pytest.raises(CommandError, match=complaint):
        decode_command(payload.encode(), "application/json")


@pytest.mark.parametrize(
    ("payload", "complaint"),
    [
        (bytes.fromhex("a100a0") + b"\x00", "left over"),
        (bytes.fromhex("a100"), "not CBOR"),
        (bytes.fromhex("a100a200f600f6"), "not CBOR"),
        (b"", "not CBOR"),
    ],
)
def test_broken_cbor_is_refused(payload: bytes, complaint: str) -> None:
    with pytest.raises(CommandError, match=complaint):
        decode_command(payload, None)


def test_options_that_are_left_out_are_absent_and_unknown_fields_do_not_matter() -> None:
    assert decode_command(cbor2.dumps({"Wait": {}}), None) == (Wait(), None)
    assert decode_command(cbor2.dumps({0: {9: "later"}}), None) == (Wait(), None)


@pytest.mark.parametrize("dialect", get_args(Dialect))
def test_every_dialect_speaks_cbor(dialect: Dialect) -> None:
    assert isinstance(cbor2.loads(encode_status(Status(b"1"), dialect, "cbor")[0]), dict)
