"""Events in, commands and outcomes out: every row of the contract's tables, over real sockets."""

import base64
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import cbor2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.drogue import Drogue
from tests.support.firmware import Published, blob_path, publish, random_bytes
from tests.support.function import Answer, Function, event, parse_outcome
from tests.support.http import Response
from tests.support.statuses import record_start

STATUS = {"version": "0.1.0", "mtu": 512}
PACKED = {0: b"0.1.0", 1: 512, 2: 7, 3: None}


def post(function: Function, device: str, status: object, **attributes: str | None) -> Answer:
    """Posts a status in CBOR, or in JSON where it is a str."""
    if isinstance(status, str):
        return function.post(event(device, datacontenttype="application/json", **attributes), status.encode())
    return function.post(event(device, datacontenttype="application/cbor", **attributes), cbor2.dumps(status))


def only_command(drogue: Drogue, device: str) -> Any:
    (command,) = drogue.commands_for(device)
    assert (command.application, command.name, command.content_type) == ("example", "dfu", "application/cbor")
    return cbor2.loads(command.payload)


@pytest.fixture(scope="session")
def released(firmware: Path) -> Published:
    return publish(firmware, "app", "0.1.1", random_bytes(1300))


@pytest.fixture
def begun(drogue: Drogue, managed: str, released: Published) -> str:
    """A device whose update to what is `released` was begun."""
    record_start(drogue, managed, released.version, released.checksum)
    return managed


@pytest.fixture
def managed(drogue: Drogue, device: str, released: Published) -> str:
    """A device that should run what is `released`."""
    drogue.put_image("example", device, f"app:{released.version}")
    return device


# --- Commands


def test_a_device_without_firmware_is_withheld_and_told_that_its_own_version_is_fine(
    function: Function, drogue: Drogue, device: str
) -> None:
    answer = post(function, device, {"version": "7.7"})
    assert (answer.status, answer.outcome, answer.body) == (204, 'withheld; reason="unmanaged"', b"")
    assert only_command(drogue, device) == {"op": "SYNC", "version": "7.7", "poll": 300}


def test_a_device_on_its_target_is_in_sync(function: Function, drogue: Drogue, managed: str) -> None:
    answer = post(function, managed, {"version": "0.1.1"})
    assert (answer.status, answer.outcome, answer.body) == (204, "sync", b"")
    assert only_command(drogue, managed) == {"op": "SYNC", "version": "0.1.1", "poll": 300}


def test_a_device_behind_its_target_gets_the_first_block(
    function: Function, drogue: Drogue, managed: str, released: Published
) -> None:
    answer = post(function, managed, STATUS)
    assert (answer.status, answer.outcome) == (204, 'write; version="0.1.1"; offset=0; size=512')
    data = released.content[:512]
    assert only_command(drogue, managed) == {"op": "WRITE", "version": "0.1.1", "offset": 0, "size": 512, "data": data}


def test_a_device_midway_gets_the_rest(function: Function, drogue: Drogue, begun: str, released: Published) -> None:
    answer = post(function, begun, {**STATUS, "status": {"version": "0.1.1", "offset": 1024}})
    assert answer.outcome == 'write; version="0.1.1"; offset=1024; size=276'
    assert only_command(drogue, begun)["data"] == released.content[1024:]


@pytest.mark.parametrize("offset", [1300, 1312])
def test_a_device_that_has_all_is_told_to_swap(
    function: Function, drogue: Drogue, begun: str, released: Published, offset: int
) -> None:
    answer = post(function, begun, {**STATUS, "status": {"version": "0.1.1", "offset": offset}})
    assert (answer.status, answer.outcome) == (204, 'swap; version="0.1.1"')
    command = only_command(drogue, begun)
    assert command == {"op": "SWAP", "version": "0.1.1", "checksum": released.checksum.hex()}


