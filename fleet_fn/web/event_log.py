"""The log line and the span attributes of an event."""

import logging
from collections.abc import Mapping
from typing import Any, Final

from fleet_fn.drogue.events import Event
from fleet_fn.observability.log import logger
from fleet_fn.update.outcome import Outcome, OutcomeName

#: Level of an event's line by outcome; INFO for the others.
_LEVELS: Final = {
    OutcomeName.IGNORED: logging.DEBUG,
    OutcomeName.INVALID: logging.WARNING,
    OutcomeName.DENIED: logging.WARNING,
    OutcomeName.FAILED: logging.WARNING,
    OutcomeName.RETRY: logging.WARNING,
}


def log_event(event: Event | None, outcome: Outcome, seconds: float) -> None:
    """Log an event (None without one), its outcome and the seconds until the answer."""
    level = _LEVELS.get(outcome.name, logging.INFO)
    if not logger.isEnabledFor(level):
        return
    fields: Mapping[str, Any] = {
        "outcome": outcome.name,
        "reason": outcome.reason,
        "detail": outcome.message,
        "application": event.application if event else None,
        "device": event.device if event else None,
        "version": outcome.version,
        "offset": outcome.offset,
        "checksum": outcome.checksum,
        "manifest": outcome.manifest,
        "milliseconds": round(seconds * 1000, 1),
        "id": event.id if event else None,
        "trace_id": event.trace.id if event and event.trace else None,
    }
    known = {name: value for name, value in fields.items() if value not in (None, "")}
    logger.write(level, "event", known)


def span_attributes(event: Event) -> Mapping[str, str]:
    """Return the attributes of an event's span, by OpenTelemetry's names."""
    return {
        "cloudevents.event_id": event.id,
        "cloudevents.event_source": event.source,
        "cloudevents.event_type": event.type,
        "cloudevents.event_subject": event.subject,
        "fleet.application": event.application,
        "fleet.device": event.device,
    }
