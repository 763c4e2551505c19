"""The sandbox's answers: Drogue Cloud's device endpoint, APIs and token endpoint."""

import hmac
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import quote, unquote

from fleet_fn.sandbox import objects
from fleet_fn.sandbox.commanding import Commanding
from fleet_fn.sandbox.events import Event, NotAcceptableError, device_event
from fleet_fn.sandbox.labels import Selector
from fleet_fn.sandbox.objects import Core, Object
from fleet_fn.sandbox.refusal import RefusedError
from fleet_fn.sandbox.registry import Registry
from fleet_fn.sandbox.rights import Permission, Rights, basic
from fleet_fn.sandbox.server import Answer, Request

_APPS: Final = "/api/registry/v1alpha1/apps"
#: Bounds numbers in queries: longer than any wait, and than any listing.
_MAX_NUMBER: Final = 2**32
_JSON: Final = re.compile(r"[a-z0-9!#$&^_.+-]+/(json|[a-z0-9!#$&^_.+-]+\+json)", re.IGNORECASE)


class Endpoints:
    """Answers requests as Drogue Cloud does."""

    def __init__(
        self,
        registry: Registry,
        commanding: Commanding,
        publish: Callable[[Event], None],
        rights: Rights,
        log: Callable[[str], None],
        *,
        inverts_core: bool,
    ) -> None:
        """Serve a cloud.

        Args:
            registry: applications and devices.
            commanding: passes commands on to the devices that wait for them.
            publish: takes events.
            rights: the users and their rights.
            log: takes one line for each device that is refused.
            inverts_core: read `spec.core.disabled` of a device like released clouds.

        """
        self._registry = registry
        self._commanding = commanding
        self._publish = publish
        self._rights = rights
        self._log = log
        self._inverts_core = inverts_core

    def answer(self, request: Request) -> Answer:
        """Return the answer to a request.

        Raises:
            RefusedError: the request is refused.

        """
        match request.segments:
            case ("v1", channel, *_) if channel:
                _only(request, "POST")
                return self._receive(request, channel)
            case ("auth", "token"):
                _only(request, "POST")
                return self._rights.tokens.give(request)
            case ("api", "registry", "v1alpha1", "apps", *names):
                return self._administer(request, self._rights.user(request.authorization), names)
            case ("api", "command", "v1alpha1", "apps", application, "devices", device):
                user = self._rights.user(request.authorization)
                _only(request, "POST")
                return self._command(request, user, application, device)
        raise RefusedError.silently(404, "no such endpoint")

    # The device endpoint.

    def _receive(self, request: Request, channel: str) -> Answer:
        seconds = _number(request.query, "ct" if "ct" in request.query else "commandTimeout")
        payload = request.body
        application, sender, login = self._authenticate(request)
        device = self._find_represented(application, sender, login, request.query.get("as"))
        try:
            event = device_event(application, sender, device, channel, payload, request.content_type)
        except NotAcceptableError:
            return Answer(406)
        if not seconds:
            self._publish(event)
            return Answer(202)
        names = (each["metadata"]["name"] for each in (application, sender, device))
        # Subscribe before the event goes out: its command may come at once.
        with self._commanding.commands.subscribe(*names) as subscription:
            self._publish(event)
            command = subscription.wait(seconds)
        if command is None:
            return Answer(202)
        return Answer(200, command.payload, {"command": command.name})

    def _authenticate(self, request: Request) -> tuple[Object, Object, str]:
        """Return a request's application and device, and the device's name for itself.

        The user name is `DEVICE@APPLICATION`, split at the first `@`, with the device percent-encoded. For clients that
        cannot send such a user name, the query may have the application, the device or both, as documented.
        """
        user, separator, password = (basic(request.authorization) or "").partition(":")
        if not separator:
            raise _refuse_credentials()
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
        except RefusedError:
            raise self._turn_away(application, device, "no such application") from None
        sender = self._registry.device_by_alias(application, device)
        if sender is None:
            raise self._turn_away(application, device, "no such device")
        if any(map(objects.is_being_deleted, (found, sender))):
            raise self._turn_away(application, device, "being deleted")
        # The authentication service reads the flag of applications only, and does not invert it.
        if not _is_on(found) or (not self._inverts_core and not _is_on(sender)):
            raise self._turn_away(application, device, "disabled by spec.core")
        if not any(_matches(entry, sender, device, username, password) for entry in objects.credentials(sender)):
            raise self._turn_away(application, device, "wrong credentials")
        return found, sender, device

    def _turn_away(self, application: str, device: str, problem: str) -> RefusedError:
        """Log why a device is refused, and return the refusal, which does not say it."""
        self._log(f"{application}/{device} refused: {problem}")
        return _refuse_credentials()

    def _find_represented(self, application: Object, sender: Object, login: str, name: str | None) -> Object:
        """Return the device that a sender speaks for."""
        if name is None or name == login:
            return sender
        scope = application["metadata"]["name"]
        device = self._registry.device_by_alias(scope, name)
        if device is None:
            raise self._turn_away(scope, name, "no such device")
        if objects.is_being_deleted(device):
            raise self._turn_away(scope, name, "being deleted")
        if not self._inverts_core and not _is_on(device):
            raise self._turn_away(scope, name, "disabled by spec.core")
        if sender["metadata"]["name"] not in objects.gateways(device):
            raise self._turn_away(scope, name, f"its spec.gatewaySelector does not name {login}")
        return device

    # The command API.

    def _command(self, request: Request, user: str | None, application: str, device: str) -> Answer:
        if not self._may(user, application, Permission.READ):
            raise RefusedError(404, "NotFound", f"Resource not found: Application / {application}")
        name = request.query.get("command")
        if not name or not name.isprintable():
            raise RefusedError.bad_request("Query deserialize error: missing field `command`")
        is_accepted = self._commanding.send(application, device, name, request.body, request.content_type)
        return Answer(202 if is_accepted else 406)

    # The registry API.

    def _administer(self, request: Request, user: str | None, names: list[str]) -> Answer:
        match names:
            case []:
                _only(request, "GET", "POST")
                if request.method == "POST":
                    return self._create(request, user, None)
                selector, offset, limit = _read_listing(request.query)
                # An application without an owner is in no user's list.
                return Answer.json(
                    self._registry.applications(selector, offset, limit, lambda name: self._is_member(user, name))
                )
            case [application]:
                _only(request, "GET", "PUT", "DELETE")
                return self._application(request, user, application)
            case [application, "devices"]:
                _only(request, "GET", "POST")
                if request.method == "POST":
                    return self._create(request, user, application)
                selector, offset, limit = _read_listing(request.query)
                self._expect(user, application, Permission.READ, RefusedError.not_found)
                return Answer.json(self._registry.devices(application, selector, offset, limit))
            case [application, "devices", device] if device:
                _only(request, "GET", "PUT", "DELETE")
                return self._device(request, user, application, device)
        raise RefusedError.silently(404, "no such endpoint")

    def _application(self, request: Request, user: str | None, name: str) -> Answer:
        if request.method == "PUT":
            given = _object(request, is_device=False)
            if objects.names(given) != (name, None):
                raise RefusedError.silently(400, "metadata names another object than the path")
            self._expect(user, name, Permission.WRITE, RefusedError.not_authorized)
            self._registry.update(given)
            return Answer(204)
        if request.method == "DELETE":
            self._expect(user, name, Permission.ADMIN, RefusedError.not_authorized)
            self._registry.delete(name, expected=_preconditions(request))
            return Answer(204)
        try:
            found = self._registry.application(name)
        except RefusedError as refusal:
            raise _without_body(refusal) from None
        self._expect(user, name, Permission.READ, RefusedError.not_authorized)
        return Answer.json(found)

    def _device(self, request: Request, user: str | None, application: str, name: str) -> Answer:
        if request.method == "PUT":
            given = _object(request, is_device=True)
            if objects.names(given) != (application, name):
                raise RefusedError.silently(400, "metadata names another object than the path")
            self._expect(user, application, Permission.WRITE, RefusedError.not_found)
            self._registry.update(given)
            return Answer(204)
        if request.method == "DELETE":
            self._expect(user, application, Permission.WRITE, RefusedError.not_found)
            self._registry.delete(application, name, _preconditions(request))
            return Answer(204)
        self._expect(user, application, Permission.READ, RefusedError.not_found)
        try:
            return Answer.json(self._registry.device(application, name))
        except RefusedError as refusal:
            raise _without_body(refusal) from None

    def _create(self, request: Request, user: str | None, application: str | None) -> Answer:
        given = _object(request, is_device=application is not None)
        of, device = objects.names(given)
        # Like released clouds: the device's own metadata decides its application, not the path.
        objects.check_new(of, device)
        if device is not None:
            self._expect(user, of, Permission.WRITE, RefusedError.reference_not_found)
        self._registry.create(given, user)
        location = f"{_APPS}/{of}" if device is None else f"{_APPS}/{application}/devices/{quote(device, safe='')}"
        return Answer(201, headers={"Location": location})

    def _expect(
        self, user: str | None, application: str, permission: Permission, refusal: Callable[[], RefusedError]
    ) -> None:
        """Check that an application exists and that a user has a permission for it.

        Raises:
            RefusedError: the application is missing; or `refusal`, if the user has no such permission.

        """
        try:
            self._registry.application(application)
        except RefusedError as missing:
            raise (
                refusal() if missing.status == 404 and refusal is RefusedError.reference_not_found else missing
            ) from None
        if not self._may(user, application, permission):
            raise refusal()

    def _may(self, user: str | None, application: str, permission: Permission) -> bool:
        registry = self._registry
        return registry.has(application) and self._rights.may(user, registry.owner(application), permission)

    def _is_member(self, user: str | None, application: str) -> bool:
        owner = self._registry.owner(application)
        return owner is not None and self._rights.may(user, owner, Permission.READ)


