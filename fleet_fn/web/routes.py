"""The HTTP face: the routes, and the status of each outcome.

It knows nothing of firmware.
"""

from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, NamedTuple

from fleet_fn.deadline import Deadline
from fleet_fn.drogue.cloud_events import ATTRIBUTES, InvalidEventError
from fleet_fn.drogue.events import Event, read_event
from fleet_fn.observability import metrics, tracing
from fleet_fn.observability.log import logger
from fleet_fn.observability.side_effects import Guarded
from fleet_fn.protocol.dialects import InvalidStatusError
from fleet_fn.settings import WORK_SHARE, Settings
from fleet_fn.update.handler import UpdateHandler
from fleet_fn.update.outcome import Outcome, OutcomeName, Reply
from fleet_fn.web.admission import BusyError, Slots
from fleet_fn.web.arrival import DEADLINE, MAX_BODY_BYTES
from fleet_fn.web.body import TooLargeError, discard_body, read_body
from fleet_fn.web.credentials import is_authorized
from fleet_fn.web.event_log import log_event, span_attributes
from fleet_fn.web.responses import error_response, outcome_header, preview_response, problem
from fleet_fn.web.wsgi import Application, Response, make_response

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

#: The status of each outcome. Deliverers decide by it whether to retry: of these, neither Knative's Kafka source nor
#: Drogue's event source retries any but 503.
_STATUS: Final = {
    OutcomeName.SYNC: HTTPStatus.NO_CONTENT,
    OutcomeName.WRITE: HTTPStatus.NO_CONTENT,
    OutcomeName.SWAP: HTTPStatus.NO_CONTENT,
    OutcomeName.WITHHELD: HTTPStatus.NO_CONTENT,
    OutcomeName.WAIT: HTTPStatus.NO_CONTENT,
    OutcomeName.IGNORED: HTTPStatus.NO_CONTENT,
    OutcomeName.STALE: HTTPStatus.NO_CONTENT,
    OutcomeName.DUPLICATE: HTTPStatus.NO_CONTENT,
    OutcomeName.INVALID: HTTPStatus.BAD_REQUEST,
    OutcomeName.DENIED: HTTPStatus.UNAUTHORIZED,
    OutcomeName.FAILED: HTTPStatus.UNPROCESSABLE_ENTITY,
    OutcomeName.RETRY: HTTPStatus.SERVICE_UNAVAILABLE,
}
#: The headers that an event may use, by their keys in a WSGI environment.
_HEADERS: Final = {
    **{f"HTTP_CE_{name.upper()}": f"ce-{name}" for name in ATTRIBUTES},
    "CONTENT_TYPE": "content-type",
}


def make_app(settings: Settings, updater: UpdateHandler, previewer: UpdateHandler) -> Application:
    """Return the application: `updater` answers events, and `previewer` previews."""
    slots = Slots(settings.threads)
    count_event, count_sent = metrics.events(tuple(_STATUS)), metrics.sent()
    log = Guarded("log of events", log_event)

    def answer(event: Event, deadline: Deadline) -> Reply:
        with tracing.of_event(event.trace, partial(span_attributes, event)) as span:
            outcome = updater.answer(event, deadline)
            span.set_attributes(
                outcome=outcome.name, reason=outcome.reason, version=outcome.version, offset=outcome.offset
            )
        return Reply(outcome)

    def answer_event(environ: "WSGIEnvironment") -> Response:
        deadline = _deadline(settings, environ)
        event, reply, status = _handle(settings, slots, environ, deadline, answer)
        outcome, seconds = reply.outcome, deadline.elapsed
        count_event(outcome.name, seconds)
        if outcome.name == OutcomeName.WRITE:
            count_sent(outcome.size or 0)
        log(event, outcome, seconds)
        if status == HTTPStatus.NO_CONTENT:
            return Response(status, [outcome_header(outcome)])
        return error_response(outcome, status)

    def preview_event(environ: "WSGIEnvironment") -> Response:
        if not settings.preview:
            discard_body(environ)
            return problem(HTTPStatus.NOT_FOUND, "previews are switched off (PREVIEW)")
        result = _handle(settings, slots, environ, _deadline(settings, environ), previewer.decide)
        if result.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.REQUEST_ENTITY_TOO_LARGE):
            return error_response(result.reply.outcome, result.status)
        return preview_response(result.event, result.reply)

    health = {"GET": _report_health}
    return Application(
        {
            "/": {"POST": answer_event},
            "/preview": {"POST": preview_event},
            "/metrics": {"GET": _report_metrics},
            "/healthz": health,
            "/health/liveness": health,
            "/readyz": health,
            "/health/readiness": health,
        },
        _refuse,
    )