@pytest.mark.parametrize("offset", [512, 1300, 1312])
@pytest.mark.parametrize("status", [STATUS, PACKED])
def test_a_device_midway_of_which_nothing_is_recorded_begins_anew(
    function: Function, drogue: Drogue, managed: str, status: dict[Any, Any], offset: int
) -> None:
    progress = {"status": {"version": "0.1.1", "offset": offset}} if status is STATUS else {3: {0: b"0.1.1", 1: offset}}
    answer = post(function, managed, {**status, **progress})
    assert answer.outcome.startswith('write; version="0.1.1"; offset=0; ')
    assert drogue.reported(managed)["update"]["restart"]["midway"] == offset


def test_packed_devices_are_answered_packed_with_their_correlation_id(
    function: Function, drogue: Drogue, managed: str, released: Published
) -> None:
    assert post(function, managed, PACKED).status == 204
    assert only_command(drogue, managed) == {2: {0: b"0.1.1", 1: 7, 2: 0, 3: released.content[:512]}}


def test_json_is_answered_in_json(function: Function, drogue: Drogue, managed: str, released: Published) -> None:
    assert post(function, managed, json.dumps(STATUS)).status == 204
    (command,) = drogue.commands_for(managed)
    assert command.content_type == "application/json"
    data = base64.b64encode(released.content[:512]).decode()
    assert json.loads(command.payload) == {"op": "WRITE", "version": "0.1.1", "offset": 0, "size": 512, "data": data}


def test_without_an_mtu_a_block_has_512_bytes_and_a_huge_mtu_is_cut(
    function: Function, drogue: Drogue, device: str, firmware: Path
) -> None:
    publish(firmware, "big", "1", random_bytes(200_000))
    drogue.put_image("example", device, "big:1")
    assert post(function, device, {"version": "0"}).outcome == 'write; version="1"; offset=0; size=512'
    assert post(function, device, {"version": "0", "mtu": 2**32 - 1}).status == 204
    first, second = drogue.commands_for(device)
    assert len(cbor2.loads(first.payload)["data"]) == 512
    # As much as the cloud takes, in whole flash words.
    assert 65_536 - 32 < len(second.payload) <= 65_536
    assert len(cbor2.loads(second.payload)["data"]) % 32 == 0


@pytest.mark.parametrize("image", ["app:0.1.1", "app@{digest}"])
@pytest.mark.parametrize("section", ["container", "oci"])
def test_the_application_names_the_firmware_of_devices_that_name_none(
    function: Function, drogue: Drogue, device: str, released: Published, section: str, image: str
) -> None:
    image = image.format(digest=released.digest)
    drogue.put(device, spec={"firmware": {section: {"image": image}}})
    drogue.put(device, "thing", spec={"unrelated": 1})
    answer = function.post(event("thing", device), b'{"version": "0.1.0"}')
    assert answer.outcome == 'write; version="0.1.1"; offset=0; size=512'


@pytest.mark.parametrize("name", ["a/b", "a%20b%", "a b", "gerät 7", "日本", "a?b#c", "x:y@z", "'\"\\", "+&=;"])
def test_devices_of_any_name_are_read_and_answered(function: Function, drogue: Drogue, name: str, device: str) -> None:
    name = f"{name} {device}"
    drogue.put("example", name, spec={})
    raw = function.post(event(name), b'{"version": "1"}')
    structured = function.post_structured({**event(name), "data": {"version": "1"}})
    assert (raw.status, structured.status) == (204, 204), raw.body
    assert [command.device for command in drogue.commands_for(name)] == [name, name]


def test_a_gateway_is_not_answered_in_place_of_its_device(function: Function, drogue: Drogue, device: str) -> None:
    post(function, device, STATUS, sender="gateway")
    assert not drogue.commands_for("gateway")
    assert only_command(drogue, device)["op"] == "SYNC"


# --- CloudEvents


def test_structured_events_carry_data_as_json_and_as_base64(function: Function, drogue: Drogue, device: str) -> None:
    in_json = {**event(device), "data": {"version": "1"}}
    in_cbor = {
        **event(device, datacontenttype="application/cbor"),
        "data_base64": base64.b64encode(cbor2.dumps({0: b"1"})).decode(),
    }
    assert function.post_structured(in_json).status == 204
    assert function.post_structured(in_cbor).status == 204
    first, second = drogue.commands_for(device)
    assert (first.content_type, json.loads(first.payload)["op"]) == ("application/json", "SYNC")
    assert (second.content_type, cbor2.loads(second.payload)) == ("application/cbor", {1: {0: b"1", 1: None, 2: 300}})


