"""Log a refusal by an upstream that changes nothing about the event's outcome."""

from fleet_fn.drogue.events import Event
from fleet_fn.errors import UpstreamError
from fleet_fn.firmware.store import NotReadyError
from fleet_fn.observability.log import logger


def warn(message: str, event: Event, error: UpstreamError | NotReadyError) -> None:
    """Log `message` with the error's reason, and the event that it came up with."""
    fields = {"application": event.application, "device": event.device, "reason": error.reason, "id": event.id}
    if event.trace:
        fields["trace_id"] = event.trace.id
    logger.warning(message, extra={"fields": fields})
