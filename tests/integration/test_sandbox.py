"""The sandbox over real sockets, as devices, the function and administrators use it."""

import base64
import hashlib
import json
import re
import shlex
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import requests
from click.testing import CliRunner

from fleet_fn.cli.sandbox import command
from fleet_fn.sandbox import RefusedError, Sandbox
from tests.support.http import Request, Response, Server, closed_port
from tests.support.sandbox_log import Log

PATIENCE = 10.0
ODD = "a/b %ü:@x"
DFU = "/api/command/v1alpha1/apps/shop/devices/{}?command=dfu"
REGISTRY = "/api/registry/v1alpha1/apps"

EventDeduplicator = Callable[[Request], Response]


class Sink:
    """A sink that keeps what it gets and answers as it is told."""

    def __init__(self) -> None:
        self.answer: Callable[[Request], Response | None] = lambda _: Response(204)
        self._got = threading.Condition()
        self._events: list[Request] = []
        self.server = Server(self._take)

    @property
    def url(self) -> str:
        return self.server.url

    def _take(self, request: Request) -> Response | None:
        with self._got:
            self._events.append(request)
            self._got.notify_all()
        return self.answer(request)

    def await_events(self, count: int) -> list[Request]:
        with self._got:
            assert self._got.wait_for(lambda: len(self._events) >= count, PATIENCE), f"{len(self._events)} of {count}"
            return self._events[:count]

    def await_bodies(self, count: int) -> list[bytes]:
        return [event.body for event in self.await_events(count)]

    @property
    def count(self) -> int:
        with self._got:
            return len(self._events)


