"""Problem documents (RFC 9457), and outcomes as structured fields (RFC 9651)."""

import json
from http import HTTPStatus
from typing import Any, Final

from fleet_fn.drogue.events import Event
from fleet_fn.protocol.dialects import documented_json
from fleet_fn.update.outcome import Outcome, OutcomeName, Reply
from fleet_fn.web.wsgi import Response, make_response

#: Longest reason in a header.
_MAX_REASON_CHARS: Final = 300
#: Outcomes whose header has a reason.
_WITH_REASON: Final = (OutcomeName.WITHHELD, OutcomeName.WAIT, OutcomeName.FAILED, OutcomeName.RETRY)


def error_response(outcome: Outcome, status: HTTPStatus) -> Response:
    """Return the response to an event or a preview whose status is not 2xx."""
    detail = ": ".join(filter(None, (outcome.reason, outcome.message)))
    response = problem(status, detail or status.phrase, outcome=outcome.name)
    response.headers.append(outcome_header(outcome))
    if outcome.name == OutcomeName.RETRY:
        response.headers.append(("Retry-After", str(outcome.retry_after or 1)))
    if outcome.name == OutcomeName.DENIED:
        response.headers.append(("WWW-Authenticate", 'Basic realm="events", Bearer realm="events"'))
    return response


def preview_response(event: Event | None, reply: Reply) -> Response:
    """Return the response to a preview: outcome, reason and command as JSON."""
    preview: dict[str, Any] = {
        "outcome": reply.outcome.name,
        "reason": reply.outcome.reason,
        "application": event.application or None if event else None,
        "device": event.device or None if event else None,
        "dialect": reply.form.dialect.value if reply.form else None,
        "command": documented_json(reply.command) if reply.command else None,
    }
    if reply.outcome.message:
        preview["message"] = reply.outcome.message
    return make_response(HTTPStatus.OK, json.dumps(preview) + "\n", "application/json")


def problem(status: HTTPStatus, detail: str, **members: str) -> Response:
    """Return a problem document (RFC 9457)."""
    document = {"type": "about:blank", "title": status.phrase, "status": status, "detail": detail, **members}
    return make_response(status, json.dumps(document) + "\n", "application/problem+json")


def outcome_header(outcome: Outcome) -> tuple[str, str]:
    """Return the header with an outcome."""
    return "Fleet-Outcome", _structured_field(outcome)


def _structured_field(outcome: Outcome) -> str:
    """Return an outcome as an item of RFC 9651: a token with parameters."""
    parameters: dict[str, str | int | None] = {}
    if outcome.name in _WITH_REASON:
        parameters["reason"] = (outcome.reason or "")[:_MAX_REASON_CHARS]
    parameters |= {"version": outcome.version, "offset": outcome.offset, "size": outcome.size}
    items = [f"; {name}={_bare_item(value)}" for name, value in parameters.items() if value is not None]
    return outcome.name + "".join(items)


def _bare_item(value: str | int) -> str:
    if isinstance(value, int):
        return str(value)
    if value.isascii() and value.isprintable():
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    # A Display String: the only one that can hold more than ASCII (RFC 9651, section 4.1.11).
    octets = value.encode("utf-8", "replace")
    return '%"' + "".join(chr(o) if 0x20 <= o <= 0x7E and o not in b'%"' else f"%{o:02x}" for o in octets) + '"'
