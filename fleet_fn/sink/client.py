"""A client of the sink, which takes CloudEvents in binary mode."""

from collections.abc import Mapping
from typing import Final

from cloudevents.core.bindings.http import to_binary
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent

from fleet_fn.deadline import Deadline
from fleet_fn.errors import PermanentError
from fleet_fn.http.client import HttpClient

#: Name of the sink in reasons and logs.
SINK: Final = "sink"
_FORMAT: Final = JSONFormat()


class Sink:
    """Sends events to the URL in K_SINK."""

    def __init__(self, upstream: HttpClient, path: str, overrides: Mapping[str, str]) -> None:
        """Send events to `path` of `upstream`.

        Args:
            upstream: the sink's server.
            path: the rest of its URL, exactly.
            overrides: extension attributes that each event gets; they win over the event's own.

        """
        self._upstream = upstream
        self._path = path
        self._overrides = overrides

    def send(self, event: CloudEvent, deadline: Deadline) -> None:
        """Send an event, once.

        Raises:
            PermanentError: the sink refuses the event, or redirects.
            TransientError: the sink is unavailable. It may have taken the event all the same.

        """
        event = CloudEvent({**event.get_attributes(), **self._overrides}, event.get_data())
        message = to_binary(event, _FORMAT)
        answer = self._upstream.request(
            "POST", self._path, deadline, headers=message.headers, body=message.body, wants_body=False
        )
        if not 200 <= answer.status < 300:
            raise PermanentError(f"{SINK}: answered {answer.status}")

    def close(self) -> None:
        """Close idle connections."""
        self._upstream.close()
