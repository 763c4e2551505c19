"""The client of the device registry, against a registry on a real socket."""

import json
import select
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cbor2
import pytest

from fleet_fn.deadline import Deadline
from fleet_fn.drogue.device_registry import Desired, DeviceRegistry
from fleet_fn.drogue.spec_source import Image
from fleet_fn.drogue.spec_values import MalformedSpecError
from fleet_fn.drogue.status_report import Condition, Report
from fleet_fn.errors import PermanentError
from fleet_fn.http.authorization import Fixed, basic
from fleet_fn.http.client import HttpClient
from tests.support.drogue import TOKEN, USER, Drogue
from tests.support.firmware import publish
from tests.support.function import Function, event
from tests.support.http import Answer, Request, Response

APPLICATION, DEVICE = "example", "device"
IMAGE = {"container": {"image": "firmware:1"}}


@pytest.fixture
def drogue() -> Iterator[Drogue]:
    with Drogue() as cloud:
        cloud.put(APPLICATION, spec={"firmware": IMAGE})
        yield cloud


@contextmanager
def client(drogue: Drogue) -> Iterator[DeviceRegistry]:
    with closing(HttpClient("device registry", drogue.url, authorization=Fixed(basic(USER, TOKEN)))) as upstream:
        yield DeviceRegistry(upstream)


@pytest.fixture
def registry(drogue: Drogue) -> Iterator[DeviceRegistry]:
    with client(drogue) as registry:
        yield registry


def desired(registry: DeviceRegistry, max_age: float = 0.0) -> Desired:
    return registry.read_desired(APPLICATION, DEVICE, max_age, Deadline(4))


# --- Keys -------------------------------------------------------------------------------------------------------------


def test_mtu_and_midway_of_the_device_win_over_those_of_the_application(
    drogue: Drogue, registry: DeviceRegistry
) -> None:
    drogue.put(APPLICATION, spec={"firmware": {**IMAGE, "mtu": 2016, "rollout": {"midway": "restart"}}})
    drogue.put(APPLICATION, DEVICE, spec={"firmware": {"mtu": 512}})
    policy = desired(registry).policy
    assert (policy.mtu, policy.midway) == (512, "restart")


@pytest.mark.parametrize("section", [{"mtu": 0}, {"rollout": {"midway": "continue"}}])
def test_a_malformed_mtu_or_midway_is_the_devices_error(
    drogue: Drogue, registry: DeviceRegistry, section: dict[str, Any]
) -> None:
    drogue.put(APPLICATION, DEVICE, spec={"firmware": section})
    with pytest.raises(MalformedSpecError, match=r"the device.s spec\.firmware"):
        desired(registry)


@pytest.mark.parametrize("is_device", [True, False])
@pytest.mark.parametrize(
    ("core", "disabled"),
    [
        ({"disabled": True}, True),
        ({"disabled": False}, False),
        ({"disabled": None}, False),
        ({"disabled": "true"}, False),
        ({"disabled": 1}, False),
        ({}, False),
        (None, False),
        ("disabled", False),
        ([{"disabled": True}], False),
    ],
)
def test_only_a_boolean_true_disables_a_device(
    drogue: Drogue, registry: DeviceRegistry, core: object, disabled: bool, is_device: bool
) -> None:
    application, device = ({}, {"core": core}) if is_device else ({"core": core}, {})
    drogue.put(APPLICATION, spec={"firmware": IMAGE, **application})
    drogue.put(APPLICATION, DEVICE, spec=device)
    found = desired(registry)
    assert found.disabled is disabled
    assert found.source == (None if disabled else Image("firmware:1"))


def test_a_disabled_device_is_disabled_whatever_its_firmware_section_says(
    drogue: Drogue, registry: DeviceRegistry
) -> None:
    drogue.put(APPLICATION, spec={"firmware": 1})
    drogue.put(APPLICATION, DEVICE, spec={"core": {"disabled": True}, "firmware": {"mtu": 0}})
    assert desired(registry).disabled