def _refuse_credentials() -> RefusedError:
    """Return the same refusal for every reason: no client can probe for devices."""
    return RefusedError(403, "AuthenticationError", "Authentication failed", has_code=True)


def _without_body(refusal: RefusedError) -> RefusedError:
    """Return the refusal of a GET of one object, without a body if it is missing."""
    return RefusedError.silently(404, str(refusal)) if refusal.status == 404 else refusal


def _is_on(stored: Object) -> bool:
    return objects.core(stored) in (Core.ABSENT, Core.ENABLED)


def _matches(entry: object, device: Object, login: str, username: str | None, password: str) -> bool:
    """Return whether a request has these credentials of a device.

    `username` defaults to the device's name.
    """
    if not isinstance(entry, dict):
        return False
    name = device["metadata"]["name"]
    expected, wanted = entry.get("pass"), name
    sent = name if username is None else username
    if isinstance(user := entry.get("user"), dict):
        expected, wanted = user.get("password"), user.get("username")
        if username is None and user.get("unique") is True:
            sent = login
    if isinstance(expected, dict):
        expected = expected.get("plain")
    if not isinstance(expected, str) or wanted != sent:
        return False
    return hmac.compare_digest(expected.encode(), password.encode())


def _only(request: Request, *methods: str) -> None:
    if request.method not in methods:
        allowed = ", ".join(methods)
        raise RefusedError(405, None, f"Only {allowed} here", {"Allow": allowed}, has_body=False)


