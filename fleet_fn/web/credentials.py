"""The credentials that events must carry, if the settings have some."""

import base64
import binascii
import hmac
from collections.abc import Iterator

from fleet_fn.settings import Settings


def is_authorized(settings: Settings, authorization: str) -> bool:
    """Return whether `Authorization` has the configured credentials, and no others.

    A deliverer may repeat them: drogue-event-source 0.2.3 sends Basic credentials on two lines, which the server joins
    by a comma.
    """
    if settings.events_user is None and settings.events_token is None:
        return True
    return all(_is_right(settings, credential) for credential in _split(settings, authorization))


def _split(settings: Settings, authorization: str) -> Iterator[str]:
    """Split the header at the commas between credentials.

    At least one part comes, perhaps empty. Basic credentials have no comma. The token may have some, so a Bearer
    credential takes as many as the token has.
    """
    parts = authorization.split(",")
    while parts:
        is_bearer = parts[0].lstrip(" \t").lower().startswith("bearer ")
        size = 1 + (settings.events_token or "").count(",") if is_bearer else 1
        yield ",".join(parts[:size])
        del parts[:size]


def _is_right(settings: Settings, credential: str) -> bool:
    """Return whether one credential, a scheme and its value, is a configured one."""
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
