"""Objects of devices in each state of an update, as the function leaves them behind."""

from datetime import UTC, datetime, timedelta
from typing import Any, Final

Object = dict[str, Any]
#: A SHA-256 of no firmware.
SHA: Final = "3f1d" * 16


def ago(**time: int) -> str:
    return (datetime.now(UTC) - timedelta(**time)).strftime("%Y-%m-%dT%H:%M:%SZ")


def condition(kind: str, status: str, reason: str = "", message: str = "", minutes: int = 9) -> Object:
    since = ago(minutes=minutes)
    return {"type": kind, "status": status, "lastTransitionTime": since, "reason": reason, "message": message}


def behind(reason: str = "", message: str = "", percent: str = "", minutes: int = 9) -> list[Object]:
    """The conditions of a device that is not on its target."""
    progress = [condition("UpdateProgress", "Unknown", "", percent, minutes)] if percent else []
    return [condition("InSync", "False", reason, message, minutes), *progress]


def device(name: str, conditions: list[Object], spec: Object | None = None, **status: Any) -> Object:
    firmware = {"current": "1.1.0", "target": "1.2.0", "reported": ago(minutes=2), "seen": ago(minutes=1)}
    return {
        "metadata": {"application": "pumps", "name": name, "labels": {"site": "oslo"}},
        "spec": spec or {},
        "status": {"firmware": {**firmware, "conditions": conditions, **status}} if conditions else {},
    }


def update(**record: Any) -> Object:
    return {"version": "1.2.0", "checksum": SHA, "attempts": 0, **record}