def _object(request: Request, *, is_device: bool) -> dict[str, Any]:
    """Return the object in a request.

    Raises:
        RefusedError: the body is not JSON, or not such an object.

    """
    if not _is_json(request.content_type):
        raise RefusedError.bad_request("Content type error")
    try:
        given = json.loads(request.body.decode())
    except (ValueError, RecursionError) as error:
        raise RefusedError.bad_request(f"Json deserialize error: {error}") from error
    if not isinstance(given, dict) or not isinstance(given.get("metadata"), dict):
        raise RefusedError.bad_request("Json deserialize error: invalid type, expected an object with metadata")
    if ("application" in given["metadata"]) is not is_device:
        problem = "missing field `application`" if is_device else "unknown field `application`"
        raise RefusedError.bad_request(f"Json deserialize error: {problem}")
    given.pop("kind", None)  # useful in files only
    objects.check(given)
    return given


def _preconditions(request: Request) -> Mapping[str, Any]:
    """Return the preconditions of a deletion.

    Like in released clouds, there are none if they cannot be read.
    """
    if request.content is None or not _is_json(request.content_type):
        return {}
    try:
        found = json.loads(request.content.decode())["preconditions"]
    except (ValueError, RecursionError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) and all(isinstance(value, str) for value in found.values()) else {}


def _is_json(content_type: str | None) -> bool:
    return _JSON.fullmatch((content_type or "").partition(";")[0].strip()) is not None


def _read_listing(query: Mapping[str, str]) -> tuple[Selector, int, int | None]:
    offset, limit = _number(query, "offset"), _number(query, "limit")
    try:
        return Selector.parse(query.get("labels", "")), offset or 0, limit
    except ValueError as error:
        raise RefusedError(400, "InvalidRequest", str(error)) from error


def _number(query: Mapping[str, str], key: str) -> int | None:
    text = query.get(key)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()):
        raise RefusedError.bad_request(f"Query deserialize error: {key}: invalid digit found in string")
    return min(int(text[:20]), _MAX_NUMBER)
