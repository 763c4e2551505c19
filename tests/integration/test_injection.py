"""Names, versions and ids that try to be more: another header, another line of the log, an order to a terminal."""

import contextlib
import itertools
import json
import logging
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fleet_fn.cli.main import main
from fleet_fn.errors import one_line
from fleet_fn.observability import log
from fleet_fn.sandbox.device_run import DeviceOptions, run_device
from tests.support.drogue import Drogue
from tests.support.firmware import publish, random_bytes
from tests.support.function import Answer, Function, event, parse_outcome
from tests.support.http import Request, Response, Server

#: Ends of headers and lines, orders for terminals, what reverses text, and what is no text.
EVIL = 'a\r\nFleet-Outcome: sync\r\n\r\n\x1b[2J\x1b]0;x\x07\x00\x85\u2028\u2029\u202e\u2066\x9b"\\%é日\U0001f4a9\t'
TEXTS = st.text(max_size=40) | st.lists(st.sampled_from(list(EVIL)), max_size=20).map("".join)
HEADERS = {"server", "date", "connection", "content-type", "content-length", "fleet-outcome", "retry-after"}
#: The end of a line to somebody who splits text into lines, and what steers a terminal.
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


@pytest.fixture(scope="module", params=["json", "text"])
def logging_function(request: pytest.FixtureRequest, environment: dict[str, str]) -> Iterator[Function]:
    """A function whose whole log is looked at."""
    with Function(environment | {"LOG_FORMAT": request.param}) as function:
        yield function
        assert function.logged("event")
        lines, errors = list(function.log), function.errors
    for line in lines:
        assert not UNPRINTABLE.search(line), ascii(line)
        assert len(line) < 20_000
        if request.param == "json":
            assert json.loads(line)["message"] in ("event", "status not reported")
        else:
            assert re.match(r"[0-9T:.+-]{29} (DEBUG|INFO|WARNING) (event|status not reported) \w+=", line), line
    assert not UNPRINTABLE.search(errors)
    assert "Traceback" not in errors.partition("Booting worker")[2]


def check(answer: Answer) -> Answer:
    """An answer with our headers and no others, and an outcome that others can parse."""
    assert set(answer.headers) <= HEADERS, answer.headers
    assert len(str(answer.headers)) < 4000
    name, parameters = parse_outcome(answer)
    assert name in ("sync", "write", "withheld", "invalid", "failed", "retry", "ignored", "stale", "duplicate")
    if answer.status != 204:
        assert not UNPRINTABLE.search(answer.reason)
        if "reason" in parameters:
            assert answer.reason.startswith(parameters["reason"])
    return answer


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(["id", "source", "application", "device", "subject", "type", "time"]), TEXTS))
def test_whatever_an_events_attributes_are(logging_function: Function, attributes: dict[str, str]) -> None:
    sent = {**event("device1"), **attributes, "data": {"version": "1"}}
    assert check(logging_function.post_structured(sent)).status in (204, 400, 422)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TEXTS, TEXTS)
def test_whatever_a_status_says(logging_function: Function, drogue: Drogue, version: str, written: str) -> None:
    drogue.put("example", spec={})
    drogue.put("example", "talker", spec={"firmware": {"container": {"image": "nowhere"}}})
    payload = json.dumps({"version": version, "status": {"version": written, "offset": 1}, EVIL: EVIL}).encode()
    assert check(logging_function.post(event("talker"), payload)).status in (400, 422)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TEXTS.filter(bool))
@pytest.mark.parametrize("where", ["image", "platform", "file", "rollout"])
def test_whatever_a_spec_says(logging_function: Function, drogue: Drogue, where: str, text: str) -> None:
    firmware = {
        "image": {"container": {"image": text}},
        "platform": {"container": {"image": "x", "platform": text}},
        "file": {"file": {"name": text}},
        "rollout": {"rollout": {text: text}},
    }
    drogue.put("example", spec={})
    drogue.put("example", "speaker", spec={"firmware": firmware[where]})
    event_of_change = {**event("speaker"), "type": "io.drogue.registry.v1", "subject": "devices"}
    logging_function.post(event_of_change, b"")  # so that it is read anew
    assert check(logging_function.post(event("speaker"), b'{"version": "1"}')).status == 422
    assert not UNPRINTABLE.search(json.dumps(drogue.reported("speaker"), ensure_ascii=False))


_numbers = itertools.count()


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    TEXTS.map(lambda text: text.replace("\0", "")).filter(
        lambda text: text not in ("", "0") and len(text.encode()) < 255
    )
)
def test_whatever_a_firmwares_version_is(
    logging_function: Function, drogue: Drogue, firmware: Path, version: str
) -> None:
    published = publish(firmware, "evil", version, random_bytes(64), tag=f"t{next(_numbers)}")
    device = f"runner-{next(_numbers)}"
    drogue.put("example", spec={})
    drogue.put_image("example", device, f"evil@{published.digest}")
    answer = check(logging_function.post(event(device), b'{"version": "0"}'))
    assert parse_outcome(answer) == ("write", {"version": version, "offset": 0, "size": 64})


