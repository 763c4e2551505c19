"""The console under gunicorn: one process, whose threads share its memory."""

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from flask import Flask
from gunicorn.app.base import BaseApplication

from fleet_fn.console.app import make_console
from fleet_fn.console.parts import open_parts
from fleet_fn.console.settings import ConsoleSettings
from fleet_fn.observability import log

#: Requests that are answered at the same time. Pages hardly wait for anything, except for a cloud that hangs.
_THREADS: Final = 32
#: Time for a request to arrive. No thread waits for it.
_REQUEST_SECONDS: Final = 15.0
_KEEP_ALIVE_SECONDS: Final = 75
_GRACE_SECONDS: Final = 5


class _Console(BaseApplication):  # type: ignore[misc]
    """gunicorn with the console's settings instead of a command line's."""

    def __init__(
        self,
        settings: ConsoleSettings,
        listener: int,
        ready: Callable[[], None],
        folder: str,
        clock: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._folder = folder
        self._clock = clock
        self._listener = listener
        self._ready = ready
        self._stack = ExitStack()
        super().__init__()

    def load_config(self) -> None:
        """Set gunicorn's settings."""
        memory = "/dev/shm"  # noqa: S108 - gunicorn makes it safe
        settings: dict[str, Any] = {
            "bind": f"fd://{self._listener}",
            "worker_class": "fleet_fn.web.worker.ThreadWorker",
            "workers": 1,
            "threads": _THREADS,
            "keepalive": _KEEP_ALIVE_SECONDS,
            "graceful_timeout": _GRACE_SECONDS,
            "worker_tmp_dir": memory if Path(memory).is_dir() else None,
            "forwarded_allow_ips": "",
            "forwarder_headers": "",
            "loglevel": "warning",
            "when_ready": self._begin,
            "post_fork": _set_request_time,
            "worker_exit": lambda _server, _worker: self._stack.close(),
            "control_socket_disable": True,
        }
        for name, value in settings.items():
            self.cfg.set(name, value)

    def _begin(self, server: Any) -> None:
        """Let the console end with its terminal.

        gunicorn would load the app anew, and go on with the operator's credentials.
        """
        signal.signal(signal.SIGHUP, lambda _number, frame: server.signal(signal.SIGTERM, frame))
        self._ready()

    def load(self) -> Flask:
        """Return the app, in the worker."""
        parts = self._stack.enter_context(open_parts(self._settings, self._folder, self._clock))
        return make_console(self._settings, parts)


def _set_request_time(_: object, worker: Any) -> None:
    worker.request_seconds = _REQUEST_SECONDS


def serve_console(
    settings: ConsoleSettings,
    listener: int,
    ready: Callable[[], None],
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Run a console until a signal ends it.

    Args:
        settings: the console's settings.
        listener: descriptor of the socket that it listens on; gunicorn closes it.
        ready: is called once it answers.
        clock: seconds, never stepping; for the pauses between readings of Drogue Cloud.

    Raises:
        SystemExit: always.

    """
    log.configure(settings.operator.log_level, "text")
    with _folder_of_this_process() as folder:
        _Console(settings, listener, ready, folder, clock).run()


@contextmanager
def _folder_of_this_process() -> Iterator[str]:
    """Yield a temporary folder.

    The worker, which leaves here too, may be replaced by another that needs it; and a signal may end it at once.
    """
    folder, owner = tempfile.mkdtemp(prefix="fleet-console-"), os.getpid()
    try:
        yield folder
    finally:
        if os.getpid() == owner:
            shutil.rmtree(folder, ignore_errors=True)
