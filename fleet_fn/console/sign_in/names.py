"""Names of users, for people and for the events of rollouts."""

from collections.abc import Mapping
from typing import Any, Final

from fleet_fn.errors import one_line

_MAX_CHARACTERS: Final = 100


def name_of(claims: Mapping[str, Any]) -> str:
    """Return the name of the user whom verified claims describe.

    It is printable and bounded. An e-mail address counts only if the provider verified it: else users could call
    themselves what they like.
    """
    candidates = [claims.get("preferred_username")]
    if claims.get("email_verified") is True:
        candidates.append(claims.get("email"))
    names = [name.strip() for name in candidates if isinstance(name, str) and name.strip()]
    name = one_line(names[0] if names else str(claims["sub"]))
    return name if len(name) <= _MAX_CHARACTERS else f"{name[: _MAX_CHARACTERS - 1]}…"
