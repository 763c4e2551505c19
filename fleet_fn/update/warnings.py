"""Log errors that change nothing about the event's outcome."""

from fleet_fn.drogue.events import Event
from fleet_fn.errors import UpstreamError
from fleet_fn.firmware.store import NotReadyError
from fleet_fn.observability.log import logger


def warn(message: str, event: Event, error: UpstreamError | NotReadyError, **more: str) -> None:
    """Log `message` with an event, the reason of an upstream's refusal, and `more`."""
    logger.warning(message, extra={"fields": {**fields_of(event), **more, "reason": error.reason}})


def log_unexpected_error(event: Event) -> None:
    """Log the exception that is being handled, a bug of ours, with an event."""
    logger.exception("unexpected error after the answer", extra={"fields": fields_of(event)})


def fields_of(event: Event) -> dict[str, str]:
    """Return the fields that name an event in a log line."""
    fields = {"application": event.application, "device": event.device, "id": event.id}
    return {**fields, "trace_id": event.trace.id} if event.trace else fields
