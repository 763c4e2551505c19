"""The HTTP face: routes, credentials, and which status an outcome has. Knows nothing of firmware."""

import base64
import binascii
import hmac
import json
import logging
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from http import HTTPStatus
from threading import BoundedSemaphore
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from flask import Flask, Request, Response, abort, request
from gunicorn.http.errors import ParseException
from werkzeug.exceptions import HTTPException

from fleet_fn.deadline import Deadline
from fleet_fn.drogue.events import Event, InvalidEventError, read_event
from fleet_fn.observability import log, metrics, tracing
from fleet_fn.observability.side_effects import Guarded
from fleet_fn.protocol.dialects import InvalidStatusError, documented_json
from fleet_fn.settings import MAX_WAITING, OURS, Settings
from fleet_fn.update.handler import UpdateHandler
from fleet_fn.update.outcome import Outcome, Reply
from fleet_fn.web.arrival import DEADLINE, MAX_BODY_BYTES, MAX_DISCARDED_BYTES
from fleet_fn.web.patience import Patience

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

#: Seconds within which a body has to come that is larger than MAX_BODY, or that is not wanted.
_PATIENCE: Final = 1.0
#: Characters of a reason in a header.
_MAX_REASON: Final = 300

#: The one table from outcomes to status codes. Their meaning to the deliverers decides: neither Knative's Kafka source
#: nor Drogue's event source retries these, but 503.
_STATUS: Final = {
    "sync": HTTPStatus.NO_CONTENT,
    "write": HTTPStatus.NO_CONTENT,
    "swap": HTTPStatus.NO_CONTENT,
    "withheld": HTTPStatus.NO_CONTENT,
    "wait": HTTPStatus.NO_CONTENT,
    "ignored": HTTPStatus.NO_CONTENT,
    "stale": HTTPStatus.NO_CONTENT,
    "duplicate": HTTPStatus.NO_CONTENT,
    "invalid": HTTPStatus.BAD_REQUEST,
    "denied": HTTPStatus.UNAUTHORIZED,
    "failed": HTTPStatus.UNPROCESSABLE_ENTITY,
    "retry": HTTPStatus.SERVICE_UNAVAILABLE,
}
_LEVELS: Final = {"ignored": logging.DEBUG} | dict.fromkeys(("invalid", "denied", "failed", "retry"), logging.WARNING)

_patience = Patience()


def make_app(settings: Settings, updater: UpdateHandler, previewer: UpdateHandler) -> Flask:
    """Return the WSGI application: `updater` answers events, `previewer` answers previews."""
    slots = _Slots(settings.threads)
    count_event, count_sent = metrics.events(tuple(_STATUS)), metrics.sent()
    log_event = Guarded("log of events", _log_event)

    def answer_event(request: Request) -> tuple[Outcome, HTTPStatus]:
        deadline = _deadline(settings, request)

        def answer(event: Event) -> Reply:
            with tracing.of_event(event.trace, _attributes(event)) as span:
                outcome = updater.answer(event, deadline)
                span.set_attributes(
                    outcome=outcome.name, reason=outcome.reason, version=outcome.version, offset=outcome.offset
                )
            return Reply(outcome)

        result = _take(settings, slots, request, deadline, answer)
        outcome, seconds = result.decision.outcome, deadline.elapsed
        count_event(outcome.name, seconds)
        if outcome.name == "write":
            count_sent(outcome.size or 0)
        log_event(result, seconds)
        return outcome, result.status

    app = _App(answer_event)

    @app.post("/preview")
    def preview_event() -> Response:
        if not settings.preview:
            abort(HTTPStatus.NOT_FOUND, "previews are switched off (PREVIEW)")
        deadline = _deadline(settings, request)
        result = _take(settings, slots, request, deadline, lambda event: previewer.decide(event, deadline))
        if result.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.REQUEST_ENTITY_TOO_LARGE):
            return _respond(result.decision.outcome, result.status)
        return Response(json.dumps(_shown(result)) + "\n", mimetype="application/json")

    @app.get("/metrics")
    def scrape() -> Response:
        counted = metrics.exposition(request.headers.get("Accept", ""))
        if counted is None:
            return _problem(
                HTTPStatus.SERVICE_UNAVAILABLE, "the folder of the metrics cannot be used; the log says why"
            )
        content, content_type = counted
        return Response(content, content_type=content_type)

    @app.get("/healthz")
    @app.get("/health/liveness")
    @app.get("/readyz")
    @app.get("/health/readiness")
    def healthy() -> Response:
        return Response("ok\n", mimetype="text/plain")

    @app.errorhandler(HTTPException)
    def refuse(error: HTTPException) -> Response:
        _discard_body(request)
        status = HTTPStatus(error.code or 500)
        if request.method == "POST" and status == HTTPStatus.NOT_FOUND and request.path != "/preview":
            # To Knative's Kafka source a 404 says "try again".
            return _respond(Outcome("invalid", "events are taken at /, previews at /preview"), HTTPStatus.BAD_REQUEST)
        response = _problem(status, error.description or status.phrase)
        for name, value in error.get_headers():
            if name == "Allow":
                response.headers[name] = value
        return response

    return app