@pytest.mark.parametrize(
    ("selector", "gateways"),
    [
        ({"matchNames": ["gateway", "other"]}, ("gateway", "other")),
        ({"matchNames": ["gateway", 1, None]}, ("gateway",)),
        ({"matchNames": "gateway"}, ()),
        ({}, ()),
        (None, ()),
        (["gateway"], ()),
    ],
)
def test_the_gateways_of_a_device_are_those_that_its_selector_names(
    drogue: Drogue, registry: DeviceRegistry, selector: object, gateways: tuple[str, ...]
) -> None:
    drogue.put(APPLICATION, DEVICE, spec={"gatewaySelector": selector})
    assert desired(registry).gateways == gateways


# --- Whose object it is -----------------------------------------------------------------------------------------------


class Interim:
    """A proxy that sends interim responses at once, and each final one no earlier than the next request is there."""

    #: Seconds that a final response waits for another request.
    PATIENCE = 0.3

    def __init__(self, interim: bytes) -> None:
        self._interim = interim

    def __call__(self, answer: Answer) -> Answer:
        def delayed(request: Request) -> Response | None:
            if request.method == "GET":
                request.connection.sendall(self._interim)
                select.select([request.connection], [], [], self.PATIENCE)
            return answer(request)

        return delayed


@pytest.mark.parametrize(
    "interim",
    [
        b"HTTP/1.1 102 Processing\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n",
    ],
)
def test_interim_responses_do_not_give_a_device_the_object_of_another(interim: bytes) -> None:
    with Drogue(through=Interim(interim)) as drogue, client(drogue) as registry:
        drogue.put(APPLICATION, spec={})
        for name in ("one", "two", "three"):
            drogue.put_image(APPLICATION, name, f"for-{name}:1")
        for name in ("one", "two", "three", "two"):
            found = registry.read_desired(APPLICATION, name, 0.0, Deadline(4))
            assert found.source == Image(f"for-{name}:1")


def test_an_upstream_that_answers_one_behind_updates_no_device_with_the_firmware_of_another(
    firmware: Path,
) -> None:
    """The device registry answers each request with the object that the request before asked for."""
    before: list[Response | None] = [None]

    def one_behind(answer: Answer) -> Answer:
        def shifted(request: Request) -> Response | None:
            response = answer(request)
            if request.method != "GET" or "/devices/" not in request.path:
                return response
            earlier, before[0] = before[0], response
            return earlier or response

        return shifted

    settings = {"FIRMWARE_REGISTRY": f"oci-layout:{firmware}", "SPEC_TTL_SECONDS": "0"}
    with Drogue(through=one_behind) as drogue, Function({**drogue.environment, **settings}) as function:
        drogue.put(APPLICATION, spec={})
        for name in ("one", "two"):
            publish(firmware, f"for-{name}", "1", name.encode() * 100)
            drogue.put_image(APPLICATION, name, f"for-{name}:1")
        outcomes = []
        for name in ("one", "two", "one", "two"):
            attributes = event(name, APPLICATION, datacontenttype="application/cbor")
            outcomes.append(function.post(attributes, cbor2.dumps({"version": "0"})).outcome)
        for command in drogue.commands:
            assert cbor2.loads(command.payload).get("data", b"") in command.device.encode() * 100
    assert 'failed; reason="device registry: answer for the device is another object"' in outcomes


# --- What is written --------------------------------------------------------------------------------------------------


def test_a_report_leaves_what_others_have_in_the_section_as_it_is() -> None:
    """Drogue Cloud cannot hold U+0000, another registry may."""
    theirs = {"other": "a\0b", "conditions": [{"type": "Theirs", "message": "c\0d"}]}
    with Drogue() as drogue, client(drogue) as registry:
        drogue.put(APPLICATION, DEVICE, spec={}, status={"firmware": theirs})
        written: list[Any] = []

        def take(request: Request) -> Response:
            written.append(json.loads(request.body)["status"]["firmware"])
            return Response(400)

        drogue.write_answers[APPLICATION, DEVICE] = take
        report = Report("1\0", "2", (Condition("InSync", "False", "", "3\0"),))
        with pytest.raises(PermanentError):
            registry.report(APPLICATION, DEVICE, report, datetime.now(UTC), Deadline(4))
    (section,) = written
    assert (section["current"], section["other"]) == ("1\\x00", "a\0b")
    assert [condition["message"] for condition in section["conditions"]] == ["3\\x00", "c\0d"]
