"""`fleet-fn subscribe` in a process of its own, a fork of one that has imported its modules."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from tests.support.forks import Forked
from tests.support.function import ROOT


class Subscriber:
    """A process that takes events; it has subscribed by the time that it is entered, unless said otherwise."""

    def __init__(self, environment: Mapping[str, str], *options: str, waits: bool = True) -> None:
        inherited = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
        self._environment = {**inherited, **environment}
        self._options = options
        self._waits = waits
        self.log: list[dict[str, Any]] = []

    def __enter__(self) -> "Subscriber":
        output, write_output = os.pipe()
        errors, write_errors = os.pipe()
        arguments = ["fleet_fn", "subscribe", *self._options]
        self.process = Forked(arguments, self._environment, ROOT, (0, write_output, write_errors))
        os.close(write_output)
        os.close(write_errors)
        self._reader = threading.Thread(target=self._read, args=(output,))
        self._reader.start()
        self._errors: list[str] = []
        self._listener = threading.Thread(target=self._listen, args=(errors,))
        self._listener.start()
        if self._waits:
            try:
                self.logged("subscribed")
            except BaseException:
                self.__exit__()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        self._listener.join()

    def _read(self, descriptor: int) -> None:
        with os.fdopen(descriptor, encoding="utf-8") as lines:
            self.log.extend(json.loads(line) for line in lines)

    def _listen(self, descriptor: int) -> None:
        with os.fdopen(descriptor, encoding="utf-8") as lines:
            self._errors.extend(lines)

    @property
    def errors(self) -> str:
        return "".join(self._errors)

    def lines(self, message: str, **fields: object) -> list[dict[str, Any]]:
        """The log lines of a message, or whose message begins with it, and that have these fields."""
        return [
            line
            for line in list(self.log)
            if line["message"].startswith(message) and all(line.get(name) == value for name, value in fields.items())
        ]

    def logged(self, message: str, count: int = 1, seconds: float = 30, **fields: object) -> list[dict[str, Any]]:
        """Those lines, once there are so many."""
        wait_for(
            lambda: len(self.lines(message, **fields)) >= count, seconds, lambda: f"{self.log[-20:]} {self.errors}"
        )
        return self.lines(message, **fields)

    def end(self, number: int = signal.SIGTERM) -> float:
        """Tell it to end, see that it does so as it should, and return the seconds that it took."""
        began = time.monotonic()
        self.process.send_signal(number)
        assert self.process.wait(20) == 0
        self._reader.join()
        self._listener.join()
        assert self.errors == ""
        return time.monotonic() - began


def wait_for(condition: Callable[[], bool], seconds: float = 30, why: Callable[[], str] = str) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, why()
        time.sleep(0.01)
