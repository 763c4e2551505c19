"""What the sandbox answers: the device endpoint and the APIs of Drogue Cloud, and a token endpoint for these."""

import base64
import binascii
import hmac
import json
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import quote, unquote

from fleet_fn.cli.sandbox import registry as objects
from fleet_fn.cli.sandbox.events import Event, NotAcceptable, device_event
from fleet_fn.cli.sandbox.labels import Selector
from fleet_fn.cli.sandbox.registry import Object, Refused, Registry
from fleet_fn.cli.sandbox.server import Answer, Request
from fleet_fn.cli.sandbox.tokens import Tokens
from fleet_fn.cli.sandbox.waiting import Command, Commands

_APPS: Final = "/api/registry/v1alpha1/apps"
#: Beyond any wait, and any listing.
_MAX_NUMBER: Final = 2**32


class Endpoints:
    """Answers requests as Drogue Cloud does."""

    def __init__(
        self,
        registry: Registry,
        commands: Commands,
        publish: Callable[[Event], None],
        user: str,
        token: str,
        log: Callable[[str], None],
    ) -> None:
        """The endpoints of a cloud, whose APIs want `user` and `token`."""
        self._registry = registry
        self._commands = commands
        self._publish = publish
        self._basic = f"{user}:{token}".encode()
        self._token = token.encode()
        self._tokens = Tokens(user, token)
        self._log = log

    def answer(self, request: Request) -> Answer:
        """The answer to a request.

        Raises:
            Refused: the request is not granted.

        """
        match request.segments:
            case ("v1", channel, *_) if channel:
                _only(request, "POST")
                return self._receive(request, channel)
            case ("auth", "token"):
                _only(request, "POST")
                return self._tokens.give(request)
            case ("api", "registry", "v1alpha1", "apps", *names):
                self._authorize(request)
                return self._administer(request, names)
            case ("api", "command", "v1alpha1", "apps", application, "devices", device):
                self._authorize(request)
                _only(request, "POST")
                return self._command(request, application, device)
        raise Refused.not_found()

    # The device endpoint.

    def _receive(self, request: Request, channel: str) -> Answer:
        application, sender = self._authenticate(request)
        device = self._proxied(application, sender, request.query.get("as"))
        seconds = _number(request.query, "ct" if "ct" in request.query else "commandTimeout")
        try:
            event = device_event(application, sender, device, channel, request.body, request.content_type)
        except NotAcceptable:
            return Answer(406)
        if not seconds:
            self._publish(event)
            return Answer(202)
        # Subscribed before the event goes out: its answer may be faster than we are.
        with self._commands.subscribed(application["metadata"]["name"], device["metadata"]["name"]) as subscription:
            self._publish(event)
            command = subscription.wait(seconds)
        if command is None:
            return Answer(202)
        content_type = {} if command.content_type is None else {"Content-Type": command.content_type}
        return Answer(200, command.payload, {"command": command.name, **content_type})

    def _authenticate(self, request: Request) -> tuple[Object, Object]:
        """The application and the device that sent a request.

        The user is `DEVICE@APPLICATION`, split at the first `@`, the device percent-decoded; or, as documented for
        clients that cannot say so much in a user name, the query has the application or the device or both.
        """
        user, separator, password = _basic(request.authorization).partition(":")
        if not separator:
            raise _unauthenticated()
        in_user, _, scope = user.partition("@")
        application = request.query.get("application", scope)
        device = request.query.get("device")
        username = None
        if device is not None:
            username = user if "application" in request.query else unquote(in_user)
        else:
            device = user if "application" in request.query else unquote(in_user)
        try:
            found = self._registry.application(application)
        except Refused:
            raise _unauthenticated() from None
        sender = self._registry.device_by_alias(application, device)
        if sender is None or objects.disabled(found) or objects.disabled(sender):
            raise _unauthenticated()
        if not any(_matches(entry, sender, username, password) for entry in objects.credentials(sender)):
            raise _unauthenticated()
        return found, sender

    def _proxied(self, application: Object, sender: Object, name: str | None) -> Object:
        """The device that a sender speaks for."""
        if name is None:
            return sender
        device = self._registry.device_by_alias(application["metadata"]["name"], name)
        if device is None or objects.disabled(device):
            raise _unauthenticated()
        own = device["metadata"]["name"] == sender["metadata"]["name"]
        if not own and sender["metadata"]["name"] not in objects.gateways(device):
            raise _unauthenticated()
        return device

    # The command API.

    def _command(self, request: Request, application: str, device: str) -> Answer:
        name = request.query.get("command")
        if not name or not name.isprintable():
            raise Refused.bad_request("The query wants a command")
        self._registry.application(application)
        try:
            if objects.disabled(self._registry.device(application, device)):
                return Answer(406)
        except Refused:
            return Answer(406)
        passed_on = self._commands.send(application, device, Command(name, request.body, request.content_type))
        told = "passed on" if passed_on else "lost, since the device does not wait"
        self._log(f"{application}/{device} command {name}: {len(request.body)} bytes, {told}")
        return Answer(202)

    # The registry API.

    def _administer(self, request: Request, names: list[str]) -> Answer:
        match names:
            case []:
                _only(request, "GET", "POST")
                if request.method == "GET":
                    return Answer.json(self._registry.applications(*_listing(request.query)))
                return self._create(request, None)
            case [application]:
                _only(request, "GET", "PUT", "DELETE")
                return self._one(request, application, None)
            case [application, "devices"]:
                _only(request, "GET", "POST")
                if request.method == "GET":
                    return Answer.json(self._registry.devices(application, *_listing(request.query)))
                return self._create(request, application)
            case [application, "devices", device]:
                _only(request, "GET", "PUT", "DELETE")
                return self._one(request, application, device)
        raise Refused.not_found()

    def _one(self, request: Request, application: str, device: str | None) -> Answer:
        if request.method == "GET":
            registry = self._registry
            return Answer.json(
                registry.application(application) if device is None else registry.device(application, device)
            )
        if request.method == "DELETE":
            self._registry.delete(application, device, request.query)
            return Answer(204)
        given = _object(request.body)
        if objects.names(given) != (application, device):
            raise Refused.bad_request("metadata names another object than the path")
        self._registry.update(given)
        return Answer(204)

    def _create(self, request: Request, application: str | None) -> Answer:
        given = _object(request.body)
        of, device = objects.names(given)
        if (None if device is None else of) != application:
            raise Refused.bad_request("metadata.application is not the path's")
        self._registry.create(given)
        location = f"{_APPS}/{of}" if device is None else f"{_APPS}/{of}/devices/{quote(device, safe='')}"
        return Answer(201, headers={"Location": location})

    def _authorize(self, request: Request) -> None:
        """Lets those through who have our token.

        Raises:
            Refused: 401 without credentials, 403 with wrong ones.

        """
        if request.authorization is None:
            challenge = {"WWW-Authenticate": 'Basic realm="sandbox"'}
            raise Refused(401, "AuthenticationError", "Not authorized", challenge)
        scheme, _, value = request.authorization.partition(" ")
        if scheme.lower() == "bearer":
            granted = hmac.compare_digest(value.strip().encode(), self._token) or self._tokens.knows(value.strip())
        else:
            granted = hmac.compare_digest(_basic(request.authorization).encode(), self._basic)
        if not granted:
            raise Refused(403, "AuthenticationError", "Not authorized")


