"""Hostile connections: however many there are, health requests and events are answered."""

import os
import socket
import sys
import time
from collections.abc import Iterator
from typing import Final

import pytest

from tests.support.function import ROOT, Client, Function, event, running, serving
from tests.support.senders import POST, SENDERS, WELCOME, hostile, open_connections
from tests.support.timing import SLACK

#: Within how many seconds health and honest events are answered meanwhile.
SOON: Final = 2.0
DEADLINE: Final = 2.0
STATUS: Final = b'{"version": "1"}'


@pytest.fixture(scope="module")
def settings(environment: dict[str, str]) -> dict[str, str]:
    return environment | {"EVENT_DEADLINE_SECONDS": str(DEADLINE)}


@pytest.fixture(scope="module")
def plain(settings: dict[str, str]) -> Iterator[Client]:
    """Plain gunicorn, with the configuration in the repository's folder."""
    with running(settings) as function:
        yield function
        assert "[ERROR]" not in function.errors


@pytest.fixture(scope="module")
def served(settings: dict[str, str]) -> Iterator[Client]:
    """The command `serve`."""
    inherited = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    with serving([sys.executable, "-m", "fleet_fn", "serve"], {**inherited, **settings, "PORT": "0"}, ROOT) as function:
        yield function


def seconds_of_health(function: Client) -> float:
    started = time.monotonic()
    assert function.request("GET", "/readyz").status == 200
    return time.monotonic() - started


@pytest.mark.parametrize(
    ("started_as", "kind"),
    [*(("plain", kind) for kind in SENDERS), ("served", "half a head"), ("served", "a body that trickles")],
)
def test_hostile_connections_keep_nobody_from_being_answered(
    request: pytest.FixtureRequest, device: str, started_as: str, kind: str
) -> None:
    function: Client = request.getfixturevalue(started_as)
    with hostile(function, kind) as connections:
        for _ in range(4):
            assert seconds_of_health(function) < SOON
            started = time.monotonic()
            assert function.post(event(device), STATUS).status == 204
            assert time.monotonic() - started < SOON
            time.sleep(0.2)  # the attack goes on meanwhile
        if kind in WELCOME:
            assert open_connections(connections, 0.1) == len(connections)
        else:
            assert not open_connections(connections, DEADLINE + 2.0 + SLACK)
    assert seconds_of_health(function) < SOON


@pytest.fixture(scope="module")
def crowded(settings: dict[str, str]) -> Iterator[Client]:
    """A function that takes fewer connections than there are senders."""
    with Function({**settings, "GUNICORN_CMD_ARGS": "--worker-connections=100"}) as function:
        yield function


@pytest.mark.parametrize("kind", ["silent", "half a head", "a body that trickles", "idle after a request"])
def test_oldest_connections_make_room_for_new_ones(crowded: Client, device: str, kind: str) -> None:
    with hostile(crowded, kind) as connections:
        started = time.monotonic()
        assert seconds_of_health(crowded) < SOON
        assert crowded.post(event(device), STATUS).status == 204
        assert time.monotonic() - started < SOON
        assert 1 <= open_connections(connections, 0.5) < 100
        if kind != "idle after a request":  # of these, the first ones are kept, and later ones closed with the answer
            assert open_connections(connections[:150], 0.1) == 0
    assert seconds_of_health(crowded) < SOON


def test_sender_that_waits_is_told_to_go_on_once(plain: Client, device: str) -> None:
    lines = b"".join(f"ce-{name}: {value}\r\n".encode() for name, value in event(device).items())
    with socket.create_connection(("127.0.0.1", plain.port), 20) as connection:
        for _ in range(2):
            length = b"Content-Length: %d\r\n" % len(STATUS)
            connection.sendall(POST + lines + length + b"Expect: 100-continue\r\n\r\n")
            assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
            connection.sendall(STATUS)
            assert connection.recv(65536).startswith(b"HTTP/1.1 204 ")


def test_time_of_an_event_begins_with_its_first_byte(plain: Client, device: str) -> None:
    with socket.create_connection(("127.0.0.1", plain.port), 20) as connection:
        started = time.monotonic()
        for piece in (POST[:1], POST[1:5], POST[5:]):  # a head takes as much of it as a body
            connection.sendall(piece)
            time.sleep(0.15 * DEADLINE)
        lines = b"".join(f"ce-{name}: {value}\r\n".encode() for name, value in event(device).items())
        connection.sendall(lines + b"Content-Length: 5\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 400 ")
        assert 0.9 * DEADLINE < time.monotonic() - started < DEADLINE + SLACK