@pytest.mark.parametrize(
    "attributes",
    [
        {"type": "io.drogue.connection.v1", "subject": "connection"},
        {"type": "com.example.other"},
        {"subject": "temperature"},
        {"subject": None},
        {"type": "io.drogue.registry.v1", "subject": "devices"},
    ],
)
def test_other_events_are_ignored(
    function: Function, drogue: Drogue, device: str, attributes: dict[str, str | None]
) -> None:
    answer = function.post(event(device, **attributes), b"whatever")
    assert (answer.status, answer.outcome, answer.body) == (204, "ignored", b"")
    assert not drogue.commands_for(device)


@pytest.mark.parametrize("missing", ["specversion", "id", "source", "type", "application", "device"])
def test_events_without_a_needed_attribute_are_invalid(function: Function, device: str, missing: str) -> None:
    for answer in (
        function.post(event(device, **{missing: None}), b'{"version": "1"}'),
        function.post_structured({**event(device, **{missing: None}), "data": {"version": "1"}}),
    ):
        assert (answer.status, answer.outcome) == (400, "invalid")
        assert missing in answer.reason


def test_an_event_without_a_time_is_answered(function: Function, drogue: Drogue, device: str) -> None:
    assert post(function, device, STATUS, time=None).status == 204
    assert drogue.commands_for(device)


def test_errors_are_problem_documents(function: Function, device: str) -> None:
    answer = post(function, device, {"mtu": 5})
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json["status"] == 400
    assert answer.json["title"] == "Bad Request"
    assert "version" in answer.json["detail"]


@pytest.mark.parametrize(
    "payload", [b"", b"\x00", b"[]", b'{"version": "1", "mtu": 0}', b'{"version": NaN}', b'{"version": "\\ud800"}']
)
def test_what_is_no_status_is_invalid_and_gets_no_command(
    function: Function, drogue: Drogue, device: str, payload: bytes
) -> None:
    answer = function.post(event(device), payload)
    assert (answer.status, answer.outcome) == (400, "invalid")
    assert not drogue.commands_for(device)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(payload=st.binary(max_size=300), content_type=st.sampled_from([None, "application/cbor", "application/json"]))
def test_any_payload_is_answered_with_204_or_400(
    function: Function, device: str, payload: bytes, content_type: str | None
) -> None:
    assert function.post(event(device, datacontenttype=content_type), payload).status in (204, 400)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=300))
def test_any_structured_body_is_answered_with_204_or_400(function: Function, body: bytes) -> None:
    answer = function.request("POST", "/", [("Content-Type", "application/cloudevents+json")], body)
    assert answer.status in (204, 400)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_above_64_kib_is_too_large_and_64_kib_are_not(function: Function, device: str, chunked: bool) -> None:
    headers = [(f"ce-{name}", value.encode()) for name, value in event(device).items() if value]
    padded = b'{"version": "1"}'.ljust(64 * 1024)

    def body(content: bytes) -> Any:
        return [content[:1000], content[1000:]] if chunked else content

    assert function.request("POST", "/", headers, body(padded)).status == 204
    answer = function.request("POST", "/", headers, body(padded + b" "))
    assert (answer.status, answer.outcome) == (413, "invalid")
    answer = function.request("POST", "/", headers, body(padded * 40))
    assert (answer.status, answer.outcome) == (413, "invalid")


# --- The Things Network


