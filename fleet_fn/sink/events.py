"""Events of ours, as CloudEvents."""

import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote

from cloudevents.core.v1.event import CloudEvent

#: A turning point of a device's update.
UPDATE_EVENT: Final = "io.drogue.fleet.update.v1"
#: A change of a rollout by an operator.
ROLLOUT_EVENT: Final = "io.drogue.fleet.rollout.v1"


def make_event(attributes: Mapping[str, str | datetime | None], data: Mapping[str, Any]) -> CloudEvent:
    """Return an event with JSON data. Attributes without a value are left out."""
    known = {name: value for name, value in attributes.items() if value not in (None, "")}
    return CloudEvent({"specversion": "1.0", **known, "datacontenttype": "application/json"}, dict(data))


def rollout_event(action: str, application: str, user: str, change: object, now: datetime) -> CloudEvent:
    """Return the event of a change that an operator made to a rollout.

    Args:
        action: the command: `start`, `pause`, …
        application: name of the application.
        user: the Drogue user who made the change; empty if it is unknown.
        change: what changed, as JSON: the two objects' differences, or the new values.
        now: when; any time zone.

    """
    attributes: dict[str, str | datetime | None] = {
        "id": str(uuid.uuid4()),
        "source": f"drogue://{quote(application, safe='')}",
        "type": ROLLOUT_EVENT,
        "subject": action,
        "time": now.astimezone(UTC),
        "application": application,
    }
    data = {
        "action": action,
        "application": application,
        "user": user or None,
        "change": change,
        "time": now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    return make_event(attributes, data)
