"""The demo's function, in a process of its own: behind HTTP, or as a subscriber."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import requests

from fleet_fn.sandbox.cloud import Sandbox

#: How long the function may take to start.
_START_SECONDS: Final = 30
#: Pause between two looks at a subscriber that starts.
_LOOK_SECONDS: Final = 0.05


class DemoError(Exception):
    """The demo cannot run."""


@contextmanager
def serve_events(sandbox: Sandbox, settings: Mapping[str, str], log: Path) -> Iterator[str]:
    """Let the sandbox deliver events to the function; yield the function's URL.

    Args:
        sandbox: delivers events until the context ends.
        settings: the whole environment of the function.
        log: file for the function's log.

    Raises:
        DemoError: the function did not start.

    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serve: Sequence[str] = (
            *("-m", "gunicorn", "--config", "python:fleet_fn.web.server"),
            *("--bind", f"fd://{listener.fileno()}", "fleet_fn.app:create_app()"),
        )
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        with _run(serve, settings, log, listener.fileno()):
            try:
                # The socket takes connections from the start: this waits until the function answers.
                requests.get(f"{url}readyz", timeout=_START_SECONDS).raise_for_status()
            except requests.RequestException as error:
                raise DemoError(f"the function did not start: {error}\n{log.read_text()}") from error
            sandbox.sink = url
            try:
                yield url
            finally:
                sandbox.sink = None


@contextmanager
def subscribe_to_events(
    sandbox: Sandbox, settings: Mapping[str, str], log: Path, applications: Sequence[str]
) -> Iterator[str]:
    """Let the function take events from the sandbox; yield the integration's URL.

    Args:
        sandbox: has the integration.
        settings: the whole environment of the function.
        log: file for the function's log.
        applications: those that the function has to have subscribed to.

    Raises:
        DemoError: the function did not start, or did not subscribe.

    """
    with _run(("-m", "fleet_fn", "subscribe"), settings, log) as process:
        end = time.monotonic() + _START_SECONDS
        while not all(map(sandbox.mqtt.has_subscriber, applications)):
            if process.poll() is not None or time.monotonic() > end:
                raise DemoError(f"the function did not subscribe\n{log.read_text()}")
            time.sleep(_LOOK_SECONDS)
        yield sandbox.mqtt.url


@contextmanager
def _run(
    words: Sequence[str], settings: Mapping[str, str], log: Path, *descriptors: int
) -> "Iterator[subprocess.Popen[bytes]]":
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - this interpreter, and nothing from outside
            (sys.executable, *words), env=settings, pass_fds=descriptors, stdout=output, stderr=output
        )
        try:
            yield process
        finally:
            process.terminate()
            process.wait()
