"""Statuses and commands on the wire, in all dialects and encodings."""

import base64
import json
from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_fn.protocol.dialects import (
    AnswerForm,
    Dialect,
    Encoding,
    InvalidStatusError,
    decode_status,
    documented_json,
    encode_command,
)
from fleet_fn.protocol.messages import Command, Progress, Status, Swap, Sync, Wait, Write
from tests.support.vectors import COMMANDS, STATUSES

CHECKSUM = bytes(range(32))
PACKED = AnswerForm(Dialect.PACKED, Encoding.CBOR)
DOCUMENTED_CBOR = AnswerForm(Dialect.DOCUMENTED, Encoding.CBOR)
DOCUMENTED_JSON = AnswerForm(Dialect.DOCUMENTED, Encoding.JSON)
NAMED_JSON = AnswerForm(Dialect.NAMED, Encoding.JSON)


def decode(value: object) -> tuple[Status, AnswerForm]:
    return decode_status(cbor2.dumps(value))


def decode_json(text: str, content_type: str | None = None) -> tuple[Status, AnswerForm]:
    return decode_status(text.encode(), content_type)


# --- The golden vectors


@pytest.mark.parametrize(("status", "named", "packed"), STATUSES)
def test_statuses_of_the_rust_crate_are_read_in_both_forms(status: Status, named: str, packed: str) -> None:
    for dialect, wire in ((Dialect.NAMED, named), (Dialect.PACKED, packed)):
        decoded, form = decode_status(bytes.fromhex(wire))
        assert decoded == status
        assert form == AnswerForm(dialect, Encoding.CBOR, correlation_id=status.correlation_id)


@pytest.mark.parametrize("dialect", [Dialect.NAMED, Dialect.PACKED])
@pytest.mark.parametrize(("command", "correlation_id", "wire"), [(c, i, packed) for c, i, _, packed in COMMANDS])
def test_commands_are_the_bytes_that_the_rust_crate_writes_packed(
    command: Command, correlation_id: int | None, wire: str, dialect: Dialect
) -> None:
    form = AnswerForm(dialect, Encoding.CBOR, correlation_id=correlation_id)
    assert encode_command(command, form).hex() == wire


def test_an_early_client_with_text_versions_is_answered_named_and_with_text() -> None:
    for status in (
        {"version": "0.1.0", "mtu": 512, "correlation_id": 3, "update": None},
        {0: "0.1.0", 1: 512, 2: 3, 3: None},
    ):
        _, form = decode(status)
        assert form.text_versions
        assert encode_command(Write(b"0.1.1", 0, b"hello"), form).hex() == (
            "a1655772697465a46776657273696f6e65302e312e316e636f7272656c6174696f6e5f696403666f6666736574006464617461"
            "4568656c6c6f"
        )
        assert cbor2.loads(encode_command(Swap(b"0.1.1", CHECKSUM), form)) == {
            "Swap": {"version": "0.1.1", "correlation_id": 3, "checksum": CHECKSUM}
        }


# --- Bounds


def _longest(version: Any, progress: Any, form: str) -> tuple[bytes, str]:
    """A status with these two versions, in one of the dialects."""
    if form == "packed":
        return cbor2.dumps({0: version, 3: {0: progress, 1: 0}}), "application/cbor"
    inner = "update" if form == "named" else "status"
    status = {"version": version, inner: {"version": progress, "offset": 0}}
    if form == "json":
        return json.dumps(status, ensure_ascii=False).encode(), "application/json"
    return cbor2.dumps(status), "application/cbor"


@pytest.mark.parametrize("form", ["packed", "named", "documented", "json"])
@pytest.mark.parametrize("unit", ["v", "\N{LATIN SMALL LETTER A WITH DIAERESIS}"])
def test_version_in_status_is_bounded_in_bytes(form: str, unit: str) -> None:
    longest = (unit * 255).encode()[:255].decode(errors="ignore")
    longest += "v" * (255 - len(longest.encode()))
    as_wire: Any = str.encode if form in ("packed", "named") else str
    decode_status(*_longest(as_wire(longest), as_wire(longest), form))
    for versions in ((longest + "v", longest), (longest, longest + "v")):
        with pytest.raises(InvalidStatusError, match="256 bytes"):
            decode_status(*_longest(as_wire(versions[0]), as_wire(versions[1]), form))


# --- The documented dialect


