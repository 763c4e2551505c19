"""The device that an event is about, which its source and its attributes name."""

import re
from collections.abc import Callable
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

from fleet_fn.drogue.cloud_events import CLOUD, InvalidEventError, clip

#: The application as it is, then the device with everything but letters and digits percent-encoded. Encoded or not,
#: unreserved characters mean the same (RFC 3986, section 2.3).
_SOURCE: Final = re.compile(rf"{CLOUD}([!-.0-~]+)/((?:[A-Za-z0-9._~-]|%[0-9A-Fa-f]{{2}})+)")


class Identity(NamedTuple):
    """The names of an event's application and device; empty if they are unknown."""

    application: str
    device: str
    #: Why these must not be used; empty if they may.
    doubt: str = ""


def identify(source: str, application: str | None, device: str | None, decode: Callable[[str], str]) -> Identity:
    """Decide which device an event is about.

    Drogue Cloud's source is plain ASCII, which every deliverer leaves alone. The attributes may have been mangled on
    the way, so they only have to agree with the source. Events from other senders have nothing but the attributes.

    Args:
        source: the event's source.
        application: the received attribute; None if it is missing.
        device: the received attribute; None if it is missing.
        decode: decodes an attribute of an event from another sender; it may raise InvalidEventError.

    """
    if named := _read_source(source):
        for name, exact, given in zip(("application", "device"), named, (application, device), strict=True):
            if given is None:
                return Identity(*named, f"attribute {name!r} is missing")
            if not _may_stand_for(exact, given):
                return Identity(*named, f"attribute {name!r} is {clip(given)}, but the source names {clip(exact)}")
        return Identity(*named)
    try:
        application, device = decode(application or ""), decode(device or "")
    except InvalidEventError as error:
        return Identity("", "", str(error))
    # Some tools write unencoded names into such a source. A deliverer may have put "?" in the place of a character.
    if source.startswith(CLOUD) and ("?" in source or source != f"{CLOUD}{application}/{device}"):
        return Identity(application, device, f"source {clip(source)} is not {CLOUD}APPLICATION/PERCENT-ENCODED-DEVICE")
    return Identity(application, device)


def _read_source(source: str) -> tuple[str, str] | None:
    """Return the application and device in Drogue Cloud's source, else None."""
    match = _SOURCE.fullmatch(source)
    if match is None:
        return None
    try:
        return match[1], unquote_to_bytes(match[2]).decode()
    except UnicodeError:
        return None


def _may_stand_for(name: str, given: str) -> bool:
    """Return whether an attribute may stand for a name that a deliverer mangled.

    Deliverers write UTF-8 (which WSGI reads as ISO 8859-1), ISO 8859-1 with "?" for each UTF-16 unit of other
    characters, or percent-encoding. HTTP strips spaces.
    """
    if given == name:
        return True
    by_unit = "".join("??" if character > "\uffff" else character for character in name)
    forms = (
        name,
        name.encode().decode("latin-1"),
        name.encode("latin-1", "replace").decode("latin-1"),
        by_unit.encode("latin-1", "replace").decode("latin-1"),
    )
    if given.strip(" \t") in [form.strip(" \t") for form in forms]:
        return True
    return "%" in given and given.isascii() and unquote_to_bytes(given) == name.encode()
