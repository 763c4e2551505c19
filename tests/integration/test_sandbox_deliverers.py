"""Events as the sandbox delivers them, byte by byte, beside what the real deliverers sent."""

import base64
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import quote, unquote

import pytest
import requests
from click.testing import CliRunner
from hypothesis import given, strategies

from fleet_fn.cli.sandbox import command
from fleet_fn.sandbox import Sandbox
from fleet_fn.sandbox.deliverers import DELIVERERS, Policy
from fleet_fn.sandbox.delivery import Delivery, Sink, authorization
from fleet_fn.sandbox.events import Event, device_event
from tests.support import captures
from tests.support.captures import EVENT_SOURCE, KNATIVE, Capture, headers_of
from tests.support.function import encoded

PATIENCE = 10.0
NAMES = {EVENT_SOURCE: "event-source", KNATIVE: "knative"}
#: In the order in which Drogue Cloud writes them.
ATTRIBUTES = (
    *("specversion", "id", "type", "source", "subject", "time", "application", "applicationuid"),
    *("device", "deviceuid", "sender", "senderuid", "instance", "partitionkey", "lorawanport"),
)


class RawSink:
    """A sink that keeps requests as bytes, and answers with the statuses it is given, then with 204."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self._requests: list[bytes] = []
        self._got = threading.Condition()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}/"

    def await_requests(self, count: int) -> list[bytes]:
        with self._got:
            assert self._got.wait_for(lambda: len(self._requests) >= count, PATIENCE), f"{len(self._requests)}"
            return self._requests[:count]

    @property
    def count(self) -> int:
        with self._got:
            return len(self._requests)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                with connection, connection.makefile("rb") as lines:
                    connection.settimeout(PATIENCE)
                    head = b"".join(iter(lines.readline, b"\r\n"))
                    length = re.search(rb"(?im)^content-length: (\d+)\r$", head)
                    body = lines.read(int(length[1]) if length else 0)
                    with self._got:
                        self._requests.append(head + b"\r\n" + body)
                        status = self.statuses.pop(0) if self.statuses else 204
                        self._got.notify_all()
                    connection.sendall(b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % status)


@pytest.fixture
def sink() -> Iterator[RawSink]:
    sink = RawSink()
    yield sink
    sink.close()


def sent_as(event: Event, deliverer: str, sink: RawSink, **credentials: str) -> bytes:
    """A request with `event`."""
    given: dict[str, Any] = {"user": None, "password": None, "token": None, **credentials}
    delivery = Delivery(Sink.of(sink.url), authorization(**given), 1.0, lambda _: None, DELIVERERS[deliverer])
    delivery.put(event)
    try:
        return sink.await_requests(1)[0]
    finally:
        delivery.stop()


def recorded(capture: Capture) -> Event:
    """The event that the record in Kafka was."""
    attributes = {}
    for name in ATTRIBUTES:
        value = capture.header(f"ce-{name}")
        if value is not None:
            attributes[name] = value.decode("latin-1")
    sender = unquote(attributes["partitionkey"].partition("/")[2])
    time = re.sub(r"(Z|\+00:00)$", "Z", attributes["time"])
    attributes |= {"application": capture.application, "device": capture.device, "sender": sender, "time": time}
    content_type = capture.header("content-type")
    if content_type is None:
        return Event(attributes, None)
    return Event({**attributes, "datacontenttype": content_type.decode()}, capture.body)


def masked(request: bytes) -> list[tuple[str, bytes]]:
    """A request's headers in alphabetical order, without what each delivery has its own."""
    own = {"host", "ce-knativekafkaoffset"}
    return sorted((name, b"*" if name.lower() in own else value) for name, value in headers_of(request))


@pytest.mark.skipif(not captures.captures(), reason="no captures beside the checkout")
@pytest.mark.parametrize("capture", captures.captures(), ids=str)
def test_request_is_the_captured_one_header_by_header(capture: Capture, sink: RawSink) -> None:
    is_basic = capture.deliverer == EVENT_SOURCE
    credentials = {"user": captures.USER, "password": captures.PASSWORD} if is_basic else {}
    request = sent_as(recorded(capture), NAMES[capture.deliverer], sink, **credentials)
    assert request.partition(b"\r\n")[0] == capture.head.partition(b"\r\n")[0]
    assert masked(request) == masked(capture.request)
    assert request.partition(b"\r\n\r\n")[2] == capture.body


