"""A sink for CloudEvents in a process of its own, which behaves as the path that it is sent to says."""

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from cloudevents.core.bindings.http import HTTPMessage, from_binary
from cloudevents.core.formats.json import JSONFormat

from tests.support.function import ROOT


@dataclass(frozen=True)
class Received:
    """A request to the sink."""

    path: str
    headers: dict[str, str]
    body: str

    @property
    def attributes(self) -> dict[str, Any]:
        """The event's attributes, read by the SDK."""
        return dict(from_binary(HTTPMessage(self.headers, self.body.encode()), JSONFormat()).get_attributes())

    @property
    def data(self) -> Any:
        return json.loads(self.body)


class Sink:
    """What a test sees of the process."""

    def __init__(self, process: "subprocess.Popen[str]", port: int) -> None:
        self.process = process
        self.port = port
        self._received: list[Received] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def url(self, behavior: str = "take") -> str:
        """The URL of `take`, `hang`, `answer-STATUS`, `garbage`, `redirect` or `hang-up`."""
        return f"http://127.0.0.1:{self.port}/{behavior}"

    def received(self, count: int) -> list[Received]:
        """All requests, once there are so many, and a moment later."""
        limit = time.monotonic() + 20
        while len(self._received) < count and time.monotonic() < limit:
            time.sleep(0.01)
        time.sleep(0.1)
        return list(self._received)

    def close(self) -> None:
        self.process.kill()
        self._reader.join()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self._received.extend(Received(**json.loads(line)) for line in self.process.stdout)


@contextmanager
def sinking() -> Iterator[Sink]:
    """A sink that is there until the end."""
    command = [sys.executable, "-m", "tests.support.sink"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        sink = Sink(process, int(process.stdout.readline()))
        try:
            yield sink
        finally:
            sink.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        headers = {name.lower(): value for name, value in self.headers.items()}
        print(json.dumps({"path": self.path, "headers": headers, "body": body}), flush=True)  # noqa: T201 - the report
        behavior = self.path.strip("/")
        if behavior == "hang":
            time.sleep(60)
        elif behavior == "garbage":
            self.wfile.write(b"\x00\xff no HTTP at all\r\n\r\n" * 100)
        elif behavior == "redirect":
            self._answer(307, {"Location": f"http://{self.headers['Host']}/take"})
        elif behavior.startswith("answer-"):
            self._answer(int(behavior.removeprefix("answer-")), {})
        elif behavior == "take":
            self._answer(202, {})
        self.close_connection = behavior != "take"

    def _answer(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": "0"}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = socket.SOMAXCONN


if __name__ == "__main__":
    server = _Server(("127.0.0.1", 0), _Handler)
    print(server.server_address[1], flush=True)  # noqa: T201 - the report
    server.serve_forever()