@pytest.mark.parametrize("attribute", ["id", "source", "application", "device", "subject", "type"])
def test_what_is_as_long_as_a_request_makes_no_long_line(logging_function: Function, attribute: str) -> None:
    sent = {**event("device1"), attribute: "\u202e" * 6_000, "data": {"version": "1"}}
    check(logging_function.post_structured(sent))


@pytest.mark.parametrize(
    "head",
    [
        b"POST /\x1b[2J HTTP/1.1",
        b"\x1b[2J / HTTP/1.1",
        b"POST / HTTP/\x1b[2J",
        b"POST / HTTP/1.1\r\n\x1b[2J: x",
        b"POST / HTTP/1.1\r\nX: \x1b[2J\x00",
        b"POST / HTTP/1.1\r\nX\x9b\xe2\x80\xae",
        b"POST / HTTP/1.1\r\nContent-Length: \x1b[2J",
        b"POST /%0d%0aX:%20y HTTP/1.1",
    ],
)
def test_what_is_no_request_says_nothing_in_the_servers_own_log(logging_function: Function, head: bytes) -> None:
    with socket.create_connection(("127.0.0.1", logging_function.port), timeout=20) as connection:
        connection.sendall(head + b"\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            answer = connection.makefile("rb").read()
            assert answer.startswith(b"HTTP/1.1 4")
            assert b"\x1b" not in answer
            assert b"\r\nX: y" not in answer


def test_a_traceback_forges_no_line_of_text() -> None:
    """There is none unless something of ours is broken; then its text may be anybody's."""
    record = logging.LogRecord("x", logging.ERROR, "x", 1, "unexpected error", (), None)
    try:
        raise ValueError(EVIL + "\n2026-01-01T00:00:00.000+00:00 INFO event outcome=sync")
    except ValueError as error:
        record.exc_info = (type(error), error, error.__traceback__)
    first, *rest = log._TextFormatter().format(record).split("\n")
    assert first.endswith("ERROR unexpected error")
    assert all(line.startswith("  ") and not UNPRINTABLE.search(line) for line in rest)
    assert any("outcome=sync" in line for line in rest)
    assert len(log._JSONFormatter().format(record).splitlines()) == 1


@pytest.mark.parametrize("text", ["x" * 1_000_000, "x\n" * 500_000])
def test_a_traceback_of_any_length_makes_no_long_lines_and_shows_where_it_was(text: str) -> None:
    record = logging.LogRecord("x", logging.ERROR, "x", 1, "unexpected error", (), None)
    try:
        raise ValueError(text)
    except ValueError as error:
        record.exc_info = (type(error), error, error.__traceback__)
    for formatter in (log._JSONFormatter(), log._TextFormatter()):
        written = formatter.format(record)
        assert len(written) < 50_000
        assert "test_injection.py" in written
        assert "ValueError: x" in written


# --- The command line -------------------------------------------------------------------------------------------------


def test_inspect_shows_a_version_that_steers_no_terminal(tmp_path: Path) -> None:
    version = EVIL.replace("\0", "")  # U+0000 is refused
    publish(tmp_path, "evil", version, random_bytes(64), tag="1")
    ended = CliRunner().invoke(main, ["inspect", f"oci-layout:{tmp_path}/evil:1"])
    assert ended.exit_code == 0, ended.output
    assert f"version    {one_line(version)}\n" in ended.output
    assert not UNPRINTABLE.search(ended.output)


@pytest.mark.parametrize(
    "command",
    [
        {"op": "WRITE", "version": EVIL, "offset": 0, "size": 4, "data": "AAAAAA=="},
        {"op": "SYNC", "version": EVIL},
        {"op": EVIL},
        {EVIL: {}},
    ],
)
def test_a_simulated_device_is_told_nothing_that_steers_a_terminal(command: dict[str, object]) -> None:
    lines: list[str] = []
    answers = iter([command])

    def answer(_: Request) -> Response:
        # One that nobody understands in the end, since a device goes on as long as it is told something new.
        told = json.dumps(next(answers, {"op": EVIL}))
        return Response(200, told.encode(), {"Command": "dfu", "Content-Type": "application/json"})

    with Server(answer) as server:
        options = DeviceOptions(
            server.url, "app", "device1", "secret", dialect="documented", encoding="json", once=True, speed=1e6
        )
        lines.append(str(run_device(options, on_line=lines.append, stop=threading.Event())))
    assert len(lines) > 1
    assert not [line for line in lines if UNPRINTABLE.search(line) or "\n" in line]
