"""hawkBit's device API, as strict as hawkBit 1.1.0: which requests it refuses, and with which status."""

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.support.ddi.model import MAX_ATTRIBUTES, Action, Module, RefusedError, Target
from tests.support.http import Answer, Request, Response, Server

TENANT: Final = "DEFAULT"
TOKEN: Final = "gateway-s3cr3t"

_EXECUTIONS: Final = (
    "closed", "proceeding", "canceled", "scheduled", "rejected", "resumed", "downloaded", "download"
)  # fmt: skip
_FINISHED: Final = ("success", "failure", "none")
_ATTRIBUTE: Final = re.compile(r"[a-zA-Z0-9_\-!@#$%^&*()+=\[\]{}|;:'\",.<>/\\?\s]{0,128}")
_RANGE: Final = re.compile(r"bytes=(\d+)-(\d*)")
_HAL: Final = {"Content-Type": "application/hal+json"}


class FakeHawkbit:
    """A hawkBit, with a target for each controller that has ever asked."""

    def __init__(self) -> None:
        self._server = Server(self._answer)
        self._lock = threading.RLock()
        self.targets: dict[str, Target] = {}
        self.actions: list[Action] = []
        #: What to answer instead, by the part of a path after the controller: ``, `deploymentBase`, `feedback`, …
        self.answers: dict[str, Answer] = {}
        #: The host in its links, if it does not know its own.
        self.links_to = ""

    def __enter__(self) -> "FakeHawkbit":
        self._server.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.__exit__()

    def stop_listening(self) -> None:
        """Refuse connections from now on."""
        self._server.drop_connections()
        self._server.stop_listening()

    def listen_again(self) -> None:
        self._server.listen_again()

    @property
    def url(self) -> str:
        return self._server.url

    @property
    def environment(self) -> dict[str, str]:
        return {"HAWKBIT_URL": self.url, "HAWKBIT_TENANT": TENANT, "HAWKBIT_GATEWAY_TOKEN": TOKEN}

    @property
    def requests(self) -> list[Request]:
        return self._server.requests

    def asked(self, controller: str) -> list[str]:
        """What was asked for a controller: `GET `, `GET deploymentBase/7`, `POST deploymentBase/7/feedback`, …"""
        root = f"/{TENANT}/controller/v1/"
        found = []
        for request in self.requests:
            name, _, rest = urlsplit(request.path).path.removeprefix(root).partition("/")
            if unquote(name) == controller:
                found.append(f"{request.method} {rest}")
        return found

    # --- What an operator does ----------------------------------------------------------------------------------------

    def assign(self, controller: str, *modules: Module, **options: Any) -> Action:
        """Assigns modules to a target. An action that is open is canceled for it."""
        with self._lock:
            self.targets.setdefault(controller, Target())
            for earlier in self._active(controller):
                if not earlier.is_canceling:
                    earlier.change("canceling")
                    earlier.statuses.append(("canceling", []))
            action = Action(controller, modules, **options)
            self.actions.append(action)
            return action

    def cancel(self, action: Action) -> None:
        with self._lock:
            assert action.active
            assert not action.is_canceling
            action.change("canceling")
            action.statuses.append(("canceling", []))

    def confirm(self, action: Action) -> None:
        with self._lock:
            action.change("running")

    def set_window(self, action: Action, window: str) -> None:
        with self._lock:
            action.window = window

    def _active(self, controller: str) -> list[Action]:
        return [action for action in self.actions if action.controller == controller and action.active]

    # --- What devices ask ---------------------------------------------------------------------------------------------

    def _answer(self, request: Request) -> Response | None:
        parts = urlsplit(request.path)
        segments = [unquote(segment) for segment in parts.path.split("/")[1:]]
        if len(segments) < 4 or segments[1:3] != ["controller", "v1"]:
            return Response(404)
        if segments[0] != TENANT or request.headers.get("Authorization") != f"GatewayToken {TOKEN}":
            return Response(401)
        controller, rest = segments[3], segments[4:]
        for key in ("/".join(rest), rest[0] if rest else "", rest[-1] if rest else ""):
            if key in self.answers:
                return self.answers[key](request)
        with self._lock:
            try:
                return self._dispatch(request, controller, rest, parse_qs(parts.query))
            except RefusedError as refusal:
                return Response(refusal.status)

    def _dispatch(self, request: Request, controller: str, rest: list[str], query: dict[str, list[str]]) -> Response:
        match request.method, rest:
            case "GET", []:
                return self._base(controller)
            case "GET", ["deploymentBase", number]:
                return self._deployment(controller, number, query)
            case "GET", ["confirmationBase", number]:
                return self._confirmation(controller, number)
            case "GET", ["installedBase", number]:
                return self._installed(controller, number)
            case "GET", ["cancelAction", number]:
                return self._cancellation(controller, number)
            case "POST", ["deploymentBase", number, "feedback"]:
                return self._feedback(self._action(controller, number), _read_feedback(request, number))
            case "POST", ["cancelAction", number, "feedback"]:
                return self._cancel_feedback(self._action(controller, number), _read_feedback(request, number))
            case "PUT", ["configData"]:
                return self._attributes(self._target(controller), request)
            case "GET", ["softwaremodules", number, "artifacts", name]:
                return self._download(controller, number, name, request)
        return Response(404)

    def _url(self, controller: str) -> str:
        return f"{self.links_to or self.url}/{TENANT}/controller/v1/{quote(controller, safe='')}"

    def _base(self, controller: str) -> Response:
        if len(controller) > 256:
            return Response(400)
        target = self.targets.setdefault(controller, Target())
        url, links = self._url(controller), {}
        active = self._active(controller)
        if active:
            action = active[0]
            if action.is_waiting:
                links["confirmationBase"] = f"{url}/confirmationBase/{action.id}?c={action.etag}"
            elif action.is_canceling:
                links["cancelAction"] = f"{url}/cancelAction/{action.id}"
            else:
                links["deploymentBase"] = f"{url}/deploymentBase/{action.id}?c={action.etag}"
        if target.installed:
            links["installedBase"] = f"{url}/installedBase/{target.installed.id}"
        if target.wants_attributes:
            links["configData"] = f"{url}/configData"
        document: dict[str, Any] = {"config": {"polling": {"sleep": "00:05:00"}}}
        if links:
            document["_links"] = {name: {"href": href} for name, href in links.items()}
        return Response(200, json.dumps(document).encode(), _HAL)

    def _target(self, controller: str) -> Target:
        if controller not in self.targets:
            raise RefusedError(404)
        return self.targets[controller]

    def _action(self, controller: str, number: str) -> Action:
        self._target(controller)
        for action in self.actions:
            if action.id == number and action.controller == controller:
                return action
        raise RefusedError(404)

    def _deployment(self, controller: str, number: str, query: dict[str, list[str]]) -> Response:
        action = self._action(controller, number)
        if not re.fullmatch(r"-?[0-9]+", query.get("c", ["-1"])[0]):
            raise RefusedError(400)
        if action.is_canceling or action.is_waiting:
            raise RefusedError(404)
        document = {"id": action.id, "deployment": action.document(self._url(controller))}
        action.retrieve()
        return Response(200, json.dumps(document).encode(), _HAL)

    def _confirmation(self, controller: str, number: str) -> Response:
        action = self._action(controller, number)
        if action.is_canceling or not action.is_waiting:
            raise RefusedError(404)
        document = {"id": action.id, "confirmation": action.document(self._url(controller))}
        return Response(200, json.dumps(document).encode(), _HAL)

    def _installed(self, controller: str, number: str) -> Response:
        action = self._action(controller, number)
        if action.active or action.is_canceling:
            raise RefusedError(404)
        document = {"id": action.id, "deployment": action.document(self._url(controller))}
        return Response(200, json.dumps(document).encode(), _HAL)

    def _cancellation(self, controller: str, number: str) -> Response:
        action = self._action(controller, number)
        if not action.is_canceling:
            raise RefusedError(404)
        action.retrieve()
        document = {"id": action.id, "cancelAction": {"stopId": action.id}}
        return Response(200, json.dumps(document).encode(), _HAL)

    def _feedback(self, action: Action, feedback: dict[str, Any]) -> Response:
        if action.is_waiting:
            raise RefusedError(404)
        if not action.active:
            raise RefusedError(410)
        execution, finished = feedback["execution"], feedback["result"]["finished"]
        status = execution
        if execution == "closed":
            status = "error" if finished == "failure" else "finished"
        action.add(status, feedback.get("details") or [], is_final=execution == "closed")
        target = self.targets[action.controller]
        if status == "finished":
            action.active = False
            action.change("finished")
            target.installed, target.wants_attributes = action, True
        elif status == "error":
            action.active = False
            action.change("error")
        elif status == "downloaded" and action.type == "downloadonly":
            action.active = False
            action.change("downloaded")
            target.wants_attributes = True
        return Response(200)

    def _cancel_feedback(self, action: Action, feedback: dict[str, Any]) -> Response:
        if not action.is_canceling or not action.active:
            raise RefusedError(405)
        execution, finished = feedback["execution"], feedback["result"]["finished"]
        messages = feedback.get("details") or []
        if execution == "closed" and finished != "failure":
            action.add("canceled", messages, is_final=True)
            action.active = False
            action.change("canceled")
        elif execution in ("closed", "rejected"):
            action.add("cancel_rejected", messages, is_final=True)
            action.change("running")
        else:
            action.add("warning" if execution == "canceled" else "running", messages, is_final=False)
        return Response(200)

    def _attributes(self, target: Target, request: Request) -> Response:
        given = _read_json(request)
        data, mode = given.get("data"), given.get("mode", "merge")
        if not isinstance(data, dict) or not data or mode not in ("merge", "replace", "remove"):
            raise RefusedError(400)
        if not all(_ATTRIBUTE.fullmatch(text) for pair in data.items() for text in pair):
            raise RefusedError(400)
        assert mode == "merge"
        target.attributes |= data
        if len(target.attributes) > MAX_ATTRIBUTES:
            raise RefusedError(429)
        target.wants_attributes = False
        return Response(200)

    def _download(self, controller: str, number: str, name: str, request: Request) -> Response:
        self._target(controller)
        for action in self._active(controller):
            if action.is_canceling:
                continue
            for module in action.modules:
                for file in module.files:
                    if str(module.id) == number and file.name == name:
                        if "Range" not in request.headers:
                            action.add("download", [], is_final=False)
                        return _send(file.content, request.headers.get("Range"))
        raise RefusedError(404)