@pytest.mark.skipif(not captures.captures(), reason="no captures beside the checkout")
@pytest.mark.parametrize("deliverer", [EVENT_SOURCE, KNATIVE])
def test_events_of_the_sandbox_have_the_captured_headers(deliverer: str, sink: RawSink) -> None:
    wanted = {
        (capture.device, capture.type): capture
        for capture in captures.captures()
        if capture.deliverer == deliverer
        and capture.application == "example"
        and capture.header("ce-partitionkey") == (capture.header("ce-source") or b"").removeprefix(b"drogue://")
        and capture.header("content-type") in (b"application/json", None)
        and capture.channel in ("dfu", "devices")
    }
    credentials = {"credentials": [{"pass": "x"}]}
    objects: list[dict[str, Any]] = [
        {"metadata": {"name": "example"}},
        *(
            {"metadata": {"application": "example", "name": device}, "spec": {"authentication": credentials}}
            for device in sorted({device for device, _ in wanted})
        ),
    ]
    assert len(wanted) > 10
    count = 0
    with Sandbox(objects, sink=sink.url, deliver_as=NAMES[deliverer]) as sandbox:
        for (device, kind), capture in wanted.items():
            if kind == "io.drogue.event.v1":
                login = f"{quote(device, safe='')}@example"
                answer = requests.post(
                    f"{sandbox.url}/v1/dfu", b'{ "mtu": 512, "version": "0.1.0"}', auth=(login, "x"), timeout=PATIENCE
                )
                assert answer.status_code == 202
            else:
                sandbox.put({**sandbox.get("example", device), "status": {"seen": True}})
            count += 1
            request = sink.await_requests(count)[-1]
            expected = [pair for pair in masked(capture.request) if pair[0].lower() != "authorization"]
            own = {"ce-id", "ce-time", "ce-instance", "ce-deviceuid", "ce-senderuid", "ce-applicationuid"}
            shown = masked(request)
            assert [name for name, _ in shown] == [name for name, _ in expected]
            assert [p for p in shown if p[0] not in own] == [p for p in expected if p[0] not in own]
            assert request.partition(b"\r\n\r\n")[2] == capture.body


def an_event(device: str = "a", **attributes: str) -> Event:
    known = {
        "specversion": "1.0",
        "id": "1",
        "type": "io.drogue.event.v1",
        "source": f"drogue://shop/{encoded(device)}",
        "subject": "dfu",
        "time": "2026-11-28T18:22:29.5Z",
        "datacontenttype": "application/cbor",
        "application": "shop",
        "device": device,
    }
    return Event({**known, **attributes}, b"\xa0")


def headers(request: bytes) -> dict[str, bytes]:
    return {name.lower(): value for name, value in headers_of(request)}


@pytest.mark.parametrize(
    ("deliverer", "device", "value"),
    [
        ("event-source", 'tür "装" %', 'tür "装" %'.encode()),
        ("event-source", " a ", b" a "),
        ("knative", 'tür "装" %', b't\xfcr "?" %'),
        ("knative", "😀", b"??"),
        ("encoded", 'tür "装" %', b"t%C3%BCr%20%22%E8%A3%85%22%20%25"),
        ("encoded", "a\r\nb", b"a%0D%0Ab"),
    ],
)
def test_each_deliverer_writes_names_in_its_own_way(deliverer: str, device: str, value: bytes, sink: RawSink) -> None:
    written = headers(sent_as(an_event(device), deliverer, sink))
    assert written["ce-device"] == value
    assert written["ce-source"] == an_event(device).attributes["source"].encode()


#: Whatever a device may be called, but for control characters, which not every deliverer can send.
NAMES_OF_DEVICES = strategies.text(
    strategies.characters(codec="utf-8", categories=("L", "M", "N", "P", "S", "Z")), min_size=1, max_size=60
)
MANGLED: dict[str, Callable[[str], bytes]] = {
    "event-source": lambda name: name.encode(),
    "knative": lambda name: name.encode("latin-1", "replace"),
    "encoded": lambda name: quote(name, safe="!#$&'()*+,/:;<=>?@[\\]^_`{|}~").encode(),
}


@given(device=NAMES_OF_DEVICES)
@pytest.mark.parametrize("deliverer", list(DELIVERERS))
def test_source_is_exact_and_the_device_mangled_for_any_name(deliverer: str, device: str) -> None:
    metadata = {"metadata": {"name": "my-app", "uid": "u"}}
    sender = {"metadata": {"name": device, "uid": "d"}}
    event = device_event(metadata, sender, sender, "dfu", b"\xa0", "application/cbor")
    written = dict(DELIVERERS[deliverer].write(event, None, 0))
    source = written["ce-source"].decode("ascii")
    assert re.fullmatch(r"drogue://my-app/([A-Za-z0-9]|%[0-9A-F]{2})+", source)
    assert unquote(source.removeprefix("drogue://my-app/")) == device
    name = device
    if deliverer == "knative":  # characters beyond the basic plane are two UTF-16 units
        name = "".join(char if ord(char) <= 0xFFFF else "\u3000\u3000" for char in device)
    assert written["ce-device"] == MANGLED[deliverer](name)