def test_the_documented_status_is_read_in_both_encodings() -> None:
    plain = {"version": "0.1.0", "mtu": 512}
    midway = {**plain, "status": {"version": "0.1.1", "offset": 512}}
    for value, status in (
        (plain, Status(b"0.1.0", 512)),
        (midway, Status(b"0.1.0", 512, None, Progress(b"0.1.1", 512))),
    ):
        assert decode(value) == (status, DOCUMENTED_CBOR)
        assert decode_json(json.dumps(value)) == (status, DOCUMENTED_JSON)


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (Sync(b"0.1.0", 300), {"op": "SYNC", "version": "0.1.0", "poll": 300}),
        (
            Write(b"0.1.1", 0, b"hello"),
            {"op": "WRITE", "version": "0.1.1", "offset": 0, "size": 5, "data": "aGVsbG8="},
        ),
        (Swap(b"0.1.1", CHECKSUM), {"op": "SWAP", "version": "0.1.1", "checksum": CHECKSUM.hex()}),
    ],
)
def test_documented_commands_look_as_documented(command: Command, shown: dict[str, Any]) -> None:
    assert json.loads(encode_command(command, DOCUMENTED_JSON)) == shown
    assert documented_json(command) == shown
    in_cbor = cbor2.loads(encode_command(command, DOCUMENTED_CBOR))
    if "data" in shown:
        shown = {**shown, "data": base64.b64decode(shown["data"])}
    assert in_cbor == shown


def test_the_documented_dialect_has_no_wait_but_people_are_shown_one() -> None:
    assert not DOCUMENTED_JSON.has_wait
    with pytest.raises(ValueError, match="no WAIT"):
        encode_command(Wait(10), DOCUMENTED_JSON)
    assert documented_json(Wait(10)) == {"op": "WAIT", "poll": 10}


# --- Which dialect


@pytest.mark.parametrize(
    ("value", "dialect"),
    [
        ({0: b"1"}, Dialect.PACKED),
        ({0: b"1", "extra": 1}, Dialect.PACKED),
        ({"version": "1"}, Dialect.DOCUMENTED),
        ({"version": "1", "status": None}, Dialect.DOCUMENTED),
        ({"version": "1", "status": None, "correlation_id": 1}, Dialect.DOCUMENTED),
        ({"version": "1", "status": None, "correlation_id": "ignored"}, Dialect.DOCUMENTED),
        ({"version": b"1", "status": None}, Dialect.DOCUMENTED),
        ({"version": "1", "status": None, "update": None}, Dialect.NAMED),
        ({"version": "1", "update": None}, Dialect.NAMED),
        ({"version": "1", "correlation_id": None}, Dialect.NAMED),
        ({"version": b"1"}, Dialect.NAMED),
        ({"version": "1", 5: 1}, Dialect.DOCUMENTED),
    ],
)
def test_the_dialect_follows_from_the_keys(value: object, dialect: Dialect) -> None:
    assert decode(value)[1].dialect is dialect


def test_named_json_is_answered_with_the_documentations_tagged_json() -> None:
    status, form = decode_json('{"version": "0.1.0", "correlation_id": 1, "update": {"version": "0.1.1", "offset": 0}}')
    assert status == Status(b"0.1.0", None, 1, Progress(b"0.1.1", 0))
    assert form == AnswerForm(Dialect.NAMED, Encoding.JSON, correlation_id=1)
    answers: list[tuple[Command, object]] = [
        (
            Write(b"0.1.1", 0, b"hello"),
            {"write": {"version": "0.1.1", "offset": 0, "data": "aGVsbG8=", "correlation_id": 1}},
        ),
        (Swap(b"0.1.1", CHECKSUM), {"swap": {"version": "0.1.1", "checksum": CHECKSUM.hex(), "correlation_id": 1}}),
        (Sync(b"0.1.0", 300), {"sync": {"version": "0.1.0", "poll": 300, "correlation_id": 1}}),
        (Wait(10), {"wait": {"poll": 10, "correlation_id": 1}}),
    ]
    for command, answer in answers:
        assert json.loads(encode_command(command, form)) == answer


def test_options_that_are_none_are_left_out_of_tagged_json() -> None:
    assert json.loads(encode_command(Sync(b"0.1.0"), NAMED_JSON)) == {"sync": {"version": "0.1.0"}}


def test_a_version_that_is_no_text_is_echoed_as_it_came() -> None:
    status, form = decode({0: b"\xff\x00"})
    assert cbor2.loads(encode_command(Sync(status.version, 1), form)) == {1: {0: b"\xff\x00", 1: None, 2: 1}}


def test_a_dialect_that_answers_with_text_takes_no_other_version() -> None:
    with pytest.raises(InvalidStatusError, match="version"):
        decode({"version": b"\xff", "status": None})


def test_devices_of_the_embedded_family_hold_sixteen_bytes_of_version() -> None:
    assert PACKED.takes_version(b"0123456789abcdef")
    assert not PACKED.takes_version(b"0123456789abcdefg")
    assert not NAMED_JSON.takes_version(b"0123456789abcdefg")
    assert DOCUMENTED_JSON.takes_version(b"0123456789abcdefg")