def _report_metrics(environ: "WSGIEnvironment") -> Response:
    exposition = metrics.exposition(environ.get("HTTP_ACCEPT", ""))
    if exposition is None:
        return problem(HTTPStatus.SERVICE_UNAVAILABLE, "the metrics folder cannot be used; the log says why")
    return make_response(HTTPStatus.OK, *exposition)


def _report_health(_: "WSGIEnvironment") -> Response:
    return make_response(HTTPStatus.OK, "ok\n", "text/plain; charset=utf-8")


def _refuse(environ: "WSGIEnvironment", status: HTTPStatus) -> Response:
    """Return the response to a request that no view takes."""
    discard_body(environ)
    if environ["REQUEST_METHOD"] == "POST" and status == HTTPStatus.NOT_FOUND:
        # Knative's Kafka source retries a 404.
        outcome = Outcome(OutcomeName.INVALID, "events are taken at /, previews at /preview")
        return error_response(outcome, HTTPStatus.BAD_REQUEST)
    return problem(status, status.description or status.phrase)


class _Result(NamedTuple):
    """The result of a request: the event, if it had one, the reply and the status."""

    event: Event | None
    reply: Reply
    status: HTTPStatus


def _handle(
    settings: Settings,
    slots: Slots,
    environ: "WSGIEnvironment",
    deadline: Deadline,
    use: Callable[[Event, Deadline], Reply],
) -> _Result:
    """Read the event of a request and `use` it; turn every error into a reply."""
    event = None
    try:
        if not is_authorized(settings, environ.get("HTTP_AUTHORIZATION", "")):
            discard_body(environ)
            reply = Reply(Outcome(OutcomeName.DENIED, "the request lacks the credentials that events must carry"))
        else:
            headers = [(header, environ[key]) for key, header in _HEADERS.items() if key in environ]
            event = read_event(headers, _read_body(environ, deadline))
            if event.is_status and settings.serves(event.application):
                slots.acquire(deadline)
                try:
                    reply = use(event, deadline)
                finally:
                    slots.release()
            else:
                reply = use(event, deadline)
        status = _STATUS[reply.outcome.name]
    except BusyError:
        reply, status = (
            Reply(Outcome(OutcomeName.RETRY, f"busy with {settings.threads} other events")),
            _STATUS[OutcomeName.RETRY],
        )
    except TooLargeError:
        reply = Reply(Outcome(OutcomeName.INVALID, f"the body is larger than {MAX_BODY_BYTES} bytes"))
        status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    except (InvalidEventError, InvalidStatusError) as error:
        reply, status = Reply(Outcome(OutcomeName.INVALID, str(error))), _STATUS[OutcomeName.INVALID]
    except Exception:  # noqa: BLE001 - the one boundary
        # No retry cures our own bug: with 5xx, the event would be delivered again and again.
        logger.exception("unexpected error")
        reply, status = Reply(Outcome(OutcomeName.FAILED, "internal error")), _STATUS[OutcomeName.FAILED]
    return _Result(event, reply, status)


def _read_body(environ: "WSGIEnvironment", deadline: Deadline) -> bytes:
    """Return the body of a request; discard the rest of one that is too large.

    Raises:
        TooLargeError, InvalidEventError: see `read_body`.

    """
    try:
        return read_body(environ, deadline)
    except TooLargeError:
        discard_body(environ)
        raise


def _deadline(settings: Settings, environ: "WSGIEnvironment") -> Deadline:
    """Return the event's deadline.

    If the worker read the body, it began the deadline with the request's first byte.
    """
    deadline: Deadline | None = environ.get(DEADLINE)
    return deadline or Deadline(settings.event_deadline_seconds * WORK_SHARE)
