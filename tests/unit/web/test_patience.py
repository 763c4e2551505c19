"""Patience with senders: what is left of it where a thread could not be started once."""

import socket
import threading

import pytest

from fleet_fn.deadline import Deadline
from fleet_fn.web.patience import Patience


def test_a_watch_that_could_not_be_begun_is_begun_for_the_next_sender(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    patience = Patience()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(10)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            with pytest.raises(RuntimeError), patience.with_sender(ours, Deadline(0.1)):
                pass
        with patience.with_sender(ours, Deadline(0.1)):
            assert ours.recv(1) == b""  # ended, and not timed out
