"""The command API: send commands to devices."""

from fleet_fn.deadline import Deadline
from fleet_fn.drogue.api_paths import command_path
from fleet_fn.drogue.refusals import refusal_of_command
from fleet_fn.errors import PermanentError
from fleet_fn.http.client import HttpClient


class Commands:
    """Sends commands. Drogue Cloud finds the gateway of a device by itself."""

    def __init__(self, upstream: HttpClient) -> None:
        self._upstream = upstream

    def send(
        self, application: str, device: str, command: str, payload: bytes, content_type: str, deadline: Deadline
    ) -> None:
        """Send `payload` to a device as the command named `command`.

        Raises:
            PermanentError: device unknown, command rejected, our credentials refused, or a malformed answer.
            TransientError: the command API is unavailable; it may have accepted the command all the same.

        """
        path = command_path(application, device, command)
        answer = self._upstream.request(
            "POST", path, deadline, body=payload, content_type=content_type, wants_body=False
        )
        if not 200 <= answer.status < 300:
            refusal = PermanentError(refusal_of_command(answer.status, application, device))
            raise refusal.without_effect() if 400 <= answer.status < 500 else refusal
