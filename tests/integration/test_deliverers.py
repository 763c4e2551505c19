"""Events byte for byte as real deliverers send them: who is answered, and that no other device is."""

import base64
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import captures
from tests.support.captures import Capture
from tests.support.drogue import Drogue
from tests.support.function import Function, encoded, running

#: What the captured drogue-event-source was given.
CREDENTIALS = {"EVENTS_USER": captures.USER, "EVENTS_PASSWORD": captures.PASSWORD}
AUTHORIZATION = "Basic " + base64.b64encode(f"{captures.USER}:{captures.PASSWORD}".encode()).decode()


@pytest.fixture(scope="module")
def cloud() -> Iterator[Drogue]:
    with Drogue() as drogue:
        yield drogue


@pytest.fixture(scope="module")
def public(cloud: Drogue, firmware: Path) -> Iterator[Function]:
    """A function that takes events with credentials, however old."""
    settings = {"FIRMWARE_REGISTRY": f"oci-layout:{firmware}", "EVENT_MAX_AGE_SECONDS": "0", **CREDENTIALS}
    with running({**cloud.environment, **settings}) as function:
        yield function


@pytest.fixture(scope="module")
def private(cloud: Drogue, firmware: Path) -> Iterator[Function]:
    """A function that takes events from every sender, however old."""
    settings = {"FIRMWARE_REGISTRY": f"oci-layout:{firmware}", "EVENT_MAX_AGE_SECONDS": "0"}
    with running({**cloud.environment, **settings}) as function:
        yield function


def have(cloud: Drogue, application: str, device: str) -> None:
    """Make a device, and others that mangled names could lead to."""
    cloud.put(application, spec={})
    look_alikes = {device.strip(), "??", "???", "t?r", "sensor-??", "? 100%", "a b", "Straße", encoded(device)}
    for name in {device, *look_alikes} - {""}:
        cloud.put(application, name, spec={})


@pytest.mark.skipif(not captures.captures(), reason="no captures beside the checkout")
@pytest.mark.parametrize("capture", captures.captures(), ids=str)
def test_a_captured_request_reaches_its_device(
    public: Function, private: Function, cloud: Drogue, capture: Capture
) -> None:
    have(cloud, capture.application, capture.device)
    sent = len(cloud.commands)
    answer = (public if capture.deliverer == captures.EVENT_SOURCE else private).exchange(capture.request)
    commands = [(command.application, command.device, command.name) for command in cloud.commands[sent:]]
    assert answer.status == 204
    if capture.type == "io.drogue.event.v1" and capture.channel in ("dfu", "223"):
        assert answer.outcome == 'withheld; reason="unmanaged"'
        name = "dfu" if capture.channel == "dfu" else "port:223"
        assert commands == [(capture.application, capture.device, name)]
    else:
        assert (answer.outcome, commands) == ("ignored", [])


# --- The same, composed by what the captured ones have in common ------------------------------------------------------


def utf_8(value: str) -> bytes:
    return value.encode()


def java(value: str) -> bytes:
    """As the JVM writes a header: ISO 8859-1, with a question mark for each other UTF-16 unit."""
    units = value.encode("utf-16-be")
    return bytes(units[i + 1] if units[i] == 0 else ord("?") for i in range(0, len(units), 2))


def percent_encoded(value: str) -> bytes:
    """As the HTTP binding has it."""
    plain = set(range(0x21, 0x7F)) - set(b'"%')
    return b"".join(b"%c" % octet if octet in plain else b"%%%02X" % octet for octet in value.encode())


#: How deliverers write attributes, and the lines that they send besides.
DELIVERERS: dict[str, tuple[Callable[[str], bytes], list[str]]] = {
    "drogue-event-source": (utf_8, [f"authorization: {AUTHORIZATION}"] * 2),
    "knative": (java, ["Prefer: reply", "Kn-Namespace: fleet"]),
    "encoded": (percent_encoded, []),
}
NAMES = [
    "pump-1",
    "tür",
    "装置",
    "😀 ☃",
    " lead",
    "trail ",
    " ",
    "a%20b",
    "100%",
    "a/b",
    "..x",
    "?",
    "Ä?ß%C3",
    "\xa0x\xa0",
]

_numbers = itertools.count(1)


def composed(deliverer: str, device: str, /, **attributes: str) -> bytes:
    """Compose a request with a status of a device, as a deliverer does."""
    write, lines = DELIVERERS[deliverer]
    named = {
        "specversion": "1.0",
        "id": f"composed-{next(_numbers)}",
        "type": "io.drogue.event.v1",
        "subject": "dfu",
        "application": "example",
        "device": device,
        "sender": device,
        **attributes,
    }
    body = b'{"version": "1"}'
    head = [*lines, f"ce-source: drogue://example/{encoded(device)}", "content-type: application/json"]
    head += [f"content-length: {len(body)}", "host: 127.0.0.1:8080"]
    values = [b"ce-%s: %s" % (name.encode(), write(value)) for name, value in named.items()]
    return b"\r\n".join([b"POST / HTTP/1.1", *(line.encode() for line in head), *values, b"", body])


@pytest.fixture
def reached(
    public: Function, private: Function, cloud: Drogue
) -> Callable[[str, bytes], tuple[str, list[tuple[str, str]]]]:
    """Post a request, and tell the outcome and who was sent commands."""

    def post(deliverer: str, content: bytes) -> tuple[str, list[tuple[str, str]]]:
        sent = len(cloud.commands)
        answer = (public if deliverer == "drogue-event-source" else private).exchange(content)
        return answer.outcome, [(command.application, command.device) for command in cloud.commands[sent:]]

    return post


@pytest.mark.parametrize("deliverer", DELIVERERS)
@pytest.mark.parametrize("device", NAMES)
def test_a_composed_request_reaches_its_device(
    cloud: Drogue, reached: Callable[[str, bytes], Any], deliverer: str, device: str
) -> None:
    have(cloud, "example", device)
    assert reached(deliverer, composed(deliverer, device)) == ('withheld; reason="unmanaged"', [("example", device)])
    assert reached(deliverer, composed(deliverer, device, subject="tür")) == ("ignored", [])


@pytest.mark.parametrize("deliverer", DELIVERERS)
@pytest.mark.parametrize("attributes", [{"device": "other"}, {"application": "other"}, {"device": ""}])
def test_a_request_that_contradicts_itself_reaches_no_device(
    cloud: Drogue, reached: Callable[[str, bytes], Any], deliverer: str, attributes: dict[str, str]
) -> None:
    for device in ("tür", "other"):
        have(cloud, "example", device)
        have(cloud, "other", device)
    assert reached(deliverer, composed(deliverer, "tür", **attributes)) == ("invalid", [])


@pytest.mark.parametrize("deliverer", DELIVERERS)
def test_a_change_in_the_registry_is_noticed_whatever_became_of_the_name(
    cloud: Drogue, reached: Callable[[str, bytes], Any], deliverer: str
) -> None:
    device = f"gerät-装-{deliverer}"
    have(cloud, "example", device)
    reads = []
    for change in (False, False, True):
        if change:
            registry = {"type": "io.drogue.registry.v1", "subject": "devices"}
            assert reached(deliverer, composed(deliverer, device, **registry)) == ("ignored", [])
        assert reached(deliverer, composed(deliverer, device))[1] == [("example", device)]
        reads.append(cloud.reads_of("example", device))
    assert reads == [1, 1, 2]
