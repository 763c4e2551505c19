"""Traces, from an event's attributes to the upstreams' headers, and to a collector."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support.drogue import Drogue
from tests.support.fake_registry import FakeRegistry
from tests.support.function import Function, event
from tests.support.http import Request, Response, Server, closed_port
from tests.support.processes import workers

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE_ID}-00f067aa0ba902b7-01"
STATE = "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"


class Heard:
    """A Drogue Cloud that knows one device, and what it and its registry were told of traces."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def through(self, answer: Any) -> Any:
        def heard(request: Request) -> Response | None:
            self.requests.append(request)
            response: Response | None = answer(request)
            return response

        return heard

    def headers(self, name: str) -> list[str | None]:
        return [request.headers.get(name) for request in self.requests]


@contextmanager
def listening(heard: Heard) -> Iterator[Drogue]:
    with Drogue(through=heard.through) as drogue:
        drogue.put("example", spec={})
        drogue.put("example", "device1", spec={})
        yield drogue


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def cloud(heard: Heard) -> Iterator[Drogue]:
    with listening(heard) as drogue:
        yield drogue


def running(cloud: Drogue, folder: Path, **settings: str) -> Function:
    return Function({**cloud.environment, "FIRMWARE_REGISTRY": f"oci-layout:{folder}", **settings})


def logged_event(function: Function, identity: str) -> Mapping[str, Any]:
    (line,) = function.logged('"message": "event"', identity)
    fields: Mapping[str, Any] = json.loads(line)
    return fields


# --- Without a collector ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Function, Heard]]:
    """A function that looks each device up for each event, and what its Drogue Cloud has heard."""
    heard = Heard()
    with (
        listening(heard) as cloud,
        running(cloud, tmp_path_factory.mktemp("layouts"), SPEC_TTL_SECONDS="0") as function,
    ):
        yield function, heard


@pytest.fixture
def untraced(alone: tuple[Function, Heard]) -> tuple[Function, Heard]:
    """The same, before anything was heard."""
    alone[1].requests.clear()
    return alone


def test_the_trace_of_an_event_is_told_to_registry_and_command_api_and_in_its_log_line(
    untraced: tuple[Function, Heard],
) -> None:
    function, heard = untraced
    sent = event(traceparent=PARENT, tracestate=STATE)
    assert function.post(sent, b'{"version": "1"}').status == 204
    assert logged_event(function, str(sent["id"]))["trace_id"] == TRACE_ID
    structured = {**event(), "traceparent": PARENT, "data": {"version": "1"}}
    assert function.post_structured(structured).status == 204
    assert {request.method for request in heard.requests} == {"GET", "POST"}
    assert set(heard.headers("traceparent")) == {PARENT}
    assert heard.headers("tracestate")[0] == STATE
    assert heard.headers("tracestate")[-1] is None


def test_the_registry_of_images_is_told_too(cloud: Drogue, tmp_path: Path) -> None:
    asked: list[Request] = []

    def missing(request: Request) -> Response:
        asked.append(request)
        return Response(404)

    cloud.put("example", "device1", spec={"firmware": {"container": {"image": "app:1"}}})
    (tmp_path / "registry").mkdir()
    with FakeRegistry(tmp_path / "registry") as registry:
        registry.answers["app"] = missing
        with Function({**cloud.environment, **registry.environment}) as function:
            assert function.post(event(traceparent=PARENT), b'{"version": "1"}').status == 422
    assert {request.headers.get("traceparent") for request in asked} == {PARENT}


def test_an_event_without_a_trace_is_part_of_none_and_not_of_the_one_before(
    cloud: Drogue, heard: Heard, tmp_path: Path
) -> None:
    with running(cloud, tmp_path, THREADS="1", SPEC_TTL_SECONDS="0") as function:
        assert function.post(event(traceparent=PARENT), b'{"version": "1"}').status == 204
        before = len(heard.requests)
        sent = event()
        assert function.post(sent, b'{"version": "1"}').status == 204
        assert "trace_id" not in logged_event(function, str(sent["id"]))
    assert set(heard.headers("traceparent")[before:]) == {None}


@pytest.mark.parametrize(
    "parent",
    [
        "",
        "x",
        PARENT.upper(),
        f"ff{PARENT[2:]}",
        f"{PARENT}-more",
        PARENT.replace(TRACE_ID, "0" * 32),
        f"00-{TRACE_ID}-{'0' * 16}-01",
        f"{PARENT}\t",
        "ü" + PARENT,
    ],
)
def test_what_is_no_trace_is_passed_on_to_nobody_and_costs_no_event(
    untraced: tuple[Function, Heard], parent: str
) -> None:
    function, heard = untraced
    structured = {**event(), "traceparent": parent, "tracestate": STATE, "data": {"version": "1"}}
    assert function.post_structured(structured).status == 204
    assert set(heard.headers("traceparent")) | set(heard.headers("tracestate")) == {None}


