"""Pages, and the parts of them that browsers poll."""

import hashlib
import re
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote, urlencode

from flask import Flask, Response, flash, make_response, render_template, request
from markupsafe import Markup

from fleet_fn.drogue.update_record import parse_timestamp
from fleet_fn.fleet.rollout.progress import describe_time
from fleet_fn.fleet.states import State
from fleet_fn.fleet.wording import describe_percent

#: The script asks with this header for the live part of a page.
FRAGMENT_HEADER: Final = "Fragment"
#: Characters of a notice; a browser's cookie holds 4,096 bytes.
_MAX_NOTICE_CHARACTERS: Final = 300
#: Commands in reasons, and their options.
_COMMANDS: Final = re.compile(r"`?\brollout (?P<action>start|pause|resume|advance|approve|abort|retry)\b( --failed)?`?")
#: The option of a command, and the choice of the form that is the same.
_ALL: Final = ("--percent 100 lets in", "“All devices at once” lets in")
_TIMESTAMP: Final = re.compile(r"\b(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ)")
#: Names of states, for people.
STATE_NAMES: Final = {
    State.FAILED: "failed",
    State.ROLLED_BACK: "rolled back",
    State.STALLED: "stalled",
    State.HELD: "held",
    State.UPDATING: "updating",
    State.IN_SYNC: "in sync",
    State.UNKNOWN: "never reported",
}


def is_fragment() -> bool:
    """Return whether the script asks for the live part of a page only."""
    return FRAGMENT_HEADER in request.headers


def render(template: str, status: int = 200, **values: Any) -> Response:
    """Return a page; or its live part, or 304 if the script has that already.

    Args:
        template: extends `layout`, and has a block `live` if the page has a live part.
        status: HTTP status.
        values: for the template.

    """
    layout = "fragment.html" if is_fragment() else "page.html"
    # JSON can spell lone surrogates, and UTF-8 cannot.
    html = render_template(template, layout=layout, **values).encode(errors="replace")
    response = make_response(html, status)
    response.vary.add(FRAGMENT_HEADER)
    if is_fragment() and status == 200:
        response.set_etag(hashlib.sha256(html).hexdigest())
        response.make_conditional(request)
    return response


def notify(text: str, kind: str) -> None:
    """Show a text on the user's next page.

    The cookie that carries it has room for a short one.
    """
    flash(text if len(text) <= _MAX_NOTICE_CHARACTERS else f"{text[: _MAX_NOTICE_CHARACTERS - 1]}…", kind)


def register(app: Flask) -> None:
    """Give templates what they need."""
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    app.jinja_env.filters.update(
        when=when,
        age=age,
        number=number,
        percent=describe_percent,
        devices=devices,
        duration=describe_time,
        capitalize_first=capitalize_first,
        sentence=sentence,
        state_name=STATE_NAMES.__getitem__,
    )
    app.jinja_env.globals.update(
        application_url=application_url,
        device_url=device_url,
        firmware_url=firmware_url,
        action_url=action_url,
        sign_in_url=sign_in_url,
    )


def when(time: datetime | None) -> Markup:
    """Return a time, which the script makes local; UTC without it, and on hover."""
    return _time(time, "")


def age(time: datetime | None) -> Markup:
    """Return a time, which the script makes an age."""
    return _time(time, Markup(" data-age"))


def _time(time: datetime | None, attribute: str) -> Markup:
    if time is None:
        return Markup('<span class="none">unknown</span>')
    moment = time.astimezone(UTC)
    return Markup('<time datetime="{}Z" title="{} UTC"{}>{} UTC</time>').format(
        moment.strftime("%Y-%m-%dT%H:%M:%S"),
        moment.strftime("%Y-%m-%d %H:%M:%S"),
        attribute,
        moment.strftime("%Y-%m-%d %H:%M"),
    )


def number(value: float) -> str:
    """Return a number with thousands separated."""
    return f"{value:,.15g}" if isinstance(value, float) else f"{value:,}"


def devices(count: int) -> str:
    """Return a number of devices, with its noun."""
    return f"{number(count)} {'device' if count == 1 else 'devices'}"


def sentence(text: str) -> Markup:
    """Return a reason as a sentence of a page.

    A page has buttons instead of commands, and local times.
    """
    with_buttons = _COMMANDS.sub(lambda found: found["action"].capitalize(), text).replace(*_ALL)
    parts = _TIMESTAMP.split(f"{capitalize_first(with_buttons).rstrip('.')}.")
    return Markup("").join(_localize(part) if index % 2 else part for index, part in enumerate(parts))


def _localize(text: str) -> Markup | str:
    time = parse_timestamp(text)
    return when(time) if time else text


def capitalize_first(text: str) -> str:
    """Return a text that begins with a capital; the rest, which may be names, stays."""
    return text[:1].upper() + text[1:]


def application_url(application: str, **query: object) -> str:
    """Return the path of an application's page."""
    return f"/applications/{quote(application, safe='')}{_query(query)}"


def device_url(application: str, device: str) -> str:
    """Return the path of a device's page.

    A name may be any text, so it is in the query.
    """
    return f"/applications/{quote(application, safe='')}/device{_query({'name': device})}"


def firmware_url(application: str) -> str:
    """Return the path of the page with an application's firmware."""
    return f"/applications/{quote(application, safe='')}/firmware"


def action_url(application: str, action: str, **query: object) -> str:
    """Return the path of the page for a change of an application's rollout."""
    return f"/applications/{quote(application, safe='')}/rollout/{action}{_query(query)}"


def sign_in_url(back: str) -> str:
    """Return the path that lets a user sign in, and come back to a path of ours."""
    return f"/sign-in{_query({'next': back})}"


def _query(query: dict[str, Any]) -> str:
    given = {key: value for key, value in query.items() if value not in (None, "")}
    return f"?{urlencode(given, doseq=True, quote_via=quote, errors='replace')}" if given else ""