class _App(Flask):
    """Flask, but for events: these take a shorter way in and out, of which `make bench` tells the length."""

    def __init__(self, answer_event: Callable[[Request], tuple[Outcome, HTTPStatus]]) -> None:
        super().__init__(__name__, static_folder=None)
        self._answer_event = answer_event
        self.add_url_rule("/", "answer_event", methods=["POST"])  # for those who ask with another method

    def wsgi_app(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """The application as WSGI calls it."""
        # The root may be written with no slash, or several, and Flask would take that for it.
        if environ["REQUEST_METHOD"] != "POST" or environ["PATH_INFO"].strip("/"):
            return super().wsgi_app(environ, start_response)
        outcome, status = self._answer_event(self.request_class(environ))
        if status == HTTPStatus.NO_CONTENT:
            start_response("204 NO CONTENT", [("Fleet-Outcome", _structured_field(outcome))])
            return ()
        return _respond(outcome, status)(environ, start_response)


# --- Requests ---------------------------------------------------------------------------------------------------------


def _deadline(settings: Settings, request: Request) -> Deadline:
    deadline: Deadline | None = request.environ.get(DEADLINE)
    return deadline or Deadline(settings.event_deadline * OURS)


class _TooLargeError(Exception):
    """The body of an event is larger than `MAX_BODY_BYTES`."""


class _BusyError(Exception):
    """As many events as may be are being answered, and either too many wait already or the deadline came first."""


class _Result(NamedTuple):
    """How a request ended."""

    event: Event | None
    decision: Reply
    status: HTTPStatus


def _take(
    settings: Settings, slots: "_Slots", request: Request, deadline: Deadline, use: Callable[[Event], Reply]
) -> _Result:
    """Take the event out of the request, and turns whatever comes of its `use` into a result."""
    event = None
    status = None
    try:
        if not _is_authorized(settings, request):
            _discard_body(request)
            decision = Reply(Outcome("denied", "the request lacks the credentials that events must carry"))
        else:
            event = read_event(_headers(request.environ), _body(request, deadline))
            if event.is_status:
                slots.take(deadline)
                try:
                    decision = use(event)
                finally:
                    slots.give_back()
            else:
                decision = use(event)
    except _BusyError:
        decision = Reply(Outcome("retry", f"busy with {settings.threads} other events"))
    except _TooLargeError:
        _discard_body(request)
        decision = Reply(Outcome("invalid", f"the body is larger than {MAX_BODY_BYTES} bytes"))
        status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    except (InvalidEventError, InvalidStatusError) as error:
        decision = Reply(Outcome("invalid", str(error)))
    except Exception:  # noqa: BLE001 - the one boundary
        # A mistake of ours does not mend itself within seconds: 5xx would have the event delivered for ever.
        log.logger.exception("unexpected error")
        decision = Reply(Outcome("failed", "internal error"))
    return _Result(event, decision, status or _STATUS[decision.outcome.name])


class _Slots:
    """Places for the events that upstreams are needed for: some work, some wait, and the others are turned away."""

    def __init__(self, size: int) -> None:
        self._working = BoundedSemaphore(size)
        self._waiting = BoundedSemaphore(MAX_WAITING)

    def take(self, deadline: Deadline) -> None:
        """Take a place, which has to be given back.

        Raises:
            _BusyError: too many wait for one already, or none is free until the deadline.

        """
        if self._working.acquire(blocking=False):
            return
        if not self._waiting.acquire(blocking=False):
            raise _BusyError
        try:
            if not self._working.acquire(timeout=deadline.remaining):
                raise _BusyError
        finally:
            self._waiting.release()

    def give_back(self) -> None:
        """Leave the place to somebody else."""
        self._working.release()


def _headers(environ: "WSGIEnvironment") -> Iterator[tuple[str, str]]:
    """Names and values of the headers that an event may be in."""
    for name, value in environ.items():
        if name.startswith("HTTP_CE_"):
            yield name[5:].replace("_", "-"), value
    if content_type := environ.get("CONTENT_TYPE"):
        yield "content-type", content_type


def _body(request: Request, deadline: Deadline) -> bytes:
    announced = request.content_length
    if announced is not None and announced > MAX_BODY_BYTES:
        raise _TooLargeError
    try:
        with _patience.with_sender(_sender(request), deadline):
            body = request.stream.read(MAX_BODY_BYTES + 1)
    except TimeoutError as error:
        raise InvalidEventError("the body did not come in time") from error
    except (OSError, ParseException) as error:
        if not deadline.remaining:
            raise InvalidEventError("the body did not come in time") from error
        raise InvalidEventError("the body is cut short, or is not chunked as it should be") from error
    if len(body) > MAX_BODY_BYTES:
        raise _TooLargeError
    if announced is not None and len(body) < announced:
        raise InvalidEventError("the body ended early" if deadline.remaining else "the body did not come in time")
    return body


def _sender(request: Request) -> socket.socket | None:
    """Return the socket that the body is read from; None if the server has read all of it."""
    if DEADLINE in request.environ:
        return None
    sender: socket.socket | None = request.environ.get("gunicorn.socket")
    return sender


def _discard_body(request: Request) -> None:
    """Take a body that nobody wants off the connection, so that its sender hears the answer and can go on."""
    with (
        suppress(OSError, ParseException),
        _patience.with_sender(_sender(request), Deadline(_PATIENCE)),
    ):
        left = MAX_DISCARDED_BYTES
        while left > 0 and (chunk := request.stream.read(MAX_BODY_BYTES)):
            left -= len(chunk)


def _is_authorized(settings: Settings, request: Request) -> bool:
    """Tell whether a request carries the configured credentials, and no others.

    A deliverer may repeat them: drogue-event-source 0.2.3 sends Basic credentials on two lines, which the server joins
    by a comma.
    """
    if settings.events_user is None and settings.events_token is None:
        return True
    given = request.headers.get("Authorization", "")
    return all(_is_right(settings, credential) for credential in _credentials(settings, given))


def _credentials(settings: Settings, given: str) -> Iterator[str]:
    """Split the value of `Authorization` at the commas between credentials; there is at least one, perhaps empty.

    Basic credentials have no comma. The token may have some, so a Bearer credential takes as many as the token has.
    """
    parts = given.split(",")
    while parts:
        is_bearer = parts[0].lstrip(" \t").lower().startswith("bearer ")
        size = 1 + (settings.events_token or "").count(",") if is_bearer else 1
        yield ",".join(parts[:size])
        del parts[:size]


def _is_right(settings: Settings, credential: str) -> bool:
    """Tell whether one credential, a scheme and what follows it, is a configured one."""
    # Strip no other octet: one that ISO 8859-1 takes for a space may end a character of UTF-8.
    scheme, _, given = credential.strip(" \t").partition(" ")
    given = given.strip(" \t")
    if scheme.lower() == "bearer" and settings.events_token is not None:
        return hmac.compare_digest(given.encode("latin-1", "replace"), settings.events_token.encode())
    if scheme.lower() == "basic" and settings.events_user is not None:
        try:
            credentials = base64.b64decode(given, validate=True)
        except (binascii.Error, ValueError):
            return False
        return hmac.compare_digest(credentials, f"{settings.events_user}:{settings.events_password}".encode())
    return False


# --- Responses --------------------------------------------------------------------------------------------------------


def _respond(outcome: Outcome, status: HTTPStatus) -> Response:
    """The answer to an event, or a preview, that is not 204."""
    response = _problem(status, outcome.reason or status.phrase, outcome=outcome.name)
    response.headers["Fleet-Outcome"] = _structured_field(outcome)
    if outcome.name == "retry":
        response.headers["Retry-After"] = str(outcome.retry_after or 1)
    if outcome.name == "denied":
        response.headers["WWW-Authenticate"] = 'Basic realm="events", Bearer realm="events"'
    return response


def _shown(result: _Result) -> dict[str, Any]:
    """What a preview tells people."""
    event, decision = result.event, result.decision
    return {
        "outcome": decision.outcome.name,
        "reason": decision.outcome.reason,
        "application": event.application or None if event else None,
        "device": event.device or None if event else None,
        "dialect": decision.form.dialect.value if decision.form else None,
        "command": documented_json(decision.command) if decision.command else None,
    }


def _problem(status: HTTPStatus, detail: str, **members: str) -> Response:
    """A problem document (RFC 9457)."""
    problem = {"type": "about:blank", "title": status.phrase, "status": status, "detail": detail, **members}
    return Response(json.dumps(problem) + "\n", status=status, content_type="application/problem+json")


def _structured_field(outcome: Outcome) -> str:
    """The outcome as an item of RFC 9651: a token with parameters."""
    parameters: dict[str, str | int | None] = {}
    if outcome.name in ("withheld", "wait", "failed", "retry"):
        parameters["reason"] = (outcome.reason or "")[:_MAX_REASON]
    parameters |= {"version": outcome.version, "offset": outcome.offset, "size": outcome.size}
    shown = [f"; {name}={_bare_item(value)}" for name, value in parameters.items() if value is not None]
    return outcome.name + "".join(shown)


def _bare_item(value: str | int) -> str:
    if isinstance(value, int):
        return str(value)
    if value.isascii() and value.isprintable():
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    # A Display String: the only one that can hold more than ASCII (RFC 9651, section 4.1.11).
    octets = value.encode("utf-8", "replace")
    return '%"' + "".join(chr(o) if 0x20 <= o <= 0x7E and o not in b'%"' else f"%{o:02x}" for o in octets) + '"'


def _attributes(event: Event) -> Mapping[str, str]:
    """Return what a span says of its event, by OpenTelemetry's names."""
    return {
        "cloudevents.event_id": event.id,
        "cloudevents.event_source": event.source,
        "cloudevents.event_type": event.type,
        "cloudevents.event_subject": event.subject,
        "fleet.application": event.application,
        "fleet.device": event.device,
    }


def _log_event(result: _Result, seconds: float) -> None:
    event, outcome = result.event, result.decision.outcome
    level = _LEVELS.get(outcome.name, logging.INFO)
    if not log.logger.isEnabledFor(level):
        return
    fields: Mapping[str, Any] = {
        "outcome": outcome.name,
        "reason": outcome.reason,
        "application": event.application if event else None,
        "device": event.device if event else None,
        "version": outcome.version,
        "offset": outcome.offset,
        "milliseconds": round(seconds * 1000, 1),
        "id": event.id if event else None,
        "trace_id": event.trace.id if event and event.trace else None,
    }
    known = {name: value for name, value in fields.items() if value not in (None, "")}
    log.logger.log(level, "event", extra={"fields": known})