@pytest.mark.parametrize(
    ("deliverer", "time"),
    [("event-source", b"2026-11-28T18:22:29.5+00:00"), ("knative", b"2026-11-28T18:22:29.5Z")],
)
def test_each_deliverer_writes_times_in_its_own_way(deliverer: str, time: bytes, sink: RawSink) -> None:
    assert headers(sent_as(an_event(), deliverer, sink))["ce-time"] == time


@pytest.mark.parametrize(
    ("deliverer", "credentials", "values"),
    [
        ("event-source", {"user": "u", "password": "p"}, [b"Basic " + base64.b64encode(b"u:p")] * 2),
        ("event-source", {"token": "t"}, [b"Bearer t"]),
        ("event-source", {}, []),
        ("knative", {"token": "t"}, [b"Bearer t"]),
        ("encoded", {"user": "u", "password": "p"}, [b"Basic " + base64.b64encode(b"u:p")]),
    ],
)
def test_basic_credentials_come_twice_from_the_event_source(
    deliverer: str, credentials: dict[str, str], values: list[bytes], sink: RawSink
) -> None:
    request = sent_as(an_event(), deliverer, sink, **credentials)
    assert [value for name, value in headers_of(request) if name.lower() == "authorization"] == values


def statuses_until_success(sink: RawSink, deliverer: str, statuses: list[int], policy: Policy | None = None) -> int:
    """How many attempts an event takes if the sink answers with `statuses`, and 204 thereafter."""
    sink.statuses = list(statuses)
    lines: list[str] = []
    over = threading.Event()

    def log(line: str) -> None:
        lines.append(line)
        if "attempt" not in line:
            over.set()

    delivery = Delivery(Sink.of(sink.url), None, 50.0, log, DELIVERERS[deliverer].with_policy(policy))
    delivery.put(an_event())
    try:
        assert over.wait(PATIENCE), lines
        return sink.count
    finally:
        delivery.stop()


@pytest.mark.parametrize(
    ("deliverer", "status", "attempts"),
    [
        *((deliverer, status, 2) for deliverer in DELIVERERS for status in (500, 503)),
        *(("knative", status, 2) for status in (404, 408, 409, 429)),
        *(("knative", status, 1) for status in (302, 400, 401, 403, 413, 422, 200, 202)),
        *((deliverer, status, 1) for deliverer in ("event-source", "encoded") for status in (404, 409, 422, 429)),
    ],
)
def test_what_is_retried_is_what_the_deliverer_retries(
    deliverer: str, status: int, attempts: int, sink: RawSink
) -> None:
    assert statuses_until_success(sink, deliverer, [status]) == attempts


def test_knative_gives_an_event_up_after_the_retries_of_its_policy(sink: RawSink) -> None:
    policy = Policy(retries=3, delay_seconds=0.1, backoff="linear")
    assert statuses_until_success(sink, "knative", [503] * 9, policy) == 4


def test_a_kafka_source_without_a_policy_retries_ten_times(sink: RawSink) -> None:
    assert statuses_until_success(sink, "knative", [503] * 99, Policy(10, 0.01, "exponential", 5.0)) == 11
    default = DELIVERERS["knative"].policy
    assert (default.retries, default.delay_seconds, default.backoff, default.timeout_seconds) == (
        *(10, 0.3, "exponential", 600.0),
    )


@pytest.mark.parametrize(
    ("backoff", "pauses"), [("constant", [1, 1, 1]), ("linear", [1, 2, 3]), ("exponential", [2, 4, 8])]
)
def test_pauses_grow_as_the_dispatcher_computes_them(backoff: Any, pauses: list[float]) -> None:
    policy = Policy(3, 1.0, backoff)
    assert [policy.pause(retry) for retry in (1, 2, 3)] == pauses


def test_kafka_offsets_count_the_records_of_an_application(sink: RawSink) -> None:
    delivery = Delivery(Sink.of(sink.url), None, 1.0, lambda _: None, DELIVERERS["knative"])
    for number in range(3):
        delivery.put(an_event(id=str(number)))
    sent = [headers(request) for request in sink.await_requests(3)]
    delivery.put(an_event(application="other"))
    sent += [headers(sink.await_requests(4)[3])]
    delivery.stop()
    assert [each["ce-knativekafkaoffset"] for each in sent] == [b"0", b"1", b"2", b"0"]


@pytest.mark.parametrize(
    "options",
    [
        {"deliver_as": "pigeon"},
        {"deliver_as": "knative", "sink_user": "u", "sink_password": "p"},
        {"delivery": Policy(-1)},
        {"delivery": Policy(timeout_seconds=0)},
    ],
)
def test_a_delivery_that_makes_no_sense_is_refused(options: dict[str, Any], sink: RawSink) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        Sandbox(sink=sink.url, **options)


def test_help_tells_of_all_deliverers() -> None:
    told = CliRunner().invoke(command, ["--help"]).stdout
    assert "--deliver-as" in told
    assert all(name in told for name in DELIVERERS)
