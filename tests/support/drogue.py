"""Drogue Cloud's two interfaces, scripted: what it says, and when it does not."""

import base64
import itertools
import json
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.support.http import Answer, Request, Response, Server

USER, TOKEN = "service", "t0ken"


@dataclass(frozen=True)
class SentCommand:
    """A command that was accepted."""

    application: str
    device: str
    name: str
    content_type: str
    payload: bytes


class Drogue:
    """A registry with the objects that a test puts there, and a command API.

    Objects have versions: a PUT has to carry the current one, and makes another.
    """

    def __init__(
        self,
        accepts: Callable[[Request], bool] | None = None,
        *,
        through: Callable[[Answer], Answer] = lambda answer: answer,
        deliver: Callable[[SentCommand], object] | None = None,
    ) -> None:
        """A cloud that remembers what it was asked and which commands it accepted.

        Args:
            accepts: whose requests are let in; without that, those with its own credentials.
            through: what comes between its answers and those who ask, perhaps another answer.
            deliver: takes each command that is accepted. Nothing is remembered then, so that it can go on for long.

        """
        self._accepts = accepts or _has_our_credentials
        self._deliver = deliver
        self._server = Server(through(self._answer), remembers=deliver is None)
        self._lock = threading.Lock()
        self._objects: dict[tuple[str, ...], Any] = {}
        self._versions = itertools.count(1)
        #: What it answers to those whose credentials are no good.
        self.refuses_with = 403
        #: What to answer instead, by the last segments of a path: (application,) or (application, device).
        self.registry_answers: dict[tuple[str, ...], Callable[[Request], Response | None]] = {}
        #: The same, for writes.
        self.write_answers: dict[tuple[str, ...], Callable[[Request], Response | None]] = {}
        self.command_answers: dict[str, Callable[[Request], Response | None]] = {}
        self.commands: list[SentCommand] = []
        self.reads: list[tuple[str, ...]] = []
        #: Which objects were written, or were to be, whatever came of that.
        self.writes: list[tuple[str, ...]] = []

    def __enter__(self) -> "Drogue":
        self._server.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.__exit__()

    @property
    def url(self) -> str:
        return self._server.url

    @property
    def environment(self) -> dict[str, str]:
        return {"DROGUE_API_URL": self.url, "DROGUE_USER": USER, "DROGUE_TOKEN": TOKEN}

    def put(
        self, application: str, device: str | None = None, labels: Mapping[str, str] | None = None, **sections: Any
    ) -> None:
        """Creates or replaces an application or a device; `spec={…}` and such are its sections.

        What was reported of a device stays where no `status` is given.
        """
        names = (application,) if device is None else (application, device)
        with self._lock:
            earlier = self._objects.get(names)
            if isinstance(earlier, dict) and "status" in earlier:
                sections = {"status": earlier["status"], **sections}
            uid = str(uuid.uuid5(uuid.NAMESPACE_URL, "/".join(names)))
            metadata = {"name": names[-1], "application": application, "uid": uid, "labels": labels or {}}
            self._objects[names] = {"metadata": {**metadata, "resourceVersion": str(next(self._versions))}, **sections}

    def object(self, *names: str) -> Any:
        """An application, or a device of one, as the registry has it."""
        with self._lock:
            return json.loads(json.dumps(self._objects[names]))

    def reported(self, device: str, application: str = "example") -> Any:
        """What a device's object says in `status.firmware`."""
        with self._lock:
            return json.loads(json.dumps(self._objects[application, device].get("status", {}).get("firmware")))

    def writes_of(self, *names: str) -> int:
        return self.writes.count(names)

    def put_image(self, application: str, device: str | None, image: str | None, **container: Any) -> None:
        """A device, or an application, whose firmware is `image`."""
        firmware = {} if image is None else {"firmware": {"container": {"image": image, **container}}}
        self.put(application, device, spec=firmware)

    @property
    def authorizations(self) -> set[str | None]:
        """What requests carried as credentials so far."""
        return {request.headers.get("Authorization") for request in self._server.requests}

    def commands_for(self, device: str) -> list[SentCommand]:
        return [command for command in self.commands if command.device == device]

    def reads_of(self, *names: str) -> int:
        return self.reads.count(names)

    def _answer(self, request: Request) -> Response | None:
        if not self._accepts(request):
            return Response(self.refuses_with)
        url = urlsplit(request.path)
        segments = [unquote(segment, errors="strict") for segment in url.path.split("/")[1:]]
        match (request.method, segments):
            case ("GET", ["api", "registry", "v1alpha1", "apps", application]):
                return self._read(request, (application,))
            case ("GET", ["api", "registry", "v1alpha1", "apps", application, "devices", device]):
                return self._read(request, (application, device))
            case ("PUT", ["api", "registry", "v1alpha1", "apps", application, "devices", device]):
                return self._write(request, (application, device))
            case ("POST", ["api", "command", "v1alpha1", "apps", application, "devices", device]):
                return self._command(request, application, device, parse_qs(url.query))
        return Response(404)

    def _read(self, request: Request, names: tuple[str, ...]) -> Response | None:
        if not self._deliver:
            with self._lock:
                self.reads.append(names)
        if names in self.registry_answers:
            return self.registry_answers[names](request)
        with self._lock:
            found = self._objects.get(names)
            if found is None:
                return Response(404, b'{"error":"NotFound"}', {"Content-Type": "application/json"})
            return Response(200, json.dumps(found).encode(), {"Content-Type": "application/json"})

    def _write(self, request: Request, names: tuple[str, ...]) -> Response | None:
        if not self._deliver:
            with self._lock:
                self.writes.append(names)
        if names in self.write_answers:
            response = self.write_answers[names](request)
            if response is None or not 200 <= response.status < 300:
                return response
        given = json.loads(request.body)
        if (given["metadata"].get("application"), given["metadata"].get("name")) != names:
            return Response(400)
        with self._lock:
            if names not in self._objects:
                return Response(404)
            if given["metadata"]["resourceVersion"] != self._objects[names]["metadata"]["resourceVersion"]:
                return Response(409)
            given["metadata"]["resourceVersion"] = str(next(self._versions))
            self._objects[names] = given
        return Response(204)

    def _command(
        self, request: Request, application: str, device: str, query: Mapping[str, list[str]]
    ) -> Response | None:
        if device in self.command_answers:
            response = self.command_answers[device](request)
            if response is None or not 200 <= response.status < 300:
                return response
        content_type = request.headers.get("Content-Type", "")
        command = SentCommand(application, device, query["command"][0], content_type, request.body)
        if self._deliver:
            self._deliver(command)
        else:
            with self._lock:
                self.commands.append(command)
        return Response(202)


def _has_our_credentials(request: Request) -> bool:
    expected = "Basic " + base64.b64encode(f"{USER}:{TOKEN}".encode()).decode()
    return request.headers.get("Authorization") in (expected, f"Bearer {TOKEN}")