def test_a_lorawan_device_is_answered_on_its_port(function: Function, drogue: Drogue, device: str) -> None:
    lorawan = event(device, subject="223", lorawanport="223", datacontenttype="application/octet-stream")
    assert function.post(lorawan, cbor2.dumps(PACKED)).status == 204
    (command,) = drogue.commands_for(device)
    assert (command.name, command.content_type) == ("port:223", "application/cbor")
    assert cbor2.loads(command.payload) == {1: {0: b"0.1.0", 1: 7, 2: 300}}


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (cbor2.dumps(PACKED), {1: {0: b"0.1.0", 1: 7, 2: 300}}),
        (b'{"version": "1"}', {"op": "SYNC", "version": "1", "poll": 300}),
        (b'{"version": "1", "update": null}', {"Sync": {"version": "1", "correlation_id": None, "poll": 300}}),
    ],
)
def test_the_status_is_found_in_a_whole_uplink_and_the_answer_is_cbor_always(
    function: Function, drogue: Drogue, device: str, payload: bytes, expected: object
) -> None:
    uplink = {
        "end_device_ids": {"device_id": device, "application_ids": {"application_id": "example"}},
        "uplink_message": {
            "f_port": 223,
            "frm_payload": base64.b64encode(payload).decode(),
            "rx_metadata": [{"gateway_ids": {"gateway_id": "gw"}, "rssi": -35.5, "location": {"latitude": 59.9}}],
            "settings": {"data_rate": {"lora": {"bandwidth": 125000}}},
        },
    }
    lorawan = event(device, subject="223", lorawanport="223", datacontenttype="application/json")
    assert function.post(lorawan, json.dumps(uplink).encode()).status == 204
    (command,) = drogue.commands_for(device)
    assert (command.name, command.content_type, cbor2.loads(command.payload)) == (
        "port:223",
        "application/cbor",
        expected,
    )


@pytest.mark.parametrize("uplink", ['{"uplink_message": {}}', '{"uplink_message": {"frm_payload": "?"}}', "{"])
def test_an_uplink_without_a_payload_is_invalid(function: Function, device: str, uplink: str) -> None:
    assert function.post(event(device, subject="223"), uplink.encode()).status == 400


# --- Age and identity


def ago(**parts: float) -> str:
    return (datetime.now(UTC) - timedelta(**parts)).isoformat()


def test_an_event_that_is_too_old_is_stale(function: Function, drogue: Drogue, device: str) -> None:
    answer = post(function, device, STATUS, time=ago(seconds=26))
    assert (answer.status, answer.outcome, answer.body) == (204, "stale", b"")
    assert not drogue.commands_for(device)


@pytest.mark.parametrize("ahead", [3600, None])
def test_an_event_from_the_future_is_answered(
    function: Function, drogue: Drogue, device: str, ahead: int | None
) -> None:
    time = ago(seconds=-ahead) if ahead else None
    assert post(function, device, STATUS, time=time).status == 204
    assert drogue.commands_for(device)


def test_a_second_delivery_is_a_duplicate_and_sends_nothing(function: Function, drogue: Drogue, device: str) -> None:
    first = event(device)
    assert function.post(first, b'{"version": "1"}').outcome.startswith("withheld")
    again = function.post(first, b'{"version": "1"}')
    assert (again.status, again.outcome, again.body) == (204, "duplicate", b"")
    assert len(drogue.commands_for(device)) == 1


def test_the_same_id_from_another_source_is_another_event(function: Function, drogue: Drogue, device: str) -> None:
    first = event(device)
    function.post(first, b'{"version": "1"}')
    assert function.post({**first, "source": "/other"}, b'{"version": "1"}').status == 204
    assert len(drogue.commands_for(device)) == 2


def test_an_event_that_was_not_answered_is_answered_when_it_is_delivered_again(
    function: Function, drogue: Drogue, device: str
) -> None:
    drogue.command_answers[device] = lambda _: Response(503)
    first = event(device)
    answer = function.post(first, b'{"version": "1"}')
    assert answer.status == 503
    del drogue.command_answers[device]
    assert function.post(first, b'{"version": "1"}').outcome.startswith("withheld")


def test_an_event_that_could_not_be_decided_is_answered_when_it_is_delivered_again(
    function: Function, drogue: Drogue, device: str
) -> None:
    for status, outcome in ((503, "retry"), (404, "failed")):
        first = event(device)
        drogue.registry_answers["example", device] = lambda _, status=status: Response(status)  # type: ignore[misc]
        assert function.post(first, b'{"version": "1"}').outcome.startswith(outcome)
        del drogue.registry_answers["example", device]
        assert function.post(first, b'{"version": "1"}').outcome.startswith("withheld")
        function.post(event(device, type="io.drogue.registry.v1", subject="devices"), b"")


