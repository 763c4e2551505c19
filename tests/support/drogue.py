"""Drogue Cloud's device registry and command API, as strict as the real ones, with scripted faults.

What it refuses, and with which status, was read from Drogue Cloud's sources and seen in runs of its services.
"""

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

#: Bytes of a body that registry and command API take at most.
MAX_BODY_BYTES = 65_536
#: What a role may do besides sending commands. A service without a role is no member of the application.
_READERS, _WRITERS = ("reader", "manager", "admin"), ("manager", "admin")
#: The keys that `metadata` may have; that of a device also has `application`.
_METADATA = {
    "name",
    "uid",
    "creationTimestamp",
    "resourceVersion",
    "generation",
    "deletionTimestamp",
    "finalizers",
    "labels",
    "annotations",
}
#: The keys of `metadata` that are kept as a client gives them.
_CLIENTS_METADATA = {"name", "application", "labels", "annotations", "finalizers"}


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

    Objects have versions. A PUT that changes something makes another; one with a version needs the current one.
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
        #: The service's role in an application: `manager` unless said otherwise; None if it is no member.
        self.roles: dict[str, str | None] = {}
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

    def stop_listening(self) -> None:
        """Refuse connections from now on."""
        self._server.stop_listening()

    def listen_again(self) -> None:
        """Take connections again."""
        self._server.listen_again()

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

        The reported status of a device stays unless another `status` is given.
        """
        names = (application,) if device is None else (application, device)
        with self._lock:
            earlier = self._objects.get(names, {})
            if "status" in earlier:
                sections = {"status": earlier["status"], **sections}
            uid = str(uuid.uuid5(uuid.NAMESPACE_URL, "/".join(names)))
            metadata: dict[str, Any] = {"name": names[-1], "uid": uid, "labels": labels or {}}
            if device is not None:
                metadata["application"] = application
            self._store(names, {"metadata": metadata, **sections})

    def recreate(self, application: str, device: str, **sections: Any) -> None:
        """Delete a device and create one of its name, which has another UID."""
        with self._lock:
            del self._objects[application, device]
            metadata = {"name": device, "application": application, "uid": str(uuid.uuid4()), "labels": {}}
            self._store((application, device), {"metadata": metadata, **sections})

    def annotate(self, application: str, device: str, **annotations: str) -> None:
        """Changes a device's annotations, as another writer does it."""
        with self._lock:
            known = self._objects[application, device]
            self._store((application, device), {**known, "metadata": {**known["metadata"], "annotations": annotations}})

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
            return _error(self.refuses_with, "Forbidden")
        url = urlsplit(request.path)
        segments = [unquote(segment, errors="strict") for segment in url.path.split("/")[1:]]
        match (request.method, segments):
            case ("GET", ["api", "registry", "v1alpha1", "apps"]):
                return self._list_applications(parse_qs(url.query))
            case ("GET", ["api", "registry", "v1alpha1", "apps", application]):
                return self._read(request, (application,))
            case ("GET", ["api", "registry", "v1alpha1", "apps", application, "devices"]):
                return self._list(application, parse_qs(url.query))
            case ("GET", ["api", "registry", "v1alpha1", "apps", application, "devices", device]):
                return self._read(request, (application, device))
            case ("PUT", ["api", "registry", "v1alpha1", "apps", application]):
                return self._write(request, (application,))
            case ("PUT", ["api", "registry", "v1alpha1", "apps", application, "devices", device]):
                return self._write(request, (application, device))
            case ("POST", ["api", "command", "v1alpha1", "apps", application, "devices", device]):
                return self._command(request, application, device, parse_qs(url.query))
        return Response(404)

    def _role(self, application: str) -> str | None:
        return self.roles.get(application, "manager")

    def _read(self, request: Request, names: tuple[str, ...]) -> Response | None:
        if not self._deliver:
            with self._lock:
                self.reads.append(names)
        if names in self.registry_answers:
            return self.registry_answers[names](request)
        with self._lock:
            found = self._objects.get(names)
        if self._role(names[0]) not in _READERS and (found is not None or len(names) > 1):
            return _refuse_rights(names)
        if found is None:
            return Response(404)
        return Response(200, json.dumps(found).encode(), {"Content-Type": "application/json"})

    def _list(self, application: str, query: Mapping[str, list[str]]) -> Response:
        with self._lock:
            is_known = (application,) in self._objects
            found = [each for names, each in sorted(self._objects.items()) if names[0] == application and names[1:]]
        if not is_known or self._role(application) not in _READERS:
            return _error(404, "NotFound")
        limit, offset = (int(query[key][0]) for key in ("limit", "offset"))
        page = json.dumps(found[offset : offset + limit]).encode()
        return Response(200, page, {"Content-Type": "application/json"})

    def _list_applications(self, query: Mapping[str, list[str]]) -> Response:
        with self._lock:
            own = [each for names, each in sorted(self._objects.items()) if len(names) == 1]
        found = [each for each in own if self._role(each["metadata"]["name"]) in _READERS]
        limit, offset = (int(query[key][0]) for key in ("limit", "offset"))
        page = json.dumps(found[offset : offset + limit]).encode()
        return Response(200, page, {"Content-Type": "application/json"})

    def _write(self, request: Request, names: tuple[str, ...]) -> Response | None:
        if not self._deliver:
            with self._lock:
                self.writes.append(names)
        if names in self.write_answers:
            response = self.write_answers[names](request)
            if response is None or not 200 <= response.status < 300:
                return response
        if request.headers.get("Content-Type", "").partition(";")[0].strip() != "application/json":
            return Response(400)
        if len(request.body) > MAX_BODY_BYTES:
            return Response(413)
        given = json.loads(request.body)
        metadata = given["metadata"]
        if not _is_well_formed(given, is_device=len(names) > 1) or _names(metadata) != names:
            return Response(400)
        with self._lock:
            known = self._objects.get(names)
            if self._role(names[0]) not in _WRITERS and (known is not None or len(names) > 1):
                return _refuse_rights(names)
            if known is None:
                return _error(404, "NotFound")
            for key in ("uid", "resourceVersion"):
                if (metadata.get(key) or known["metadata"][key]) != known["metadata"][key]:
                    return _error(409, "Conflict")
            if _has_nul(given):
                return _error(503, "Unavailable")  # PostgreSQL cannot store it, however often it is asked to
            self._store(names, given)
        return Response(204)

    def _store(self, names: tuple[str, ...], given: Mapping[str, Any]) -> None:
        """Stores an object, unless it is the same as before; `generation` changes with `spec` only."""
        earlier = self._objects.get(names)
        known = earlier["metadata"] if earlier else {"uid": given["metadata"]["uid"], "generation": 0}
        if earlier and _content(earlier) == _content(given):
            return
        is_another = earlier is None or earlier.get("spec", {}) != given.get("spec", {})
        metadata = {
            **{key: value for key, value in given["metadata"].items() if key in _CLIENTS_METADATA},
            "uid": known["uid"],
            "generation": known["generation"] + is_another,
            "creationTimestamp": known.get("creationTimestamp", "2026-11-23T06:00:00Z"),
            "resourceVersion": str(uuid.UUID(int=next(self._versions))),
        }
        sections = {key: given[key] for key in ("spec", "status") if key in given}
        self._objects[names] = {**sections, "metadata": metadata}

    def _command(
        self, request: Request, application: str, device: str, query: Mapping[str, list[str]]
    ) -> Response | None:
        if len(request.body) > MAX_BODY_BYTES:
            return _error(413, "PayloadTooLarge")
        if device in self.command_answers:
            response = self.command_answers[device](request)
            if response is None or not 200 <= response.status < 300:
                return response
        with self._lock:
            is_known = (application,) in self._objects
            found = self._objects.get((application, device))
        if not is_known or self._role(application) not in _READERS:
            return _error(404, "NotFound")
        if found is None or not _is_taken_for_enabled(found):
            return Response(406)
        content_type = request.headers.get("Content-Type", "")
        command = SentCommand(application, device, query["command"][0], content_type, request.body)
        if self._deliver:
            self._deliver(command)
        else:
            with self._lock:
                self.commands.append(command)
        return Response(202)


