"""The time-out for bodies, after its thread could not be started once."""

import socket
import threading

import pytest

from fleet_fn.deadline import Deadline
from fleet_fn.web.body_timeout import BodyTimeout


def test_watch_without_a_thread_is_begun_for_the_next_sender(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    timeout = BodyTimeout()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(10)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            with pytest.raises(RuntimeError), timeout.watch(ours, Deadline(0.1)):
                pass
        with timeout.watch(ours, Deadline(0.1)):
            assert ours.recv(1) == b""  # ended, and not timed out