# --- What goes wrong


def failed(answer: Answer) -> str:
    """The reason of a failure, which the header and the problem document have to agree about."""
    assert answer.status == 422
    assert parse_outcome(answer) == ("failed", {"reason": answer.reason})
    return answer.reason


def test_an_unknown_device_fails_and_gets_nothing(function: Function, drogue: Drogue) -> None:
    assert failed(post(function, "nobody", PACKED)) == (
        "device registry: 404 for device nobody of application example "
        "(no such device, wrong DROGUE_API_URL, or not a member of the application)"
    )
    assert not drogue.commands_for("nobody")


def test_an_application_of_others_fails_and_the_reason_says_that_we_may_be_no_member(
    function: Function, drogue: Drogue
) -> None:
    drogue.put("others", spec={})
    drogue.put("others", "thing", spec={})
    drogue.roles["others"] = None
    assert "not a member" in failed(function.post(event("thing", "others"), b'{"version": "1"}'))


def test_an_unknown_application_fails(function: Function) -> None:
    assert "404 for device thing of application nowhere" in failed(
        function.post(event("thing", "nowhere"), b'{"version": "1"}')
    )


@pytest.mark.usefixtures("released")
@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ("app:9.9.9", "no tag 9.9.9 in the layout app"),
        ("nothing", "no image layout nothing"),
        ("../app:0.1.1", "invalid reference"),
        ("/etc/passwd", "invalid reference"),
        ("localhost:5000/app", "invalid reference"),
        ("app@sha256:123", "invalid reference"),
        ("app@sha256:" + "0" * 64, "no blobs/sha256/"),
        ("app:" + "x" * 200, "invalid reference"),
        ("ünïcode", "invalid reference"),
    ],
)
@pytest.mark.parametrize("status", [PACKED, STATUS])
def test_what_is_not_there_fails_and_the_device_is_told_to_wait_where_it_can_be(
    function: Function, drogue: Drogue, device: str, image: str, reason: str, status: object
) -> None:
    drogue.put_image("example", device, image)
    assert reason in failed(post(function, device, status))
    commands = [cbor2.loads(command.payload) for command in drogue.commands_for(device)]
    assert commands == ([{0: {0: 7, 1: 300}}] if status is PACKED else [])


@pytest.mark.usefixtures("released")
@pytest.mark.parametrize(
    "section",
    [
        [],
        "container",
        {"container": []},
        {"container": {}},
        {"container": {"image": 5}},
        {"container": {"image": ""}},
        {"container": {"image": "app:0.1.1", "imagePullPolicy": "Sometimes"}},
        {"container": {"image": "app:0.1.1"}, "oci": {"image": "app:0.1.1"}},
        {"container": {"image": "app:0.1.1"}, "file": {"name": "x"}},
    ],
)
def test_a_malformed_section_fails_and_does_not_fall_back(
    function: Function, drogue: Drogue, device: str, section: object
) -> None:
    drogue.put(device, spec={"firmware": {"container": {"image": "app:0.1.1"}}})
    drogue.put(device, "thing", spec={"firmware": section})
    answer = function.post(event("thing", device, datacontenttype="application/cbor"), cbor2.dumps(PACKED))
    assert "the device's spec.firmware" in failed(answer)
    assert cbor2.loads(drogue.commands_for("thing")[-1].payload) == {0: {0: 7, 1: 300}}


@pytest.mark.parametrize(
    ("source", "setting"),
    [({"file": {"name": "x"}}, "FIRMWARE_DIR"), ({"hawkbit": {"controller": "x"}}, "HAWKBIT_URL")],
)
def test_a_source_without_its_setting_fails(
    function: Function, drogue: Drogue, device: str, source: object, setting: str
) -> None:
    drogue.put("example", device, spec={"firmware": source})
    answer = post(function, device, PACKED)
    assert parse_outcome(answer) == ("failed", {"reason": "unsupported-source"})
    assert f"{setting} is not set" in answer.reason


