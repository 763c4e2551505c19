"""The operator whose credentials a change is made with."""

import base64
import binascii
from typing import Final

from fleet_fn.settings import Settings
from fleet_fn.strict_json import parse_json

#: Characters of a name that are kept.
_MAX_CHARACTERS: Final = 200


def user_of(settings: Settings) -> str:
    """Return the name of the operator, for people.

    It is `DROGUE_USER`, or the id of the OpenID client. A token without a user may be a JSON Web Token that names one,
    which is not verified, because Drogue Cloud does that.

    Returns:
        The name; empty if it is not known.

    """
    return settings.drogue_user or settings.drogue_oidc_client_id or _user_in(settings.drogue_token or "")


def _user_in(token: str) -> str:
    """Return the user that a JSON Web Token names; empty if it is no such token."""
    parts = token.split(".")
    if len(parts) != 3:
        return ""
    try:
        claims = parse_json(base64.b64decode(parts[1] + "=" * (-len(parts[1]) % 4), altchars=b"-_", validate=True))
    except (ValueError, binascii.Error):
        return ""
    name = claims.get("preferred_username") if isinstance(claims, dict) else None
    return name[:_MAX_CHARACTERS] if isinstance(name, str) and name.isprintable() else ""
