"""The function as users run it: a real gunicorn in a process of its own."""

import http.client
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import http_sf

from tests.support.forks import Forked, needs_start

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Answer:
    """What the function answered to an event."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def outcome(self) -> str:
        return self.headers["fleet-outcome"]

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def reason(self) -> str:
        detail: str = self.json["detail"]
        return detail


def _read_answer(response: http.client.HTTPResponse) -> Answer:
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, headers, response.read())


class Client:
    """Whoever has events answered by what listens on `port`."""

    port: int

    def request(
        self,
        method: str,
        path: str,
        headers: Iterable[tuple[str, str | bytes]] = (),
        body: bytes | Iterable[bytes] = b"",
    ) -> Answer:
        """One request on a connection of its own; header values given as bytes go out as they are."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.putrequest(method, path)
            for name, value in headers:
                connection.putheader(name, value)
            if isinstance(body, bytes):
                connection.putheader("Content-Length", str(len(body)))
                connection.endheaders(body)
            else:
                connection.putheader("Transfer-Encoding", "chunked")
                connection.endheaders(body, encode_chunked=True)
            return _read_answer(connection.getresponse())
        finally:
            connection.close()

    def exchange(self, request: bytes, *, ends: bool = False) -> Answer:
        """Send the bytes of a request, and the end of the stream if `ends`; return the answer."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as connection:
            connection.sendall(request)
            if ends:
                connection.shutdown(socket.SHUT_WR)
            response = http.client.HTTPResponse(connection)
            response.begin()
            return _read_answer(response)

    def post(
        self,
        event: Mapping[str, str | None],
        payload: bytes,
        *,
        path: str = "/",
        headers: Mapping[str, str | bytes] | None = None,
    ) -> Answer:
        """Posts an event in binary mode, its attributes as raw UTF-8, as Drogue Cloud does it."""
        lines: list[tuple[str, str | bytes]] = list((headers or {}).items())
        for name, value in event.items():
            if value is not None:
                lines.append(("content-type" if name == "datacontenttype" else f"ce-{name}", value.encode()))
        return self.request("POST", path, lines, payload)

    def post_structured(self, event: Mapping[str, Any], *, path: str = "/") -> Answer:
        """Posts an event in structured mode."""
        return self.request(
            "POST", path, [("Content-Type", "application/cloudevents+json")], json.dumps(event).encode()
        )


class Function(Client):
    """A gunicorn with the project's own configuration, on a socket that is bound before it starts."""

    def __init__(self, environment: Mapping[str, str], within: Sequence[str] = ()) -> None:
        """One with these settings, started by the command `within`, which is to become it, where one is given.

        Without that, and without settings of Python's, it is a fork: more is in its memory than after a start.
        """
        self._environment = environment
        self._within = within
        self.log: list[str] = []

    def __enter__(self) -> "Function":
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._errors: IO[bytes] = tempfile.TemporaryFile()
        self._start()
        self._reader = threading.Thread(target=self._read_log)
        self._reader.start()
        try:
            self.request("GET", "/readyz")  # so that what a test measures is the answers, and not the start
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        listener = self._socket.fileno()
        arguments = ["gunicorn", "--bind", f"fd://{listener}", "fleet_fn.app:create_app()"]
        inherited = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
        environment = {**inherited, "LOG_LEVEL": "DEBUG", "PYTHONWARNINGS": "error", **self._environment}
        read, write = os.pipe()
        self._log = os.fdopen(read, encoding="utf-8")
        self.process: subprocess.Popen[bytes] | Forked
        if self._within or needs_start(self._environment):
            self.process = subprocess.Popen(
                [*self._within, sys.executable, "-m", *arguments],
                cwd=ROOT,
                env=environment,
                pass_fds=[listener],
                stdout=write,
                stderr=self._errors,
            )
        else:
            self.process = Forked(arguments, environment, ROOT, (0, write, self._errors.fileno()), [listener])
        os.close(write)

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        finally:
            self.process.kill()
            self.process.wait()
            self._reader.join()
            self._log.close()
            self._socket.close()
            self._errors.close()

    def _read_log(self) -> None:
        self.log.extend(iter(self._log.readline, ""))

    def logged(self, *texts: str, lines: int = 1) -> list[str]:
        """The lines with all `texts` in them, once there are so many: they come through a pipe, after the answer."""
        limit = time.monotonic() + 20
        while True:
            found = [line for line in self.log if all(text in line for text in texts)]
            if len(found) >= lines or time.monotonic() >= limit:
                return found
            time.sleep(0.01)

    @property
    def errors(self) -> str:
        """What it has written to stderr, gunicorn's own log."""
        self._errors.seek(0)
        return self._errors.read().decode()


@contextmanager
def running(environment: Mapping[str, str]) -> Iterator[Function]:
    """A function with these settings, in whose log there must be no unexpected error in the end."""
    with Function(environment) as function:
        yield function
        assert "Traceback" not in "".join(function.log), "the function had an unexpected error"


class Served(Client):
    """A function that somebody's command has started."""

    def __init__(self, process: "subprocess.Popen[str]", port: int) -> None:
        self.process = process
        self.port = port

    def end(self) -> None:
        """Tells it to go, and sees that it goes as it should."""
        self.process.terminate()
        assert self.process.wait(20) == 0


@contextmanager
def serving(
    command: Sequence[str],
    environment: Mapping[str, str],
    folder: str | Path,
    log: IO[bytes] | int = subprocess.DEVNULL,
) -> Iterator[Served]:
    """What `command` serves, when started in `folder`, and logs to `log`; it is there until it is killed in the end."""
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    with process, process.stderr as errors:
        try:
            said = ""
            while not (
                listening := re.search(r"(?:Listening at:|Running on) http://(?:[0-9.]+|\[[0-9a-f:]+\]):(\d+)", said)
            ):
                line = errors.readline()
                assert line, f"it did not start: {said}"
                said += line
            reader = threading.Thread(target=errors.read)  # so that it never waits for somebody to listen
            reader.start()
            yield Served(process, int(listening[1]))
        finally:
            process.kill()
        reader.join()


def parse_outcome(answer: Answer) -> tuple[str, dict[str, Any]]:
    """The name and the parameters in `Fleet-Outcome`, read by somebody else's parser of structured fields."""
    item: Any = http_sf.parse(answer.outcome.encode(), tltype="item")
    name, parameters = item
    return str(name), {key: value if isinstance(value, int) else str(value) for key, value in parameters.items()}


def encoded(name: str) -> str:
    """Percent-encode everything but ASCII letters and digits, as Drogue Cloud does."""
    return "".join(chr(octet) if octet < 0x80 and chr(octet).isalnum() else f"%{octet:02X}" for octet in name.encode())


def event(device: str = "device1", application: str = "example", /, **attributes: str | None) -> dict[str, str | None]:
    """The attributes of a device's event, as Drogue Cloud makes them; None leaves one out."""
    return {
        "specversion": "1.0",
        "id": str(uuid.uuid4()),
        "type": "io.drogue.event.v1",
        "source": f"drogue://{application}/{encoded(device)}",
        "subject": "dfu",
        "time": datetime.now(UTC).isoformat(),
        "application": application,
        "applicationuid": str(uuid.uuid5(uuid.NAMESPACE_URL, application)),
        "device": device,
        "deviceuid": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{application}/{device}")),
        "sender": device,
        "senderuid": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{application}/{device}")),
        "instance": "drogue",
        "partitionkey": f"{encoded(application)}/{encoded(device)}",
        **attributes,
    }