def test_a_version_that_the_device_cannot_hold_fails_for_the_embedded_family_only(
    function: Function, drogue: Drogue, device: str, firmware: Path
) -> None:
    publish(firmware, "long", "0123456789abcdefg", b"x" * 32, tag="1")
    drogue.put_image("example", device, "long:1")
    assert failed(post(function, device, PACKED)) == "version-too-long"
    assert cbor2.loads(drogue.commands_for(device)[0].payload) == {0: {0: 7, 1: 300}}
    assert post(function, device, STATUS).outcome == 'write; version="0123456789abcdefg"; offset=0; size=32'


def test_a_version_beyond_ascii_is_a_display_string(
    function: Function, drogue: Drogue, device: str, firmware: Path
) -> None:
    publish(firmware, "display", 'Grün "1%', b"x" * 32, tag="1")
    drogue.put_image("example", device, "display:1")
    answer = post(function, device, STATUS)
    assert answer.outcome == 'write; version=%"Gr%c3%bcn %221%25"; offset=0; size=32'
    assert parse_outcome(answer) == ("write", {"version": 'Grün "1%', "offset": 0, "size": 32})


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b + b"x", lambda b: b[:700] + b"\0" + b[701:]])
def test_firmware_that_is_not_what_its_digest_says_is_never_served(
    function: Function, drogue: Drogue, device: str, firmware: Path, damage: Any
) -> None:
    good = publish(firmware, "damaged", "1", random_bytes(1300, device), tag=device)
    drogue.put_image("example", device, f"damaged:{device}")
    record_start(drogue, device, "1", good.checksum)
    midway = {0: b"0", 1: 512, 2: None, 3: {0: b"1", 1: 512}}
    assert post(function, device, midway).status == 204
    path = blob_path(firmware, "damaged", good)
    path.write_bytes(damage(good.content))
    assert "mismatch" in failed(post(function, device, midway))
    path.write_bytes(good.content)
    assert post(function, device, midway).status == 204
    blocks = [cbor2.loads(command.payload) for command in drogue.commands_for(device)]
    write = {2: {0: b"1", 1: None, 2: 512, 3: good.content[512:1024]}}
    assert blocks == [write, {0: {0: None, 1: 300}}, write]


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (401, "credentials"),
        (403, "credentials"),
        (404, "command API: 404 for application example"),
        (406, "rejected"),
        (302, "302"),
    ],
)
def test_a_command_that_is_refused_fails(
    function: Function, drogue: Drogue, device: str, status: int, reason: str
) -> None:
    drogue.command_answers[device] = lambda _: Response(status, headers={"Location": "/elsewhere"})
    assert reason in failed(post(function, device, PACKED))


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_command_that_could_not_be_taken_is_to_be_retried(
    function: Function, drogue: Drogue, device: str, status: int
) -> None:
    drogue.command_answers[device] = lambda _: Response(status, headers={"Retry-After": "3"})
    answer = post(function, device, PACKED)
    assert answer.status == 503
    assert answer.outcome.startswith("retry; reason=")
    assert answer.headers["retry-after"] == "3"


@pytest.mark.parametrize("whose", ["device", "application"])
@pytest.mark.parametrize(
    ("response", "status"),
    [
        (Response(500), 503),
        (Response(429), 503),
        (Response(401), 422),
        (Response(403), 422),
        (Response(302, headers={"Location": "/"}), 422),
        (Response(200, b"<html>"), 422),
        (Response(200, b"[]"), 422),
        (Response(200, b'{"spec": []}'), 422),
        (Response(200, b'{"spec": {}}'), 422),
        (Response(200, b'{"metadata": {"name": "lamp", "application": "APP"}, "spec": {}}'), 422),
        (Response(200, b'{"metadata": METADATA, "spec": null}'), 204),
        (Response(200, b'{"metadata": METADATA}'), 204),
    ],
)
def test_what_the_registry_says_decides(
    function: Function, drogue: Drogue, device: str, whose: str, response: Response, status: int
) -> None:
    path = (device,) if whose == "application" else (device, "thing")
    drogue.put(device, spec={})
    drogue.put(device, "thing", spec={})
    names = {"name": path[-1], "application": device} if len(path) > 1 else {"name": device}
    body = response.body.replace(b"METADATA", json.dumps(names).encode()).replace(b"APP", device.encode())
    drogue.registry_answers[path] = lambda _: replace(response, body=body)
    assert function.post(event("thing", device), b'{"version": "1"}').status == status


