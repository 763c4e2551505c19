"""Programs in real processes that do not import their modules: a server has imported them, and forks for each program.

Run as a module, this is the server. What a test is to show about a start, or about an end beyond exit code and output,
needs a Python of its own.
"""

import atexit
import fcntl
import functools
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, Final

ROOT: Final = Path(__file__).parents[2]
#: What takes longest to import. gunicorn's configuration and the server's settings read the environment then, so they
#: are not here.
_MODULES: Final = (
    "fleet_fn.app",
    "fleet_fn.cli.main",
    "fleet_fn.cli.publish",
    "fleet_fn.cli.inspect",
    "fleet_fn.cli.fleet",
    "fleet_fn.cli.rollout",
    "fleet_fn.cli.subscribe",
    "fleet_fn.web.subscriber",
    "fleet_fn.console.app",
    "fleet_fn.oci.upload",
    "fleet_fn.web.worker",
    "gunicorn.arbiter",
    "gunicorn.glogging",
    # Of gunicorn's configuration, of the server's hooks and of the metrics.
    "argparse",
    "ctypes",
    "glob",
    "mmap",
    "timeit",
    "wsgiref.simple_server",
)
_MAX_MESSAGE_BYTES: Final = 128 * 1024
_MAX_DESCRIPTORS: Final = 8
#: Above the descriptors that a program is given.
_OUT_OF_THE_WAY: Final = 100


# --- In tests


def needs_start(environment: Mapping[str, str]) -> bool:
    """Whether Python reads something of it when it starts, and only then."""
    return any(name.startswith("PYTHON") for name in environment)


class Forked:
    """A program that runs: `python -m` with `arguments`, and what subprocess.Popen offers of it."""

    def __init__(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        folder: Path,
        streams: tuple[int, int, int],
        pass_fds: Sequence[int] = (),
    ) -> None:
        """Start it in a folder, with standard streams and other descriptors, which keep their numbers."""
        self.returncode: int | None = None
        self._status, status = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        message = {
            "arguments": list(arguments),
            "environment": dict(environment),
            "folder": str(folder),
            "descriptors": [0, 1, 2, *pass_fds],
        }
        with status:
            descriptors = [status.fileno(), *streams, *pass_fds]
            socket.send_fds(_server(), [json.dumps(message).encode()], descriptors)
        self.pid = int(self._status.recv(_MAX_MESSAGE_BYTES))

    def poll(self) -> int | None:
        """Its exit code, or None while it runs."""
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, once it has ended."""
        code = self._ended(timeout)
        if code is None:
            raise subprocess.TimeoutExpired("fork", timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            with selectors.DefaultSelector() as selector:
                selector.register(self._status, selectors.EVENT_READ)
                if selector.select(timeout):
                    self.returncode = int(self._status.recv(_MAX_MESSAGE_BYTES))
                    self._status.close()
        return self.returncode


def run(
    arguments: Sequence[str], environment: Mapping[str, str], folder: Path, timeout: float, stdin: bytes = b""
) -> "subprocess.CompletedProcess[bytes]":
    """Run `python -m` with `arguments` to its end."""
    with TemporaryFile() as given, TemporaryFile() as output, TemporaryFile() as errors:
        given.write(stdin)
        given.seek(0)
        streams = (given.fileno(), output.fileno(), errors.fileno())
        process = Forked(arguments, environment, folder, streams)
        try:
            code = process.wait(timeout)
        finally:
            process.kill()
        return subprocess.CompletedProcess(list(arguments), code, _all_of(output), _all_of(errors))


def _all_of(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()


@functools.cache
def _server() -> socket.socket:
    """The connection to this process's server, which ends with it."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-m", "tests.support.forks", str(its.fileno())]
    with its:
        server = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, "PYTHONWARNINGS": "error"}, pass_fds=[its.fileno()]
        )

    def end() -> None:
        ours.close()
        server.wait()

    atexit.register(end)
    return ours


# --- In the server


class _Server:
    """Forks for each program, and says how it ends."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ)

    def next_program(self) -> list[str] | None:
        """Return a program's arguments in its fork, and None in the server after the last one."""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is not self._control:
                    self._report_end(key.fd, *key.data)
                    continue
                message, descriptors, _, _ = socket.recv_fds(self._control, _MAX_MESSAGE_BYTES, _MAX_DESCRIPTORS)
                if not message:
                    return None
                if arguments := self._start(json.loads(message), *descriptors):
                    return arguments

    def _start(self, program: dict[str, Any], status: int, *given: int) -> list[str] | None:
        """Return a program's arguments in its fork, and None in the server."""
        pid = os.fork()
        if pid == 0:
            self._control.close()
            self._selector.close()
            return _become(program, given)
        for descriptor in given:
            os.close(descriptor)  # a reader waits until nobody can write
        _tell(status, pid)
        self._selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, status))
        return None

    def _report_end(self, descriptor: int, pid: int, status: int) -> None:
        _tell(status, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        self._selector.unregister(descriptor)
        os.close(descriptor)
        os.close(status)


def _tell(status: int, number: int) -> None:
    with suppress(OSError):  # the test may have gone on
        os.write(status, str(number).encode())


def _become(program: dict[str, Any], given: Sequence[int]) -> list[str]:
    """Make this fork what the program is after a start; return the program's arguments."""
    kept = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, _OUT_OF_THE_WAY) for descriptor in given]
    os.closerange(3, _OUT_OF_THE_WAY)
    for descriptor, number in zip(kept, program["descriptors"], strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(program["environment"])
    os.chdir(program["folder"])
    arguments: list[str] = program["arguments"]
    return arguments


def _run_program(arguments: list[str]) -> None:
    """Run a module as `python -m` does, and end as Python does, but without freeing all modules one by one.

    To free what the server has imported would copy its memory, and take longer than most programs run.
    """
    sys.argv[1:] = arguments[1:]
    code = 0
    try:
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if not isinstance(end.code, int | None):
            raise
        code = end.code or 0
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if not stream.closed:
            stream.flush()
    os._exit(code)


def _main() -> None:
    """Serve; in a fork, run its program, and end as it does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is for the tests
    for name in _MODULES:
        importlib.import_module(name)
    gc.freeze()
    with socket.socket(fileno=int(sys.argv[1])) as control:
        arguments = _Server(control).next_program()
    if arguments:
        _run_program(arguments)


if __name__ == "__main__":
    _main()