# --- CBOR or JSON


@pytest.mark.parametrize("content_type", ["application/cbor", "application/senml+cbor", "Application/CBOR; x=y"])
def test_what_claims_to_be_cbor_is_read_as_cbor(content_type: str) -> None:
    assert decode_status(bytes.fromhex(STATUSES[0][2]), content_type)[1].encoding is Encoding.CBOR
    with pytest.raises(InvalidStatusError):
        decode_json('{"version": "0.1.0"}', content_type)


@pytest.mark.parametrize(
    "content_type", ["application/json", "application/vnd.x+json", "application/json;charset=utf-8"]
)
def test_what_claims_to_be_json_is_read_as_json(content_type: str) -> None:
    assert decode_json('{"version": "0.1.0"}', content_type)[1].encoding is Encoding.JSON
    with pytest.raises(InvalidStatusError):
        decode_status(bytes.fromhex(STATUSES[0][2]), content_type)


@pytest.mark.parametrize("content_type", [None, "", "application/octet-stream", "text/plain", "nonsense"])
def test_anything_else_is_told_from_the_bytes(content_type: str | None) -> None:
    assert decode_json(' \r\n\t{"version": "0.1.0"}', content_type)[1].encoding is Encoding.JSON
    assert decode_status(bytes.fromhex(STATUSES[0][2]), content_type)[1].encoding is Encoding.CBOR
    indefinite = b"\xbf" + cbor2.dumps("version") + cbor2.dumps("0.1.0") + b"\xff"
    assert decode_status(indefinite, content_type)[0] == Status(b"0.1.0")


# --- What is no status

NOT_A_STATUS: list[tuple[str, object]] = [
    ("no map", [1, 2]),
    ("no version", {"mtu": 512}),
    ("no version, packed", {1: 512}),
    ("a version that is null", {"version": None}),
    ("a version that is a number", {"version": 1}),
    ("a version of each kind", {0: b"1", "version": "1"}),
    ("False is not the key 0", {False: b"1"}),
    ("0.0 is not the key 0", {0.0: b"1"}),
    ("an mtu of 0", {"version": "1", "mtu": 0}),
    ("an mtu below 0", {"version": "1", "mtu": -1}),
    ("an mtu above u32", {"version": "1", "mtu": 2**32}),
    ("an mtu that is true", {"version": "1", "mtu": True}),
    ("an mtu that is a float", {"version": "1", "mtu": 512.0}),
    ("an mtu that is text", {"version": "1", "mtu": "512"}),
    ("a correlation id that is text", {0: b"1", 2: "7"}),
    ("a correlation id above u32", {"version": b"1", "correlation_id": 2**32}),
    ("a correlation id below 0", {"version": "1", "update": None, "correlation_id": -1}),
    ("progress that is a list", {"version": "1", "status": [1]}),
    ("progress that is true", {"version": "1", "status": True}),
    ("progress without a version", {"version": "1", "status": {"offset": 1}}),
    ("progress without an offset", {"version": "1", "status": {"version": "2"}}),
    ("progress with an offset of null", {0: b"1", 3: {0: b"2", 1: None}}),
    ("an offset below 0", {"version": "1", "status": {"version": "2", "offset": -1}}),
    ("an offset above u32", {0: b"1", 3: {0: b"2", 1: 2**32}}),
    ("an offset that is a float", {"version": "1", "status": {"version": "2", "offset": 1.0}}),
    ("text keys in packed progress", {0: b"1", 3: {"version": b"2", "offset": 1}}),
    ("NaN", {"version": "1", "extra": float("nan")}),
    ("NaN, deep inside", {"version": "1", "extra": [[{"a": float("nan")}]]}),
    ("NaN as a key", {"version": "1", float("nan"): 1}),
    ("undefined", {"version": "1", "extra": cbor2.undefined}),
]