def test_a_failure_is_still_told_when_the_device_cannot_be_told_to_wait(
    function: Function, drogue: Drogue, device: str
) -> None:
    drogue.put_image("example", device, "nothing")
    drogue.command_answers[device] = lambda _: Response(503)
    assert "nothing" in failed(post(function, device, PACKED))


# --- What an answer rests on, and what it costs


def test_the_steady_state_costs_one_request(function: Function, drogue: Drogue, begun: str) -> None:
    def goes_on(offset: int) -> None:
        status = {**STATUS, "mtu": 16, "status": {"version": "0.1.1", "offset": offset}}
        assert parse_outcome(post(function, begun, status)) == (
            "write",
            {"version": "0.1.1", "offset": offset, "size": 16},
        )

    goes_on(512)  # which is reported: it is a tenth more
    reads = drogue.reads_of("example", begun)
    for number in range(1, 6):
        goes_on(512 + 16 * number)
    assert drogue.reads_of("example", begun) == reads == 1
    assert drogue.writes_of("example", begun) == 1
    assert len(drogue.commands_for(begun)) == 6


@pytest.mark.usefixtures("released")
def test_a_change_in_the_registry_is_seen_at_once_when_its_event_comes(
    function: Function, drogue: Drogue, device: str
) -> None:
    assert post(function, device, {"version": "0.1.1"}).outcome.startswith("withheld")
    drogue.put_image("example", device, "app:0.1.1")
    assert post(function, device, {"version": "0.1.1"}).outcome.startswith("withheld")
    function.post(event(device, type="io.drogue.registry.v1", subject="devices"), b"")
    assert post(function, device, {"version": "0.1.1"}).outcome == "sync"


# --- Other requests


@pytest.mark.parametrize("path", ["/healthz", "/health/liveness", "/readyz", "/health/readiness"])
def test_the_function_is_healthy(function: Function, path: str) -> None:
    assert function.request("GET", path).status == 200


def test_an_event_posted_elsewhere_is_invalid_and_not_to_be_retried(function: Function, device: str) -> None:
    answer = function.post(event(device), b'{"version": "1"}', path="/events")
    assert (answer.status, answer.outcome) == (400, "invalid")


def test_people_who_look_are_told(function: Function) -> None:
    assert function.request("GET", "/").status == 405
    assert "POST" in function.request("GET", "/").headers["allow"]
    assert function.request("GET", "/nowhere").status == 404


def test_every_event_leaves_one_line(function: Function, device: str) -> None:
    sent = event(device)
    function.post(sent, b'{"version": "1"}')
    (line,) = map(json.loads, function.logged(str(sent["id"])))
    assert line["level"] == "INFO"
    assert (line["outcome"], line["reason"], line["device"]) == ("withheld", "unmanaged", device)


@pytest.mark.parametrize("name", ["SCRIPT_NAME", "PATH_INFO", "Script-Name"])
def test_no_header_moves_the_function_to_another_path(function: Function, device: str, name: str) -> None:
    """Knative's queue-proxy is on the same host, and gunicorn trusts that with some headers."""
    answer = function.post(event(device), b'{"version": "1"}', headers={name: "/elsewhere"})
    assert (answer.status, answer.outcome) == (204, 'withheld; reason="unmanaged"')


@pytest.mark.parametrize("path", ["//", "///", "http://fleet.example", "http://fleet.example/", "/?a=b"])
def test_however_the_root_is_written_events_are_taken_there(function: Function, device: str, path: str) -> None:
    answer = function.post(event(device), b'{"version": "1"}', path=path)
    assert (answer.status, answer.outcome.partition(";")[0]) == (204, "withheld")
