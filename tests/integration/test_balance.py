"""Connections are shared out among the workers of a real server, also once one of them was replaced."""

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from tests.support.function import Function, event, running
from tests.support.processes import workers

CONNECTIONS: Final = 16
#: What deliverers send, of a channel that is none of the function's.
EVENT: Final = b"".join(
    [
        b"POST / HTTP/1.1\r\nHost: function\r\nContent-Length: 0\r\n",
        *(f"ce-{name}: {value}\r\n".encode() for name, value in event("device", subject="other").items() if value),
        b"\r\n",
    ]
)
ESTABLISHED: Final = "01"


@pytest.fixture
def function(environment: dict[str, str]) -> Iterator[Function]:
    with running(environment | {"WEB_CONCURRENCY": "2"}) as function:
        until(lambda: len(workers(function)) == 2 and all(is_ready(pid) for pid in workers(function)))
        yield function


def is_ready(pid: int) -> bool:
    """Whether a worker listens: it polls its sockets."""
    return any("eventpoll" in link for link in links(pid))


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)


def links(pid: int) -> list[str]:
    found = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(str(descriptor.readlink()))
        except FileNotFoundError:
            continue
    return found


def connections(function: Function) -> list[int]:
    """How many connections each worker has."""
    port = f"{function.port:04X}"
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    sockets = {f"socket:[{row[9]}]" for row in rows if row[1].endswith(f":{port}") and row[3] == ESTABLISHED}
    return sorted(len(sockets & set(links(pid))) for pid in workers(function))


class Deliverer:
    """A connection that is opened anew when the function closes it."""

    def __init__(self, function: Function) -> None:
        self._address = ("127.0.0.1", function.port)
        self._socket: socket.socket | None = None
        self.times_opened = 0

    def deliver(self) -> None:
        """Deliver an event; again, where the connection has been lost."""
        while not self._try():
            self.close()

    def _try(self) -> bool:
        if self._socket is None:
            self._socket = socket.create_connection(self._address, timeout=20)
            self.times_opened += 1
        answer = b""
        try:
            self._socket.sendall(EVENT)
            while not answer.endswith(b"\r\n\r\n"):
                piece = self._socket.recv(4096)
                if not piece:
                    return False
                answer += piece
        except ConnectionError:
            return False
        assert answer.startswith(b"HTTP/1.1 204 "), answer
        if b"\r\nConnection: close\r\n" in answer:
            self.close()
        return True

    def close(self) -> None:
        if self._socket:
            self._socket.close()
        self._socket = None


def is_balanced(function: Function, deliverers: list[Deliverer]) -> bool:
    """Whether no worker has far more connections than another, after a further event of each deliverer."""
    for deliverer in deliverers:
        deliverer.deliver()
    found = connections(function)
    return sum(found) == CONNECTIONS and found[1] <= found[0] + 1 + found[1] // 4


@pytest.mark.parametrize("at_once", [1, CONNECTIONS])
def test_each_worker_gets_its_share(function: Function, at_once: int) -> None:
    with ExitStack() as stack, ThreadPoolExecutor(at_once) as pool:
        deliverers = [Deliverer(function) for _ in range(CONNECTIONS)]
        for deliverer in deliverers:
            stack.callback(deliverer.close)
        list(pool.map(Deliverer.deliver, deliverers))
        until(lambda: is_balanced(function, deliverers))


def test_a_new_worker_gets_connections_of_the_old_one(function: Function) -> None:
    with ExitStack() as stack:
        deliverers = [Deliverer(function) for _ in range(CONNECTIONS)]
        for deliverer in deliverers:
            stack.callback(deliverer.close)
            deliverer.deliver()
        before = workers(function)
        os.kill(before[0], signal.SIGKILL)
        until(lambda: before[0] not in workers(function))
        for deliverer in deliverers:  # all that were lost come to the other
            deliverer.deliver()
        until(lambda: len(workers(function)) == 2)
        until(lambda: is_balanced(function, deliverers))
        opened = [deliverer.times_opened for deliverer in deliverers]
        for _ in range(50):
            for deliverer in deliverers:
                deliverer.deliver()
        assert [deliverer.times_opened for deliverer in deliverers] == opened, "and then they stay"
