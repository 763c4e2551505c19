"""Settings that are not the defaults, where a device or Drogue Cloud can tell."""

from collections.abc import Iterator
from pathlib import Path

import cbor2
import pytest

from tests.support.drogue import TOKEN, Drogue
from tests.support.firmware import Published, publish, random_bytes
from tests.support.function import Function, event
from tests.support.statuses import record_start

PACKED = {0: b"0.1.0", 1: None, 2: None, 3: None}


@pytest.fixture(scope="module")
def drogue() -> Iterator[Drogue]:
    with Drogue() as drogue:
        for application in ("farm", "Not_A_Component", "yard"):
            drogue.put(application, spec={})
            drogue.put(application, "pump", spec={})
            drogue.put(application, "Pump 7", spec={})
        yield drogue


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of image layouts for each application."""
    return tmp_path_factory.mktemp("layouts")


@pytest.fixture(autouse=True)
def released(drogue: Drogue, layouts: Path) -> Published:
    """Firmware of the application `farm`, in a repository named after the device, which is new."""
    for application in ("farm", "yard"):
        drogue.recreate(application, "pump", spec={})
    return publish(layouts / "farm", "pump", "2", random_bytes(1000), tag="stable")


@pytest.fixture(scope="module")
def function(drogue: Drogue, layouts: Path) -> Iterator[Function]:
    environment = {
        "DROGUE_API_URL": f"{drogue.url}/",
        "DROGUE_TOKEN": TOKEN,
        "FIRMWARE_REGISTRY": f"oci-layout:{layouts}/{{application}}",
        "FIRMWARE_DEFAULT_IMAGE": "{device}:stable",
        "SPEC_TTL_SECONDS": "0",
        "MANIFEST_TTL_SECONDS": "0",
        "POLL_SECONDS": "77",
        "MTU_DEFAULT": "100",
        "MTU_MAX": "200",
        "EVENT_MAX_AGE_SECONDS": "0",
        "LOG_FORMAT": "text",
    }
    with Function(environment) as function:
        yield function


def post(function: Function, application: str, device: str, status: object, **attributes: str | None) -> str:
    sent = event(device, application, datacontenttype="application/cbor", **attributes)
    return function.post(sent, cbor2.dumps(status)).outcome


def test_a_token_alone_is_sent_as_bearer(function: Function, drogue: Drogue) -> None:
    assert post(function, "farm", "pump", PACKED).startswith("write")
    assert drogue.authorizations == {f"Bearer {TOKEN}"}


def test_the_default_image_is_that_of_devices_for_which_nobody_names_one(
    function: Function, drogue: Drogue, layouts: Path
) -> None:
    assert post(function, "farm", "pump", PACKED) == 'write; version="2"; offset=0; size=100'
    publish(layouts / "farm", "own", "3", b"x" * 32)
    drogue.put_image("farm", "pump", "own:3")
    assert post(function, "farm", "pump", PACKED) == 'write; version="3"; offset=0; size=32'


def test_each_application_has_repositories_of_its_own(function: Function, drogue: Drogue) -> None:
    assert post(function, "farm", "pump", PACKED).startswith("write")
    assert post(function, "yard", "pump", PACKED) == 'failed; reason="no image layout pump"'
    assert cbor2.loads(drogue.commands[-1].payload) == {0: {0: None, 1: 77}}


@pytest.mark.parametrize(("application", "device"), [("Not_A_Component", "pump"), ("farm", "Pump 7")])
def test_a_name_that_no_reference_can_have_is_not_put_into_one(
    function: Function, drogue: Drogue, application: str, device: str
) -> None:
    outcome = post(function, application, device, PACKED)
    assert outcome.startswith("failed; reason=")
    assert "is not one valid path component" in outcome
    assert cbor2.loads(drogue.commands[-1].payload) == {0: {0: None, 1: 77}}


@pytest.mark.parametrize(("mtu", "size"), [(None, 100), (150, 150), (201, 200), (2**32 - 1, 200)])
def test_blocks_are_as_large_as_is_set(function: Function, mtu: int | None, size: int) -> None:
    assert post(function, "farm", "pump", {**PACKED, 1: mtu}) == f'write; version="2"; offset=0; size={size}'


def test_a_device_in_sync_is_told_when_to_ask_again(function: Function, drogue: Drogue) -> None:
    assert post(function, "farm", "pump", {**PACKED, 0: b"2"}) == "sync"
    assert cbor2.loads(drogue.commands[-1].payload) == {1: {0: b"2", 1: None, 2: 77}}


def test_with_no_age_set_an_event_of_any_age_is_answered(function: Function) -> None:
    assert post(function, "farm", "pump", PACKED, time="2020-01-01T00:00:00Z").startswith("write")


def test_with_nothing_to_be_remembered_each_event_sees_what_stands_there(
    function: Function, drogue: Drogue, layouts: Path, released: Published
) -> None:
    record_start(drogue, "pump", "2", released.checksum, "farm")
    midway = {**PACKED, 3: {0: b"2", 1: 500}}
    assert post(function, "farm", "pump", midway).startswith('write; version="2"; offset=500')
    publish(layouts / "farm", "pump", "3", b"x" * 32, tag="stable")
    assert post(function, "farm", "pump", midway).startswith('write; version="3"; offset=0')
    drogue.put_image("farm", "pump", "nowhere")
    assert post(function, "farm", "pump", midway) == 'failed; reason="no image layout nowhere"'


def test_people_can_read_the_log_and_nobody_can_forge_a_line(function: Function) -> None:
    sent = event('a b" outcome=sync', "farm")
    function.post(sent, b'{"version": "1"}')
    (line,) = function.logged(str(sent["id"]))
    assert "WARNING event outcome=failed " in line
    assert 'device="a b\\" outcome=sync"' in line


def test_other_applications_are_ignored_without_a_request(layouts: Path) -> None:
    with Drogue() as drogue:
        for application in ("farm", "yard"):
            drogue.put(application, spec={})
            drogue.put_image(application, "pump", "pump:stable")
        variables = {"FIRMWARE_REGISTRY": f"oci-layout:{layouts}/farm", "APPLICATIONS": "barn, farm"}
        with Function(drogue.environment | variables) as function:
            assert post(function, "yard", "pump", PACKED) == "ignored"
            sent = event("pump", "yard", datacontenttype="application/cbor")
            shown = function.post(sent, cbor2.dumps(PACKED), path="/preview").json
            assert (shown["outcome"], shown["reason"]) == ("ignored", "APPLICATIONS does not name yard")
            assert (drogue.reads, drogue.writes, drogue.commands) == ([], [], [])
            doubtful = event("pump", "yard", application=None)
            assert function.post(doubtful, b"").outcome == "invalid"
            assert post(function, "farm", "pump", PACKED).startswith("write")
            assert 'fleet_events_total{outcome="ignored"} 1.0' in function.request("GET", "/metrics").body.decode()


def test_a_prefix_before_an_asterisk_is_part_of_the_name(layouts: Path) -> None:
    publish(layouts, "farm-fw-pump", "5", b"x" * 32)
    publish(layouts, "farm-fw-more/pump", "6", b"x" * 32)
    with Drogue() as drogue:
        drogue.put("farm", spec={})
        variables = {"FIRMWARE_REGISTRY": f"oci-layout:{layouts}/{{application}}-fw-*", "SPEC_TTL_SECONDS": "0"}
        with Function(drogue.environment | variables) as function:
            for device, image in (("one", "pump:5"), ("two", "more/pump:6")):
                drogue.put_image("farm", device, image)
                assert post(function, "farm", device, PACKED) == f'write; version="{image[-1]}"; offset=0; size=32'


def test_devices_without_the_labels_are_left_to_others(layouts: Path) -> None:
    with Drogue() as drogue:
        drogue.put("farm", spec={"firmware": {"container": {"image": "pump:stable"}}})
        drogue.put("farm", "old", labels={"ring": "old", "site": "oslo"}, spec={"firmware": {"typo": 1}})
        drogue.put("farm", "new", labels={"ring": "new", "site": "oslo"}, spec={})
        variables = {"FIRMWARE_REGISTRY": f"oci-layout:{layouts}/farm", "DEVICE_LABELS": "site=oslo,ring=new"}
        with Function(drogue.environment | variables) as function:
            assert post(function, "farm", "old", PACKED) == "ignored"
            sent = event("old", "farm", datacontenttype="application/cbor")
            shown = function.post(sent, cbor2.dumps(PACKED), path="/preview").json
            assert shown["outcome"] == "ignored"
            assert shown["reason"] == "DEVICE_LABELS wants ring=new, which the device lacks"
            assert (drogue.writes, drogue.commands) == ([], [])
            assert post(function, "farm", "new", PACKED).startswith("write")
            assert [command.device for command in drogue.commands] == ["new"]