@pytest.mark.parametrize("value", [value for _, value in NOT_A_STATUS], ids=[name for name, _ in NOT_A_STATUS])
def test_what_is_no_status_is_refused_with_a_reason(value: object) -> None:
    with pytest.raises(InvalidStatusError) as refusal:
        decode(value)
    assert len(str(refusal.value)) > 5
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "wire",
    [
        b"",
        b"\x00",
        b"null",
        b"[]",
        b'"text"',
        bytes.fromhex("a40045302e312e300119020002f603f600"),  # a byte is left over
        bytes.fromhex("a40045302e312e300119020002f603"),  # cut short
        bytes.fromhex("a2 00 4131 00 4132"),  # a key twice
        bytes.fromhex("a1 00 62 c328"),  # text that is not UTF-8
        bytes.fromhex("a1 00 63 eda080"),  # a surrogate
        bytes.fromhex("a2 00 4131 01 c2 42 0200"),  # a bignum
        bytes.fromhex("a2 00 4131 05 c1 00"),  # a date
        bytes.fromhex("a2 00 4131 05 c0 61 31"),
        bytes.fromhex("a2 00 4131 05 d8 1c 80"),  # shared values
        bytes.fromhex("a2 00 4131 05 d8 1d 00"),
        bytes.fromhex("a2 00 4131 05 d9 0100 80"),  # string references
        bytes.fromhex("a2 00 4131 05 d9 0102 81 01"),  # a set
        bytes.fromhex("a2 00 4131 05 d9 ffff 00"),  # a tag that nobody knows
        bytes.fromhex("a2 00 4131 05 f0"),  # a simple value
        b'{"version": "1"} x',
        b'{"version": "1"}{}',
        b'{"version": "1", "version": "2"}',
        b'{"version": "1", "x": {"a": 1, "a": 2}}',
        b'{"version": "1", "x": NaN}',
        b'{"version": "1", "x": Infinity}',
        b'{"version": "1", "x": 1e999}',
        b'{"version": "\\ud800"}',
        b'{"version": "1", "x": "\\udc00"}',
        b'{"version": "\xff"}',
        b'\xef\xbb\xbf{"version": "1"}',
        '{"version": "1"}'.encode("utf-16"),
        b'{"version": "1", "mtu": ' + b"9" * 5000 + b"}",
        b'{"version": "1", "x": ' + b"[" * 60_000,
        b'{"version": "1", "x": ' + b"[" * 30_000 + b"]" * 30_000 + b"}",
        b"\xa2\x00\x41\x31\x05" + b"\x81" * 60_000,
        b"\xa2\x00\x41\x31\x05\x9b" + b"\xff" * 8,
        b"\xa2\x00\x41\x31\x05\x5b" + b"\x7f" * 8,
    ],
)
def test_bytes_that_hold_no_status_are_refused_with_a_reason(wire: bytes) -> None:
    with pytest.raises(InvalidStatusError) as refusal:
        decode_status(wire)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("wrap", [lambda inner: [inner], lambda inner: {"a": inner}])
def test_containers_may_be_nested_eight_deep_and_no_deeper(wrap: Any) -> None:
    inner: object = 1
    for _ in range(7):
        inner = wrap(inner)
    eight, nine = {"version": "1", "x": inner}, {"version": "1", "x": wrap(inner)}
    assert decode(eight)[0] == Status(b"1")
    assert decode_json(json.dumps(eight))[0] == Status(b"1")
    with pytest.raises(InvalidStatusError):
        decode(nine)
    with pytest.raises(InvalidStatusError, match="nested"):
        decode_json(json.dumps(nine))


def test_unknown_keys_are_ignored() -> None:
    extra: dict[Any, Any] = {"battery": 3.7, "name": "ü", "ok": True, "list": [1, {"a": b"b"}], "none": None}
    assert decode({"version": "1", **extra})[0] == Status(b"1")
    assert decode({0: b"1", 9: 1, -1: 2, b"x": 3, **extra})[0] == Status(b"1")
    assert decode_json('{"version": "1", "status": {"version": "2", "offset": 3, "x": [0.5]}}')[0].progress == Progress(
        b"2", 3
    )


def test_absent_options_may_be_null() -> None:
    assert decode_json('{"version": "1", "mtu": null, "status": null}') == (Status(b"1"), DOCUMENTED_JSON)


@given(st.binary(max_size=200), st.sampled_from([None, "application/cbor", "application/json", "text/plain"]))
def test_any_bytes_are_a_status_or_refused_with_a_reason(payload: bytes, content_type: str | None) -> None:
    try:
        status, form = decode_status(payload, content_type)
    except InvalidStatusError as refusal:
        assert str(refusal)
    else:
        assert encode_command(Sync(status.version, 1), form)


_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**64), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.integers(0, 4) | st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)
_KEYS = st.sampled_from([0, 1, 2, 3, "version", "mtu", "correlation_id", "update", "status", "offset", True, 1.0])


@given(st.dictionaries(_KEYS, _VALUES | st.dictionaries(_KEYS, _VALUES, max_size=3), max_size=5))
def test_any_map_is_a_status_or_refused_with_a_reason(value: dict[Any, Any]) -> None:
    try:
        status, form = decode(value)
    except InvalidStatusError as refusal:
        assert str(refusal)
    else:
        assert encode_command(Sync(status.version, 1), form)
        for number in (status.mtu, status.correlation_id, status.progress and status.progress.offset):
            assert number is None or (type(number) is int and 0 <= number < 2**32)