def test_a_state_that_no_header_can_hold_is_left_out(untraced: tuple[Function, Heard]) -> None:
    function, heard = untraced
    for state in ("a=b\r\nX-Evil: 1", "a=ü", "a" * 513, 5):
        structured = {**event(), "traceparent": PARENT, "tracestate": state, "data": {"version": "1"}}
        assert function.post_structured(structured).status == 204
    assert set(heard.headers("traceparent")) == {PARENT}
    assert set(heard.headers("tracestate")) | set(heard.headers("X-Evil")) == {None}


@pytest.mark.parametrize("is_named", [False, True])
def test_opentelemetry_is_loaded_only_where_a_collector_is_named(cloud: Drogue, tmp_path: Path, is_named: bool) -> None:
    collector = Collector()
    settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.server.url} if is_named else {}
    with collector.server, running(cloud, tmp_path, **settings) as function:
        assert function.post(event(traceparent=PARENT), b'{"version": "1"}').status == 204
        # Of all that it loads, what is no Python can be seen from outside: its exporter's protobuf.
        maps = [Path(f"/proc/{pid}/maps").read_text() for pid in workers(function)]
        assert any("google/_upb" in text for text in maps) == is_named


def test_tracing_without_opentelemetry_is_off_and_logged_once(cloud: Drogue, tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "opentelemetry.py").write_text("raise ImportError('No module named opentelemetry')")
    settings = {"PYTHONPATH": str(hidden), "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
    with running(cloud, tmp_path, **settings) as function:
        assert function.post(event(traceparent=PARENT), b'{"version": "1"}').status == 204
        (line,) = function.logged("tracing is off")
    assert "the extra 'tracing' (pyproject.toml) is not installed" in line


# --- With one ---------------------------------------------------------------------------------------------------------


class Collector:
    """One that speaks OTLP over HTTP."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.resources: list[Mapping[str, str]] = []
        self.server = Server(self._answer)

    def _answer(self, request: Request) -> Response:
        assert request.path == "/v1/traces"
        told = ExportTraceServiceRequest.FromString(request.body)
        for resource in told.resource_spans:
            self.resources.append({pair.key: pair.value.string_value for pair in resource.resource.attributes})
            for scope in resource.scope_spans:
                self.spans += scope.spans
        return Response(200, b"", {"Content-Type": "application/x-protobuf"})


def attributes(span: Any) -> dict[str, Any]:
    return {pair.key: pair.value.string_value or pair.value.int_value for pair in span.attributes}


def test_a_collector_is_told_of_the_event_and_of_each_request_and_upstreams_of_these(
    cloud: Drogue, heard: Heard, tmp_path: Path
) -> None:
    collector = Collector()
    with collector.server, running(cloud, tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=collector.server.url) as function:
        sent = event(traceparent=PARENT, tracestate=STATE)
        assert function.post(sent, b'{"version": "1"}').status == 204
        # What is left is sent as it ends.
        function.process.terminate()
        function.process.wait(20)
    (answered,) = (span for span in collector.spans if span.name == "event")
    requests = [span for span in collector.spans if span is not answered]
    assert (answered.trace_id.hex(), answered.parent_span_id.hex()) == (TRACE_ID, PARENT.split("-")[2])
    assert answered.kind == answered.SPAN_KIND_CONSUMER
    told = attributes(answered)
    assert told["cloudevents.event_id"] == sent["id"]
    assert (told["fleet.outcome"], told["fleet.reason"]) == ("withheld", "unmanaged")
    assert {(span.trace_id, span.parent_span_id) for span in requests} == {(answered.trace_id, answered.span_id)}
    assert {span.kind for span in requests} == {answered.SPAN_KIND_CLIENT}
    assert {attributes(span)["fleet.upstream"] for span in requests} == {"registry", "command"}
    assert {attributes(span)["http.response.status_code"] for span in requests} <= {200, 202, 204}
    passed = [f"00-{TRACE_ID}-{span.span_id.hex()}-01" for span in requests]
    assert sorted(passed) == sorted(str(parent) for parent in heard.headers("traceparent"))
    assert set(heard.headers("tracestate")) == {STATE}
    assert {resource["service.name"] for resource in collector.resources} == {"fleet-function"}


def test_what_failed_is_told_to_have(cloud: Drogue, tmp_path: Path) -> None:
    collector = Collector()
    cloud.command_answers["device1"] = lambda _: Response(503)
    settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.server.url, "OTEL_SERVICE_NAME": "ours"}
    with collector.server, running(cloud, tmp_path, **settings) as function:
        assert function.post(event(), b'{"version": "1"}').status == 503
        function.process.terminate()
        function.process.wait(20)
    failed = {span.name for span in collector.spans if span.status.code == span.status.STATUS_CODE_ERROR}
    assert failed == {"event", "POST command"}
    assert {resource["service.name"] for resource in collector.resources} == {"ours"}


def test_a_collector_that_is_away_costs_no_event_anything(cloud: Drogue, tmp_path: Path) -> None:
    with (
        closed_port() as port,
        running(
            cloud, tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{port}", OTEL_EXPORTER_OTLP_TIMEOUT="1"
        ) as function,
    ):
        for _ in range(5):
            started = time.monotonic()
            assert function.post(event(), b'{"version": "1"}').status == 204
            assert time.monotonic() - started < 2
        # Nor does it keep the function from ending.
        function.process.terminate()
        function.process.wait(10)