def _error(status: int, error: str) -> Response:
    body = json.dumps({"error": error, "message": f"{error}, it says"}).encode()
    return Response(status, body, {"Content-Type": "application/json"})


def _refuse_rights(names: tuple[str, ...]) -> Response:
    """A device is not confirmed to those without the right; an application is."""
    return _error(404, "NotFound") if len(names) > 1 else _error(403, "AuthenticationError")


def _names(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(metadata[key] for key in ("application", "name") if key in metadata)


def _content(found: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a PUT may change of an object."""
    metadata = {key: found["metadata"].get(key) or {} for key in ("labels", "annotations", "finalizers")}
    return {"spec": {}, "status": {}, **found, "metadata": metadata}


def _is_well_formed(given: Mapping[str, Any], *, is_device: bool) -> bool:
    metadata = given["metadata"]
    maps = [metadata.get("labels", {}), metadata.get("annotations", {}), given.get("spec", {}), given.get("status", {})]
    allowed = _METADATA | {"application"} if is_device else _METADATA
    return allowed.issuperset(metadata) and all(isinstance(each, dict) for each in maps)


def _has_nul(value: object) -> bool:
    if isinstance(value, str):
        return "\0" in value
    if isinstance(value, dict):
        return any(_has_nul(key) or _has_nul(each) for key, each in value.items())
    return isinstance(value, list) and any(_has_nul(each) for each in value)


def _is_taken_for_enabled(device: Mapping[str, Any]) -> bool:
    """Whether the command endpoint of released clouds takes commands for it: it reads `core.disabled` inverted."""
    core = (device.get("spec") or {}).get("core")
    return core is None or (isinstance(core, dict) and core.get("disabled") is True)


def _has_our_credentials(request: Request) -> bool:
    expected = "Basic " + base64.b64encode(f"{USER}:{TOKEN}".encode()).decode()
    return request.headers.get("Authorization") in (expected, f"Bearer {TOKEN}")