def _send(content: bytes, wanted: str | None) -> Response:
    headers = {
        "Content-Type": "application/octet-stream",
        "Accept-Ranges": "bytes",
        "ETag": f'"{hashlib.sha1(content, usedforsecurity=False).hexdigest()}"',
    }
    if wanted is None:
        return Response(200, content, headers)
    match = _RANGE.fullmatch(wanted)
    start = int(match[1]) if match else len(content)
    end = min(int(match[2]) + 1, len(content)) if match and match[2] else len(content)
    if not match or start >= end:
        return Response(416, headers={"Content-Range": f"bytes */{len(content)}"})
    headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
    return Response(206, content[start:end], headers)


def _read_json(request: Request) -> dict[str, Any]:
    if request.headers.get("Content-Type", "").partition(";")[0].strip() != "application/json":
        raise RefusedError(415)
    try:
        given = json.loads(request.body)
    except ValueError as error:
        raise RefusedError(400) from error
    if not isinstance(given, dict):
        raise RefusedError(400)
    return given


def _read_feedback(request: Request, number: str) -> dict[str, Any]:
    """Returns the status in a feedback. A `timestamp` is taken by hawkBit, but never right of a gateway."""
    given = _read_json(request)
    assert given.get("id") == number, "hawkBit before 1.0 answers 404 without it"
    assert "timestamp" not in given, "an old time keeps hawkBit from noticing the installation"
    status = given.get("status")
    if not isinstance(status, dict) or status.get("execution") not in _EXECUTIONS:
        raise RefusedError(400)
    result = status.get("result")
    if not isinstance(result, dict) or result.get("finished") not in _FINISHED:
        raise RefusedError(400)
    progress = result.get("progress")
    if progress is not None and not (isinstance(progress, dict) and type(progress.get("cnt")) is int):
        raise RefusedError(400)
    details = status.get("details")
    if details is not None and not (isinstance(details, list) and all(isinstance(text, str) for text in details)):
        raise RefusedError(400)
    return status


@contextlib.contextmanager
def answering(hawkbit: FakeHawkbit, key: str, answer: Answer) -> Iterator[None]:
    """Has it answer something else for a while."""
    hawkbit.answers[key] = answer
    try:
        yield
    finally:
        del hawkbit.answers[key]