def application(name: str = "shop", **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": name}, "spec": spec}


def device(name: str, of: str = "shop", password: Any = "secret", **spec: Any) -> dict[str, Any]:
    credentials = {"credentials": [{"pass": password}]}
    return {"metadata": {"application": of, "name": name}, "spec": {"authentication": credentials, **spec}}


OBJECTS = [
    device("till"),
    device("gate"),
    device("lamp", gatewaySelector={"matchNames": ["gate"]}),
    device(ODD),
    application(),
    application("other"),
    device("till", of="other"),
]


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def sink() -> Iterator[Sink]:
    sink = Sink()
    with sink.server:
        yield sink


@pytest.fixture
def sandbox(sink: Sink, log: Log) -> Iterator[Sandbox]:
    with Sandbox(OBJECTS, sink=sink.url, log=log) as sandbox:
        yield sandbox


@pytest.fixture
def hasty(sink: Sink, log: Log) -> Iterator[Sandbox]:
    """Twenty times as fast as the real one: an attempt lasts 250 ms."""
    with Sandbox(OBJECTS, sink=sink.url, log=log, speed=20) as sandbox:
        yield sandbox


@pytest.fixture
def background() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as executor:
        yield executor


def publish(
    sandbox: Sandbox,
    payload: bytes = b"\xa0",
    *,
    user: str = "till@shop",
    password: str = "secret",
    content_type: str | None = None,
    query: str = "",
    channel: str = "dfu",
) -> requests.Response:
    return requests.post(
        f"{sandbox.url}/v1/{channel}{query}",
        data=payload,
        auth=(user.encode().decode("latin-1"), password),  # which the client encodes as latin-1: UTF-8 again
        headers={} if content_type is None else {"Content-Type": content_type},
        timeout=PATIENCE,
    )


def call(
    sandbox: Sandbox, method: str, path: str, value: object = None, auth: Any = ("sandbox", "sandbox"), **more: Any
) -> requests.Response:
    if value is not None:
        more["json"] = value
    return requests.request(method, sandbox.url + path, auth=auth, timeout=PATIENCE, **more)


def send(sandbox: Sandbox, name: str, payload: bytes = b"go", **headers: str) -> requests.Response:
    return call(sandbox, "POST", DFU.format(quote(name, safe="")), data=payload, headers=headers)


def header(event: Request, name: str) -> str:
    """A header's value: UTF-8, which the HTTP library shows as latin-1."""
    return event.headers[name].encode("latin-1").decode()


def waiting(
    background: ThreadPoolExecutor, sink: Sink, sandbox: Sandbox, **options: Any
) -> "Future[requests.Response]":
    """A device that waits for a command already: it subscribes before its event goes out."""
    before = sink.count
    answer = background.submit(publish, sandbox, query=options.pop("query", "?ct=30"), **options)
    sink.await_events(before + 1)
    return answer


class TestDevice:
    def test_without_ct_it_is_told_at_once_that_the_event_is_accepted(self, sandbox: Sandbox, sink: Sink) -> None:
        answer = publish(sandbox)
        assert (answer.status_code, answer.content) == (202, b"")
        assert sink.await_bodies(1) == [b"\xa0"]

    @pytest.mark.parametrize("query", ["?ct=0", "?ct=1", "?commandTimeout=1"])
    def test_with_ct_and_no_command_it_gets_202(self, sandbox: Sandbox, query: str) -> None:
        started = time.monotonic()
        answer = publish(sandbox, query=query)
        assert (answer.status_code, answer.content) == (202, b"")
        assert time.monotonic() - started >= int(query[-1])

    def test_a_command_is_the_answer_that_it_waits_for(
        self, sandbox: Sandbox, sink: Sink, background: ThreadPoolExecutor, log: Log
    ) -> None:
        answer = waiting(background, sink, sandbox)
        assert send(sandbox, "till", b"\xa1", **{"Content-Type": "application/cbor"}).status_code == 202
        got = answer.result(PATIENCE)
        assert (got.status_code, got.content, got.headers["command"]) == (200, b"\xa1", "dfu")
        log.await_line("shop/till command dfu: 1 bytes, passed on")

    def test_a_command_sent_before_the_event_is_answered_is_not_lost(self, sandbox: Sandbox, sink: Sink) -> None:
        def answer_by_command(_: Request) -> Response:
            send(sandbox, "till", b"fast")
            return Response(204)

        sink.answer = answer_by_command
        assert publish(sandbox, query="?ct=30").content == b"fast"

    def test_a_command_that_nobody_waits_for_is_lost(self, sandbox: Sandbox, log: Log) -> None:
        assert send(sandbox, "till").status_code == 202
        log.await_line("shop/till command dfu: 2 bytes, lost")
        assert publish(sandbox, query="?ct=1").status_code == 202

    def test_commands_of_other_devices_are_not_for_it(
        self, sandbox: Sandbox, sink: Sink, background: ThreadPoolExecutor
    ) -> None:
        answer = waiting(background, sink, sandbox)
        send(sandbox, "lamp", b"not yours")
        call(sandbox, "POST", "/api/command/v1alpha1/apps/other/devices/till?command=dfu", data=b"nor this")
        send(sandbox, "till", b"yours")
        assert answer.result(PATIENCE).content == b"yours"

    @pytest.mark.parametrize(
        "login",
        [
            {"password": "wrong"},
            {"user": "nobody@shop"},
            {"user": "till@nowhere"},
            {"user": "till"},
            # A device's name is decoded, an application's is not, and the first @ ends the device's.
            {"user": "a%2Fb%20%25%C3%BC%3A@x@shop"},
            {"user": "till@%73hop"},
        ],
    )
    def test_bad_credentials_are_forbidden(self, sandbox: Sandbox, sink: Sink, login: dict[str, Any]) -> None:
        answer = publish(sandbox, **login)
        assert answer.status_code == 403
        assert answer.json() == {"code": 403, "error": "AuthenticationError", "message": "Authentication failed"}
        assert sink.count == 0

    @pytest.mark.parametrize("value", [None, "Bearer secret", "Basic", "Basic ?", "Basic dGlsbA==", "Basic /w=="])
    def test_what_are_no_credentials_is_forbidden(self, sandbox: Sandbox, value: str | None) -> None:
        headers = {} if value is None else {"Authorization": value}
        assert requests.post(f"{sandbox.url}/v1/dfu", headers=headers, timeout=PATIENCE).status_code == 403

    @pytest.mark.parametrize("user", [f"{quote(ODD, safe='')}@shop", "a/b %25ü%3A%40x@shop"])
    def test_its_name_may_be_any_text_percent_encoded_where_it_has_to_be(
        self, sandbox: Sandbox, sink: Sink, user: str
    ) -> None:
        assert publish(sandbox, user=user).status_code == 202
        assert header(sink.await_events(1)[0], "ce-device") == ODD

    def test_passwords_may_stand_in_every_place_that_drogue_cloud_reads(self, sandbox: Sandbox) -> None:
        entries: list[dict[str, Any]] = [
            {"pass": {"plain": "one"}},
            {"user": {"username": "old", "password": "two"}},
            {"user": {"username": "joe", "password": {"plain": "three"}}},
            {"cert": "of no use here"},
        ]
        sandbox.put({**device("old"), "spec": {"credentials": {"credentials": entries}}})
        statuses = [
            publish(sandbox, user=user, password=password, query=query).status_code
            for user, password, query in [
                ("old@shop", "one", ""),
                ("old@shop", "two", ""),
                ("old@shop", "three", ""),
                ("joe@shop", "three", "?device=old"),
                ("joe", "three", "?device=old&application=shop"),
                ("old", "one", "?application=shop"),
                ("joe@shop", "two", "?device=old"),
            ]
        ]
        assert statuses == [202, 202, 403, 202, 202, 202, 403]

    def test_an_alias_is_as_good_as_its_name(self, sandbox: Sandbox, sink: Sink) -> None:
        sandbox.put(device("tagged", alias=["0042"]))
        assert publish(sandbox, user="0042@shop").status_code == 202
        assert [header(event, "ce-device") for event in sink.await_events(2)] == ["tagged", "tagged"]

    def test_in_a_disabled_application_it_is_forbidden(self, sandbox: Sandbox) -> None:
        sandbox.put(application(core={"disabled": True}))
        assert publish(sandbox).status_code == 403

    @pytest.mark.parametrize(
        ("content_type", "payload", "seen"),
        [
            (None, b'{"a":1}', "application/json"),
            (None, b"7", "application/json"),
            (None, b"NaN", "application/octet-stream"),
            (None, b"", "application/octet-stream"),
            (None, b"\xa1\x00", "application/octet-stream"),
            ("application/cbor", b'{"a": 1}', "application/cbor"),
            ("application/json; charset=utf-8", b"{}", "application/json"),
            ("application/status+json", b"{}", "application/json"),
        ],
    )
    def test_what_it_says_of_its_payload_is_what_the_event_says(
        self, sandbox: Sandbox, sink: Sink, content_type: str | None, payload: bytes, seen: str
    ) -> None:
        publish(sandbox, payload, content_type=content_type)
        [event] = sink.await_events(1)
        assert (event.headers["content-type"], event.body) == (seen, payload)

    @pytest.mark.parametrize("content_type", ["application/json", "application/json;v=1", "text/json", "a/b+json"])
    @pytest.mark.parametrize("payload", [b"{", b"", b"\xff", b"[" * 60_000, b"{} {}", b"Infinity"])
    def test_what_claims_to_be_json_has_to_be(
        self, sandbox: Sandbox, sink: Sink, content_type: str, payload: bytes
    ) -> None:
        assert publish(sandbox, payload, content_type=content_type, query="?ct=30").status_code == 406
        assert sink.count == 0


class TestGateway:
    def test_it_speaks_for_a_device_that_names_it(
        self, sandbox: Sandbox, sink: Sink, background: ThreadPoolExecutor
    ) -> None:
        answer = waiting(background, sink, sandbox, user="gate@shop", query="?as=lamp&ct=30")
        send(sandbox, "gate", b"for the gateway")
        send(sandbox, "lamp", b"for the lamp")
        assert answer.result(PATIENCE).content == b"for the lamp"
        [event] = sink.await_events(1)
        assert (event.headers["ce-device"], event.headers["ce-sender"]) == ("lamp", "gate")
        assert event.headers["ce-deviceuid"] == sandbox.get("shop", "lamp")["metadata"]["uid"]
        assert event.headers["ce-senderuid"] == sandbox.get("shop", "gate")["metadata"]["uid"]
        assert event.headers["ce-source"] == "drogue://shop/lamp"
        assert event.headers["ce-partitionkey"] == "shop/gate"

    @pytest.mark.parametrize(("user", "target"), [("gate@shop", "till"), ("till@shop", "lamp"), ("gate@shop", "none")])
    def test_it_may_not_speak_for_others(self, sandbox: Sandbox, sink: Sink, user: str, target: str) -> None:
        assert publish(sandbox, user=user, query=f"?as={target}").status_code == 403
        assert sink.count == 0

    def test_a_device_may_name_itself(self, sandbox: Sandbox) -> None:
        assert publish(sandbox, query="?as=till").status_code == 202


class TestEvent:
    def test_it_has_every_attribute_that_drogue_cloud_gives_it(self, sandbox: Sandbox, sink: Sink) -> None:
        publish(sandbox, content_type="application/cbor", channel="dfu/more/of/it")
        [event] = sink.await_events(1)
        attributes = {name: value for name, value in event.headers.items() if name.startswith("ce-")}
        assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", attributes.pop("ce-id"))
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?\+00:00", attributes.pop("ce-time"))
        uid = sandbox.get("shop", "till")["metadata"]["uid"]
        assert attributes == {
            "ce-specversion": "1.0",
            "ce-type": "io.drogue.event.v1",
            "ce-source": "drogue://shop/till",
            "ce-subject": "dfu",
            "ce-application": "shop",
            "ce-applicationuid": sandbox.get("shop")["metadata"]["uid"],
            "ce-device": "till",
            "ce-deviceuid": uid,
            "ce-sender": "till",
            "ce-senderuid": uid,
            "ce-instance": "sandbox",
            "ce-partitionkey": "shop/till",
        }

    def test_names_are_raw_utf8_in_headers_and_percent_encoded_in_the_source(
        self, sandbox: Sandbox, sink: Sink
    ) -> None:
        publish(sandbox, user=f"{quote(ODD, safe='')}@shop")
        [event] = sink.await_events(1)
        assert event.headers["ce-device"].encode("latin-1") == ODD.encode()
        assert event.headers["ce-source"] == "drogue://shop/a%2Fb%20%25%C3%BC%3A%40x"
        assert event.headers["ce-partitionkey"] == "shop/a%2Fb%20%25%C3%BC%3A%40x"

    def test_one_of_a_name_that_no_header_can_carry_is_skipped(self, sandbox: Sandbox, sink: Sink, log: Log) -> None:
        sandbox.put(device("line\r\nbreak"))
        log.await_line(r"shop/line\r\nbreak devices: skipped")
        publish(sandbox)
        assert sink.await_events(1)[0].headers["ce-device"] == "till"

    @pytest.mark.parametrize(
        "change",
        [
            lambda sandbox: call(sandbox, "POST", f"{REGISTRY}/shop/devices", device("new")),
            lambda sandbox: call(sandbox, "PUT", f"{REGISTRY}/shop/devices/new", device("new", firmware={})),
            lambda sandbox: call(sandbox, "DELETE", f"{REGISTRY}/shop/devices/new"),
            lambda sandbox: sandbox.put(device("new", firmware={})),
            lambda sandbox: sandbox.delete("shop", "new"),
        ],
        ids=["POST", "PUT", "DELETE", "put", "delete"],
    )
    def test_each_change_of_a_device_makes_one(
        self, sandbox: Sandbox, sink: Sink, change: Callable[[Sandbox], object], request: pytest.FixtureRequest
    ) -> None:
        if request.node.callspec.id != "POST":
            sandbox.put(device("new"))
            sink.await_events(1)
        before = sink.count
        change(sandbox)
        publish(sandbox)
        event, next_event = sink.await_events(before + 2)[before:]
        assert event.headers["ce-type"] == "io.drogue.registry.v1"
        assert (event.headers["ce-subject"], event.headers["ce-device"], event.body) == ("devices", "new", b"")
        assert next_event.headers["ce-type"] == "io.drogue.event.v1"

    def test_applications_and_changes_that_change_nothing_make_none(self, sandbox: Sandbox, sink: Sink) -> None:
        before = sandbox.get("shop", "till")
        sandbox.put(application(firmware={"container": {"image": "x"}}))
        sandbox.put(application("third"))
        sandbox.delete("other")
        assert sandbox.put(device("till")) == before
        publish(sandbox)
        assert sink.await_events(1)[0].headers["ce-type"] == "io.drogue.event.v1"


class TestDelivery:
    def test_events_of_an_application_arrive_one_at_a_time_and_in_order(self, sandbox: Sandbox, sink: Sink) -> None:
        under_way = threading.Semaphore(1)
        overlapping = []

        def answer(_: Request) -> Response:
            if not under_way.acquire(blocking=False):
                overlapping.append(True)
            under_way.release()
            return Response(204)

        sink.answer = answer
        for number in range(50):
            publish(sandbox, b"%d" % number)
        assert sink.await_bodies(50) == [b"%d" % number for number in range(50)]
        assert not overlapping

    def test_applications_do_not_wait_for_each_other(self, sandbox: Sandbox, sink: Sink) -> None:
        go_on = threading.Event()

        def answer(event: Request) -> Response:
            if event.headers["ce-application"] == "shop":
                go_on.wait(PATIENCE)
            return Response(204)

        sink.answer = answer
        publish(sandbox, b"stuck")
        sink.await_events(1)
        publish(sandbox, b"free", user="till@other")
        assert sink.await_bodies(2) == [b"stuck", b"free"]
        go_on.set()

    @pytest.mark.parametrize("status", [400, 404, 409, 429, 302, 304])
    def test_what_is_neither_success_nor_failure_of_the_sink_is_skipped(
        self, sandbox: Sandbox, sink: Sink, log: Log, status: int
    ) -> None:
        sink.answer = lambda event: (
            Response(status, headers={"Location": sink.url}) if event.body == b"bad" else Response(204)
        )
        publish(sandbox, b"bad")
        publish(sandbox, b"good")
        assert sink.await_bodies(2) == [b"bad", b"good"]
        log.await_line(f"shop/till dfu: {status}, skipped")

    def test_after_five_retries_it_stops_and_starts_again_at_the_same_event(
        self, hasty: Sandbox, sink: Sink, log: Log
    ) -> None:
        sink.answer = lambda event: Response(503 if event.body == b"bad" and sink.count <= 8 else 204)
        publish(hasty, b"bad")
        publish(hasty, b"next")
        assert sink.await_bodies(10) == [b"bad"] * 9 + [b"next"]
        assert len({event.headers["ce-id"] for event in sink.await_events(9)}) == 1
        log.await_line("shop/till dfu: 204", count=2)
        assert log.lines == [
            *(f"shop/till dfu: 503, attempt {attempt} of 6" for attempt in range(1, 7)),
            "delivery of shop's events stops, and starts again at shop/till dfu",
            *(f"shop/till dfu: 503, attempt {attempt} of 6" for attempt in range(1, 3)),
            "shop/till dfu: 204",
            "shop/till dfu: 204",
        ]

    @pytest.mark.parametrize("opening", [b"", b"HTTP/1.1 204 No Content\r\nX: "], ids=["silent", "trickling"])
    def test_a_sink_gets_five_seconds_for_an_answer_and_no_more(
        self, hasty: Sandbox, sink: Sink, log: Log, opening: bytes
    ) -> None:
        over = threading.Event()

        def answer(event: Request) -> Response | None:
            if sink.count > 1:
                return Response(204)
            while not over.wait(0.02):
                event.connection.sendall(opening and opening + b"x")
            return None

        sink.answer = answer
        started = time.monotonic()
        publish(hasty, b"first")
        log.await_line("no answer in time, attempt 1 of 6")
        assert 0.25 <= time.monotonic() - started < 2
        over.set()
        assert sink.await_bodies(2) == [b"first", b"first"]

    def test_a_sink_that_is_not_there_or_does_not_speak_http_is_tried_again(
        self, hasty: Sandbox, sink: Sink, log: Log
    ) -> None:
        def babble(event: Request) -> Response | None:
            event.connection.sendall(b"what?\r\n\r\n")
            return None

        with closed_port() as port:
            hasty.sink = f"http://127.0.0.1:{port}/"
            publish(hasty, b"kept")
            log.await_line("shop/till dfu: connection refused, attempt 1 of 6")
            sink.answer = babble
            hasty.sink = sink.url
        log.await_line("no answer (what?)")
        sink.answer = lambda _: Response(200, b"a body that nobody asked for")
        log.await_line("shop/till dfu: 200")

    def test_without_a_sink_events_are_dropped_and_one_line_says_so(
        self, sandbox: Sandbox, sink: Sink, log: Log
    ) -> None:
        sandbox.sink = None
        for _ in range(3):
            assert publish(sandbox, b"dropped").status_code == 202
        log.await_line("events are dropped")
        sandbox.sink = f"{sink.url}/path?query=1"
        publish(sandbox, b"kept")
        [*_, event] = (events := sink.await_events(1))
        assert event.path == "/path?query=1"
        assert len(log.lines) in (1, 2)
        assert sum("dropped" in line for line in log.lines) == 1
        assert events[0].body in (b"dropped", b"kept")

    @pytest.mark.parametrize(
        ("credentials", "value"),
        [
            ({"sink_user": "u", "sink_password": "p"}, "Basic " + base64.b64encode(b"u:p").decode()),
            ({"sink_token": "t"}, "Bearer t"),
            ({}, None),
        ],
    )
    def test_it_shows_the_credentials_that_the_sink_wants(
        self, sink: Sink, credentials: dict[str, str], value: str | None
    ) -> None:
        with Sandbox(OBJECTS, sink=sink.url, **credentials) as sandbox:  # type: ignore[arg-type]
            publish(sandbox)
            assert sink.await_events(1)[0].headers.get("authorization") == value

    def test_the_functions_outcome_is_told(self, sandbox: Sandbox, sink: Sink, log: Log) -> None:
        sink.answer = lambda _: Response(204, headers={"Fleet-Outcome": "sync"})
        publish(sandbox)
        log.await_line("shop/till dfu: 204, sync")


class TestRegistry:
    def test_an_object_is_created_read_changed_and_deleted(self, sandbox: Sandbox) -> None:
        created = call(sandbox, "POST", f"{REGISTRY}/shop/devices", device(f"{ODD}2"))
        assert created.status_code == 201
        path = created.headers["Location"]
        assert path == f"{REGISTRY}/shop/devices/{quote(ODD + '2', safe='')}"
        read = call(sandbox, "GET", path).json()
        assert read["metadata"]["name"] == f"{ODD}2"
        assert read["metadata"]["generation"] == 0

        changed = {**read, "status": {"firmware": {"current": "1"}}}
        assert call(sandbox, "PUT", path, changed).status_code == 204
        again = call(sandbox, "GET", path).json()
        assert again["status"] == changed["status"]
        kept = ("name", "application", "uid", "creationTimestamp")
        assert [again["metadata"][key] for key in kept] == [read["metadata"][key] for key in kept]
        assert again["metadata"]["generation"] == 0  # which counts changes of spec
        assert again["metadata"]["resourceVersion"] != read["metadata"]["resourceVersion"]

        assert call(sandbox, "DELETE", path).status_code == 204
        assert call(sandbox, "GET", path).status_code == 404
        assert call(sandbox, "DELETE", path).status_code == 404

    def test_given_objects_keep_their_uids_and_created_ones_get_new_ones(self) -> None:
        uid = "5f0c2a54-6f5a-5a6e-9d3e-0c9f7c9e7a11"
        lamp: Any = {"metadata": {"application": "shop", "name": "lamp", "uid": uid}}
        odd: Any = {"metadata": {"application": "shop", "name": "odd", "uid": "x"}}
        with Sandbox([{"metadata": {"name": "shop"}}, lamp, odd]) as sandbox:
            assert sandbox.get("shop", "lamp")["metadata"]["uid"] == uid
            assert sandbox.get("shop", "odd")["metadata"]["uid"] != "x"
            sandbox.delete("shop", "lamp")
            assert call(sandbox, "POST", f"{REGISTRY}/shop/devices", lamp).status_code == 201
            assert sandbox.get("shop", "lamp")["metadata"]["uid"] != uid

    def test_an_application_goes_with_its_devices(self, sandbox: Sandbox) -> None:
        assert call(sandbox, "POST", REGISTRY, application("third")).status_code == 201
        sandbox.put(device("till", of="third"))
        assert call(sandbox, "DELETE", f"{REGISTRY}/third").status_code == 204
        call(sandbox, "POST", REGISTRY, application("third"))
        assert call(sandbox, "GET", f"{REGISTRY}/third/devices").json() == []

    def test_a_version_that_is_not_current_conflicts_and_nothing_is_written(self, sandbox: Sandbox) -> None:
        path = f"{REGISTRY}/shop/devices/till"
        stale = call(sandbox, "GET", path).json()
        sandbox.put(device("till", firmware={"by": "somebody else"}))
        before = sandbox.get("shop", "till")
        answer = call(sandbox, "PUT", path, {**stale, "spec": {}})
        assert (answer.status_code, answer.json()["error"]) == (409, "Conflict")
        with pytest.raises(RefusedError, match="Conflict"):
            sandbox.put(stale)
        assert sandbox.get("shop", "till") == before

    def test_without_a_version_whatever_is_there_is_replaced(self, sandbox: Sandbox) -> None:
        assert call(sandbox, "PUT", f"{REGISTRY}/shop", application(x=1)).status_code == 204
        assert sandbox.get("shop")["spec"] == {"x": 1}

    @pytest.mark.parametrize(
        ("method", "path", "value", "status"),
        [
            ("PUT", "/shop/devices/till", device("gate"), 400),
            ("PUT", "/shop/devices/till", device("till", of="other"), 400),
            ("PUT", "/shop/devices/till", application("till"), 400),
            ("PUT", "/shop", application("other"), 400),
            ("PUT", "/shop", {"metadata": None}, 400),
            ("PUT", "/shop", {"metadata": {"name": "shop", "labels": {"a": 1}}}, 400),
            ("PUT", "/shop", {"metadata": {"name": "shop"}, "spec": []}, 400),
            ("PUT", "/shop", [1], 400),
            ("PUT", "/shop/devices/none", device("none"), 404),
            ("PUT", "/none", application("none"), 404),
            ("GET", "/none", None, 404),
            ("GET", "/none/devices", None, 404),
            ("GET", "/shop/devices/", None, 404),
            ("GET", "/shop/else", None, 404),
            ("POST", "", application(), 409),
            ("POST", "", application("Shop"), 400),
            ("POST", "", device("till"), 400),
            ("POST", "/shop/devices", device("till"), 409),
            ("POST", "/shop/devices", device("x" * 256), 400),
            ("POST", "/shop/devices", device("", password="x"), 400),
            ("POST", "/none/devices", device("new", of="none"), 404),
            ("PATCH", "/shop", [], 405),
            ("PATCH", "/shop/devices/till", [], 405),
            ("DELETE", "/shop/devices", None, 405),
        ],
    )
    def test_what_makes_no_sense_is_refused(
        self, sandbox: Sandbox, method: str, path: str, value: object, status: int
    ) -> None:
        answer = call(sandbox, method, REGISTRY + path, value)
        assert answer.status_code == status

    @pytest.mark.parametrize(
        "body", [b"", b"{", b"\xff", b"[" * 60_000, b'{"metadata": {"name": "shop"}, "spec": NaN}']
    )
    def test_what_is_not_json_is_refused(self, sandbox: Sandbox, body: bytes) -> None:
        headers = {"Content-Type": "application/json"}
        answer = call(sandbox, "PUT", f"{REGISTRY}/shop", data=body, headers=headers)
        assert (answer.status_code, answer.text[:22]) == (400, "Json deserialize error")

    @pytest.mark.parametrize(
        ("query", "names"),
        [
            ("", ["a", "b", "c", "d"]),
            ("limit=2", ["a", "b"]),
            ("offset=1&limit=2", ["b", "c"]),
            ("offset=3&limit=9", ["d"]),
            ("limit=0", []),
            ("labels=zone=eu", ["a", "b"]),
            ("labels=zone!=eu", ["c"]),
            ("labels=zone", ["a", "b", "c"]),
            ("labels=!zone", ["d"]),
            ("labels=zone in (us, eu),floor", ["a"]),
            ("labels=zone notin (us,as)", ["a", "b"]),
            ("labels=acme.org/floor = 2", ["b"]),
            ("labels=zone=eu&offset=1", ["b"]),
        ],
    )
    def test_listings_are_sorted_cut_and_selected_from(self, log: Log, query: str, names: list[str]) -> None:
        labels: dict[str, dict[str, str]] = {
            "d": {},
            "b": {"zone": "eu", "acme.org/floor": "2"},
            "a": {"zone": "eu", "floor": "1"},
            "c": {"zone": "us"},
        }
        devices = [{"metadata": {"application": "shop", "name": name, "labels": of}} for name, of in labels.items()]
        applications = [{"metadata": {"name": name, "labels": of}} for name, of in labels.items()]
        with Sandbox([application(), *devices], log=log) as sandbox:
            answer = call(sandbox, "GET", f"{REGISTRY}/shop/devices?{query}")
            assert [found["metadata"]["name"] for found in answer.json()] == names
        with Sandbox(applications, log=log) as sandbox:
            answer = call(sandbox, "GET", f"{REGISTRY}?{query}")
            assert [found["metadata"]["name"] for found in answer.json()] == names

    @pytest.mark.parametrize("query", ["limit=-1", "offset=x", "labels==", "labels=a in (", "labels=%ff"])
    def test_a_listing_that_makes_no_sense_is_refused(self, sandbox: Sandbox, query: str) -> None:
        assert call(sandbox, "GET", f"{REGISTRY}?{query}").status_code == 400

    def test_a_copy_can_be_changed_without_changing_the_registry(self, sandbox: Sandbox) -> None:
        sandbox.get("shop", "till")["spec"].clear()
        assert sandbox.get("shop", "till")["spec"]

    @pytest.mark.parametrize(
        "given",
        [
            [device("till")],
            [application(), device("till", password={"bcrypt": "$2b$…"})],
            [application(), device("till", password={"sha512": hashlib.sha512(b"x").hexdigest()})],
            [{"kind": "Device", **application()}],
            [application(since=time.gmtime)],
        ],
    )
    def test_objects_that_it_cannot_serve_are_refused_at_once(self, given: list[Mapping[str, Any]]) -> None:
        with pytest.raises(RefusedError):
            Sandbox(given)


class TestCommandApi:
    @pytest.mark.parametrize(
        ("path", "status"),
        [
            (DFU.format("till"), 202),
            (DFU.format("none"), 406),
            (DFU.format("on"), 406),
            (DFU.format("till").replace("shop", "none"), 404),
            (DFU.format("till").partition("?")[0], 400),
            (DFU.format("till") + "%0d%0aX:1", 400),
            (DFU.format("%ff"), 400),
        ],
    )
    def test_what_it_answers(self, sandbox: Sandbox, path: str, status: int) -> None:
        sandbox.put(device("on", core={"disabled": False}))
        assert call(sandbox, "POST", path, data=b"x").status_code == status

    def test_a_name_that_is_no_latin_1_reaches_the_device(
        self, sandbox: Sandbox, sink: Sink, background: ThreadPoolExecutor
    ) -> None:
        answer = waiting(background, sink, sandbox, user=f"{quote(ODD, safe='')}@shop")
        path = DFU.format(quote(ODD, safe="")).replace("dfu", quote("läuft→"))
        assert call(sandbox, "POST", path, data=b"x").status_code == 202
        assert answer.result(PATIENCE).headers["command"].encode("latin-1").decode() == "läuft→"


@pytest.mark.parametrize("path", [REGISTRY, f"{REGISTRY}/shop/devices/till", DFU.format("till")])
class TestApiCredentials:
    def method(self, path: str) -> str:
        return "POST" if "command" in path else "GET"

    @pytest.mark.parametrize("value", [None, "Bearer", "Basic", "Basic ?", "else x"])
    def test_none_are_nobody_in_particular(self, sandbox: Sandbox, path: str, value: str | None) -> None:
        headers = {} if value is None else {"Authorization": value}
        answer = call(sandbox, self.method(path), path, auth=None, headers=headers)
        assert answer.status_code == (200 if path == REGISTRY else 404)

    @pytest.mark.parametrize("value", ["Bearer wrong", "Basic c2FuZGJveA==", "Basic c2FuZGJveDp4"])
    def test_wrong_ones_are_forbidden(self, sandbox: Sandbox, path: str, value: str) -> None:
        answer = call(sandbox, self.method(path), path, auth=None, headers={"Authorization": value})
        assert answer.status_code == 403

    def test_the_token_alone_will_do(self, sandbox: Sandbox, path: str) -> None:
        answer = call(sandbox, self.method(path), path, auth=None, headers={"Authorization": "Bearer sandbox"})
        assert answer.status_code in (200, 202)


class TestServer:
    def exchange(self, sandbox: Sandbox, request: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", int(sandbox.url.rpartition(":")[2])), PATIENCE) as sock:
            sock.sendall(request)
            sock.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: sock.recv(65536), b""))

    @pytest.mark.parametrize(
        ("request_", "status"),
        [
            (b"nonsense\r\n\r\n", b" 400 "),
            (b"GET /\xff HTTP/1.1\r\n\r\n", b" 400 "),
            (b"GET /v1/%ff HTTP/1.1\r\n\r\n", b" 400 "),
            (b"GET x HTTP/1.1\r\n\r\n", b" 400 "),
            (b"BREW / HTTP/1.1\r\n\r\n", b" 501 "),
            (b"GET / HTTP/1.1\r\n\r\n", b" 404 "),
            (b"GET /v1/dfu HTTP/1.1\r\n\r\n", b" 405 "),
            (b"POST /v1/dfu HTTP/1.1\r\nContent-Length: x\r\n\r\n", b" 400 "),
            (b"POST /v1/dfu HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b" 400 "),
            (b"POST /v1/dfu HTTP/1.1\r\nContent-Length: 65537\r\n\r\n", b" 413 "),
            (b"POST /v1/dfu HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", b" 413 "),
            (b"POST /v1/dfu HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b" 411 "),
            (b"POST /v1/dfu HTTP/1.1\r\nX: " + b"x" * 70_000 + b"\r\n\r\n", b" 431 "),
            (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", b" 414 "),
            (b"POST /v1/dfu HTTP/1.1\r\nContent-Length: 5\r\n\r\nabc", b""),
            (b"POST /v1/dfu HT", b""),
        ],
    )
    def test_malformed_requests_get_an_answer_and_leave_no_trace(
        self, sandbox: Sandbox, log: Log, capfd: pytest.CaptureFixture[str], request_: bytes, status: bytes
    ) -> None:
        answer = self.exchange(sandbox, request_)
        assert status in answer.partition(b"\r\n")[0]
        assert publish(sandbox).status_code == 202
        sandbox.stop()
        assert capfd.readouterr() == ("", "")
        assert not [line for line in log.lines if "broke" in line]

    def test_a_body_too_large_is_refused_so_that_the_client_sees_it(self, sandbox: Sandbox) -> None:
        assert publish(sandbox, bytes(5 * 1024 * 1024)).status_code == 413

    def test_connections_are_kept(self, sandbox: Sandbox) -> None:
        request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
        assert self.exchange(sandbox, request * 3).count(b" 404 ") == 3

    def test_hundreds_of_devices_wait_at_once(self, sandbox: Sandbox, sink: Sink) -> None:
        names = [f"device{number}" for number in range(200)]
        for name in names:
            sandbox.put(device(name))
        sink.await_events(len(names))
        port = int(sandbox.url.rpartition(":")[2])
        sockets = []
        for name in names:
            sock = socket.create_connection(("127.0.0.1", port), PATIENCE)
            login = base64.b64encode(f"{name}@shop:secret".encode())
            sock.sendall(b"POST /v1/dfu?ct=60 HTTP/1.1\r\nAuthorization: Basic %s\r\n\r\n" % login)
            sockets.append(sock)
        sink.await_events(2 * len(names))
        for name in names:
            send(sandbox, name, name.encode())
        for name, sock in zip(names, sockets, strict=True):
            with sock, sock.makefile("rb") as answer:
                head = b"".join(iter(answer.readline, b"\r\n"))
                assert (head.split()[1], answer.read(len(name))) == (b"200", name.encode())

    def test_stopping_is_prompt_whatever_goes_on(self, sink: Sink, background: ThreadPoolExecutor) -> None:
        release = threading.Event()
        with Sandbox(OBJECTS, sink=sink.url) as sandbox:
            idle = socket.create_connection(("127.0.0.1", int(sandbox.url.rpartition(":")[2])))

            def hang(_: Request) -> Response:
                release.wait(PATIENCE)
                return Response(204)

            sink.answer = hang
            answers = [waiting(background, sink, sandbox, query="?ct=60")]
            answers.append(waiting(background, sink, sandbox, user="till@other", query="?ct=60"))
            started = time.monotonic()
        assert time.monotonic() - started < 1
        assert [answer.result(PATIENCE).status_code for answer in answers] == [202, 202]
        release.set()
        idle.close()
        names = [thread.name for thread in threading.enumerate()]
        assert not [name for name in names if name.startswith(("sandbox", "deliver"))]
        with pytest.raises(requests.ConnectionError):
            publish(sandbox)

    def test_it_listens_on_loopback_only(self, sandbox: Sandbox) -> None:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", sandbox.url)

    @pytest.mark.parametrize(
        "sink", ["ftp://x", "nonsense", "http://u:p@x/", "http://x:y", "http://ü/", "http://" + "x" * 70]
    )
    def test_a_sink_that_is_none_is_refused(self, sink: str) -> None:
        with pytest.raises(ValueError, match=r"\w"):
            Sandbox(sink=sink)


@contextmanager
def run(*arguments: str) -> "Iterator[subprocess.Popen[str]]":
    program = "from fleet_fn.cli.sandbox import command; command()"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", program, *arguments], stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


class TestCommandLine:
    @pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
    def test_it_says_how_to_use_it_tells_what_happens_and_ends_well(self, sink: Sink, ending: signal.Signals) -> None:
        with run("--port", "0", "--sink", sink.url, "--token", "t") as process:
            assert process.stdout is not None
            lines: list[str] = []
            while not any("curl" in line for line in lines):
                lines.append(process.stdout.readline())
                assert lines[-1], process.stderr and process.stderr.read()
            told = "".join(lines)
            url = re.search(r"http://127\.0\.0\.1:\d+", told)
            assert url is not None
            assert f"DROGUE_API_URL={url[0]} DROGUE_USER=sandbox DROGUE_TOKEN=t" in told
            assert sink.url in told
            assert "device1@example:password" in told
            answer = requests.post(
                f"{url[0]}/v1/dfu", data=b"{}", auth=("device1@example", "password"), timeout=PATIENCE
            )
            assert answer.status_code == 202
            assert process.stdout.readline() == "example/device1 dfu: 204\n"
            process.send_signal(ending)
            assert process.communicate(timeout=PATIENCE) == ("", "")
            assert process.returncode == 0

    @pytest.mark.parametrize(("arguments", "count"), [([], 1), (["--devices", "3"], 3)])
    def test_its_devices_run_by_the_command_that_it_prints(self, sink: Sink, arguments: list[str], count: int) -> None:
        def command_sync(event: Request) -> Response:
            path = DFU.replace("shop", "example").format(event.headers["ce-device"])
            sync = {"op": "SYNC", "version": "0.1.0", "poll": 300}
            requests.post(url + path, json=sync, auth=("sandbox", "sandbox"), timeout=PATIENCE).raise_for_status()
            return Response(204)

        sink.answer = command_sync
        with run("--port", "0", "--sink", sink.url, *arguments) as process:
            assert process.stdout is not None
            line = next(line for line in iter(process.stdout.readline, "") if line.startswith("  simulated "))
            words = shlex.split(line)[1:]
            url = words[words.index("--url") + 1]
            options = ("--once", "--dialect", "documented")
            devices = subprocess.run(
                [sys.executable, "-m", "fleet_fn", *words[1:], *options],
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
        assert (devices.returncode, devices.stderr) == (0, "")
        ends = [line for line in devices.stdout.splitlines() if line.endswith(", told to stay with it")]
        assert ends == [f"device{number}: 0.1.0, told to stay with it" for number in range(1, count + 1)]

    @pytest.mark.parametrize(
        ("passwords", "expected"),
        [
            ({"till": "a", "till2": "a"}, "--device till --password a"),
            ({"till1": "a"}, "--device till1 --password a"),
            ({"till1": "a", "till2": "a", "till4": "a"}, "--device till --count 2 --password a"),
            ({"till1": "a", "till2": "b"}, "--device till1 --password a"),
            ({"a b": "c'd"}, "--device 'a b' --password 'c'\"'\"'d'"),
        ],
    )
    def test_it_prints_a_command_for_devices_that_are_numbered(
        self, tmp_path: Path, passwords: dict[str, str], expected: str
    ) -> None:
        devices = [device(name, password=password) for name, password in passwords.items()]
        (tmp_path / "objects.json").write_text(json.dumps([application(), *devices]))
        with run("--port", "0", "--objects", str(tmp_path / "objects.json")) as process:
            assert process.stdout is not None
            lines = iter(process.stdout.readline, "")
            line = next(line for line in lines if line.startswith("  simulated "))
        assert line.endswith(f"--application shop {expected}\n")

    def test_devices_belong_to_the_example(self, tmp_path: Path) -> None:
        (tmp_path / "objects.json").write_text(json.dumps(application()))
        arguments = ["--port", "0", "--objects", str(tmp_path / "objects.json"), "--devices", "2"]
        result = CliRunner().invoke(command, arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr == (
            "Error: --devices is for the application example: leave it out, or leave out --objects\n"
        )

    def test_a_signal_ends_it_whichever_thread_takes_it(self) -> None:
        # Signals that a process is sent may reach it before it waits for them, or in another thread than the waiting.
        program = """
            import signal, threading, time
            import fleet_fn.cli.sandbox as sandbox

            def welcome(*_):
                def later():
                    time.sleep(0.2)
                    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
                threading.Thread(target=later, daemon=True).start()

            sandbox._welcome = welcome
            sandbox.command(["--port", "0"])
        """
        ended = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, timeout=PATIENCE, check=False
        )
        assert (ended.returncode, ended.stderr) == (0, b"")

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("objects.json", json.dumps(OBJECTS)),
            ("objects.json", json.dumps(application("one"))),
            ("objects.yaml", "metadata: {name: one}\n---\nmetadata: {name: till, application: one}\n---\n"),
            ("objects.yml", "- metadata: {name: one}\n- {kind: Device, metadata: {name: till, application: one}}\n"),
        ],
    )
    def test_it_reads_objects_from_files(self, tmp_path: Path, name: str, text: str) -> None:
        (tmp_path / name).write_text(text)
        with run("--port", "0", "--objects", str(tmp_path / name)) as process:
            assert process.stdout is not None
            lines = iter(process.stdout.readline, "")
            assert any(line.startswith("  application") for line in lines), process.stderr and process.stderr.read()
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=PATIENCE)
            assert process.returncode == 0

    @pytest.mark.parametrize(
        ("name", "text", "reason"),
        [
            ("gone.json", None, "No such file"),
            ("bad.json", "{", "Expecting"),
            ("bad.yaml", "{", "expected"),
            ("latin.json", '{"metadata": "\xff"}', "utf-8"),
            ("string.json", '"x"', "must contain applications and devices"),
            ("name.json", '{"metadata": {"name": "Not A Host"}}', "'Not A Host' is no name of an application"),
            (
                "lost.json",
                '{"metadata": {"name": "till", "application": "none"}}',
                "lost.json: device till: its application none is not among the objects",
            ),
            (
                "date.yaml",
                "{metadata: {name: one}, status: {at: 2026-11-23}}",
                "date.yaml: application one: not JSON (a date needs quotes)",
            ),
            (
                "null.yaml",
                "metadata: {name: one}\n---\nspec: {}\n",
                "null.yaml: object 2: metadata: invalid type: null, expected a map",
            ),
            (
                "unknown.yaml",
                "metadata: {name: one, label: {}}\n",
                "unknown.yaml: object 1 (one): unknown field `label`",
            ),
            (
                "twice.yaml",
                "- metadata: {name: one}\n- metadata: {name: one}\n",
                "twice.yaml: application one: there are two of it",
            ),
            (
                "alias.yaml",
                "- metadata: {name: one}\n- {metadata: {application: one, name: a}}\n"
                "- {metadata: {application: one, name: b}, spec: {alias: [a]}}\n",
                "alias.yaml: device b: one of its aliases is another device's",
            ),
            (
                "hash.yaml",
                "- metadata: {name: a}\n- metadata: {application: a, name: b}\n"
                "  spec: {authentication: {credentials: [{pass: {bcrypt: x}}]}}\n",
                "bcrypt",
            ),
        ],
    )
    def test_a_file_that_it_cannot_use_is_told_in_one_line(
        self, tmp_path: Path, name: str, text: str | None, reason: str
    ) -> None:
        if text is not None:
            (tmp_path / name).write_text(text, encoding="latin-1")
        result = CliRunner().invoke(command, ["--port", "0", "--objects", str(tmp_path / name)])
        assert (result.exit_code, result.stdout) == (2, "")
        [line] = result.stderr.splitlines()
        assert reason in line

    def test_yaml_without_pyyaml_says_what_to_install(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "yaml", None)
        (tmp_path / "x.yaml").write_text("{}")
        result = CliRunner().invoke(command, ["--objects", str(tmp_path / "x.yaml")])
        assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
        assert "pip install" in result.stderr

    @pytest.mark.parametrize(
        "arguments", [["--sink", "nowhere"], ["--sink-token", "a\nb"], ["--port", "65536"], ["--speed", "0"]]
    )
    def test_options_that_make_no_sense_are_refused(self, arguments: list[str]) -> None:
        assert CliRunner().invoke(command, arguments).exit_code == 2

    def test_a_port_that_is_taken_is_told_in_one_line(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            result = CliRunner().invoke(command, ["--port", str(port)])
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr == (
            f"Error: --port is {port}, but another process listens on 127.0.0.1:{port}. Stop it, or name a free port\n"
        )

    def test_an_object_is_told_with_the_file_that_it_is_in(self, tmp_path: Path) -> None:
        (tmp_path / "one.json").write_text(json.dumps(application("one")))
        (tmp_path / "two.json").write_text(json.dumps([application("two"), application("one")]))
        files = [word for name in ("one", "two") for word in ("--objects", str(tmp_path / f"{name}.json"))]
        result = CliRunner().invoke(command, ["--port", "0", *files])
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr == f"Error: {tmp_path}/two.json: application one: there are two of it\n"
