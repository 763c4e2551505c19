"""The API of the device registry: read and write one object."""

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fleet_fn.deadline import Deadline
from fleet_fn.drogue.api_paths import object_path
from fleet_fn.drogue.refusals import (
    DEVICE_REGISTRY,
    NO_CREDENTIALS,
    refusal_for_application,
    refusal_for_device,
    refusal_of_write,
)
from fleet_fn.errors import PermanentError
from fleet_fn.http.client import HttpClient
from fleet_fn.http.messages import Answer
from fleet_fn.strict_json import parse_json

#: Drogue Cloud answers 404 for missing rights, too.
_REFUSALS = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND)


class DeviceNotFoundError(PermanentError):
    """The registry does not confirm that the device exists: it gets no command."""


class DeviceRegistryAPI:
    """Reads and writes devices and applications.

    An object is named by its application, or by its application and its device.
    """

    def __init__(self, upstream: HttpClient, *, anonymous: bool = False) -> None:
        """Create a client; `anonymous` says that `upstream` sends no credentials."""
        self._upstream = upstream
        self._besides = NO_CREDENTIALS if anonymous else ""

    def fetch(self, names: tuple[str, ...], deadline: Deadline) -> tuple[dict[str, Any], bytes]:
        """Return an object, and the JSON text that it was read from.

        Raises:
            DeviceNotFoundError: object unknown, credentials refused, or a malformed answer for a device.
            PermanentError: a malformed answer for an application.
            TransientError: the registry is unavailable.

        """
        kind = kind_of(names)
        answer = self._request("GET", names, deadline)
        if answer.status != HTTPStatus.OK:
            raise unusable_error(names, f"answered {answer.status} for the {kind}")
        try:
            found = parse_json(answer.body)
        except ValueError as error:
            raise unusable_error(names, f"answer for the {kind}: {error}") from error
        metadata = found.get("metadata") if isinstance(found, dict) else None
        if not isinstance(metadata, dict):
            raise unusable_error(names, f"answer for the {kind} is no {kind} object")
        if (metadata.get("application"), metadata.get("name"))[-len(names) :] != names:
            # This answers another request. The kept connections may hold more of such answers.
            self._upstream.close()
            raise unusable_error(names, f"answer for the {kind} is another object")
        return found, answer.body

    def put(self, names: tuple[str, ...], changed: Mapping[str, Any], deadline: Deadline) -> bool:
        """Write an object; return False on an optimistic-lock conflict.

        Then the object has changed since it was read.

        Raises:
            DeviceNotFoundError: the registry refuses the credentials or the object.
            PermanentError: the registry refuses the object.
            TransientError: the registry is unavailable.

        """
        answer = self._request("PUT", names, deadline, encode_object(changed))
        if answer.status == HTTPStatus.CONFLICT:
            return False
        if not 200 <= answer.status < 300:
            raise PermanentError(refusal_of_write(answer.status, names))
        return True

    def _request(self, method: str, names: tuple[str, ...], deadline: Deadline, body: bytes | None = None) -> Answer:
        path = object_path(names)
        try:
            answer = self._upstream.request(
                method,
                path,
                deadline,
                body=body,
                content_type="application/json" if body else None,
                wants_body=not body,
            )
        except PermanentError as error:
            raise _error_type(names)(error.reason) from error
        if answer.status in _REFUSALS:
            raise DeviceNotFoundError(_refusal(method, answer.status, names) + self._besides)
        return answer


def encode_object(changed: Mapping[str, Any]) -> bytes:
    """Return an object as JSON in UTF-8, which is no longer than the registry's own.

    The registry takes 65,536 bytes, and escapes would double some texts. Only lone surrogates need one.
    """
    return json.dumps(changed, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")


def kind_of(names: tuple[str, ...]) -> str:
    """Return the kind of an object, `device` or `application`."""
    return "device" if len(names) == 2 else "application"


def unusable_error(names: tuple[str, ...], problem: str) -> PermanentError:
    """Return the error for an object that the registry gave no usable answer for."""
    return _error_type(names)(f"{DEVICE_REGISTRY}: {problem}")


def _error_type(names: tuple[str, ...]) -> type[PermanentError]:
    """Return the error for a failed request; an unknown device must be sent nothing."""
    return DeviceNotFoundError if kind_of(names) == "device" else PermanentError


def _refusal(method: str, status: int, names: tuple[str, ...]) -> str:
    if method == "PUT":
        return refusal_of_write(status, names)
    if len(names) == 1:
        return refusal_for_application(DEVICE_REGISTRY, status, *names)
    return refusal_for_device(DEVICE_REGISTRY, status, *names)