def _unauthenticated() -> Refused:
    """One answer for every reason, as it should be."""
    return Refused(403, "AuthenticationError", "Authentication failed")


def _basic(authorization: str | None) -> str:
    """What Basic credentials say; nothing, if there are none."""
    scheme, _, value = (authorization or "").partition(" ")
    if scheme.lower() != "basic":
        return ""
    try:
        return base64.b64decode(value.strip(), validate=True).decode()
    except (binascii.Error, ValueError):
        return ""


def _matches(entry: object, device: Object, username: str | None, password: str) -> bool:
    """Whether one of a device's credentials is the one that was sent; without a user name, the device's is meant."""
    if not isinstance(entry, dict):
        return False
    name = device["metadata"]["name"]
    expected, wanted = entry.get("pass"), name
    if isinstance(entry.get("user"), dict):
        expected, wanted = entry["user"].get("password"), entry["user"].get("username")
    if isinstance(expected, dict):
        expected = expected.get("plain")
    if not isinstance(expected, str) or wanted != (name if username is None else username):
        return False
    return hmac.compare_digest(expected.encode(), password.encode())


def _only(request: Request, *methods: str) -> None:
    if request.method not in methods:
        allowed = ", ".join(methods)
        raise Refused(405, "MethodNotAllowed", f"Only {allowed} here", {"Allow": allowed})


def _object(body: bytes) -> dict[str, Any]:
    try:
        given = json.loads(body.decode())
    except (ValueError, RecursionError) as error:
        raise Refused.bad_request(f"Not JSON: {error}") from error
    if not isinstance(given, dict):
        raise Refused.bad_request("Not an object")
    return given


def _listing(query: Mapping[str, str]) -> tuple[Selector, int, int | None]:
    try:
        selector = Selector.parse(query.get("labels", ""))
    except ValueError as error:
        raise Refused.bad_request(str(error)) from error
    return selector, _number(query, "offset") or 0, _number(query, "limit")


def _number(query: Mapping[str, str], key: str) -> int | None:
    text = query.get(key)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()):
        raise Refused.bad_request(f"{key} is no number")
    return min(int(text[:20]), _MAX_NUMBER)
