"""The command API: how a command gets to a device."""

from typing import Final
from urllib.parse import quote

from fleet_fn.deadline import Deadline
from fleet_fn.drogue.device_registry import device_path
from fleet_fn.drogue.refusals import refusal_of_command
from fleet_fn.errors import PermanentError
from fleet_fn.http.client import HttpClient

_PATH: Final = "/api/command/v1alpha1/apps"


class Commands:
    """Sends commands. Which gateway a device is behind is Drogue Cloud's own business."""

    def __init__(self, upstream: HttpClient) -> None:
        self._upstream = upstream

    def send(
        self, application: str, device: str, command: str, payload: bytes, content_type: str, deadline: Deadline
    ) -> None:
        """Has Drogue Cloud accept `payload` as the command named `command` for a device.

        Raises:
            PermanentError: device unknown, command rejected, our credentials refused, or an answer that makes no sense.
            TransientError: the command API is not there; it may have accepted the command all the same.

        """
        path = f"{_PATH}{device_path(application, device)}?command={quote(command, safe='')}"
        answer = self._upstream.request(
            "POST", path, deadline, body=payload, content_type=content_type, wants_body=False
        )
        if not 200 <= answer.status < 300:
            refusal = PermanentError(refusal_of_command(answer.status, application, device))
            raise refusal.without_effect() if 400 <= answer.status < 500 else refusal
