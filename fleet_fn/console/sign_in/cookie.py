"""The browser's cookie: the id of its session, and the sign-ins that it began.

Flask signs it with CONSOLE_SECRET_KEY. Its user can read it, so it holds no token.
"""

import time
from typing import Any, Final

from authlib.common.security import generate_token
from flask import session

from fleet_fn.console.sign_in.client import Attempt

_SESSION: Final = "session"
_ATTEMPTS: Final = "attempts"
#: Sign-ins that a browser may begin at the same time, e.g. in several tabs. More would not fit into a cookie.
_MAX_ATTEMPTS: Final = 3
_ATTEMPT_SECONDS: Final = 15 * 60
#: Longer paths are forgotten: three have to fit.
_MAX_PATH_CHARACTERS: Final = 600
#: Characters of states, nonces (each 128 bits and more) and verifiers (RFC 7636: 43 at least).
_STATE_CHARACTERS, _NONCE_CHARACTERS, _VERIFIER_CHARACTERS = 24, 24, 48


def session_id() -> str | None:
    """Return the id of the browser's session; None if it has none."""
    found = session.get(_SESSION)
    return found if isinstance(found, str) else None


def replace_session(new: str | None) -> None:
    """Give the browser another session, or none, and forget all else of it."""
    session.clear()
    if new is not None:
        session[_SESSION] = new


def begin_attempt(path: str) -> Attempt:
    """Begin a sign-in that leads to a path of ours."""
    attempt = Attempt(
        generate_token(_STATE_CHARACTERS), generate_token(_NONCE_CHARACTERS), generate_token(_VERIFIER_CHARACTERS)
    )
    now = int(time.time())
    known = [each for each in _attempts() if each["until"] > now][-(_MAX_ATTEMPTS - 1) :]
    entry = {"state": attempt.state, "nonce": attempt.nonce, "verifier": attempt.verifier}
    session[_ATTEMPTS] = [*known, {**entry, "path": local_path(path), "until": now + _ATTEMPT_SECONDS}]
    return attempt


def end_attempt(state: str) -> tuple[Attempt, str] | None:
    """Return the sign-in with this state, and its path; once.

    Return None if this browser began none, or too long ago.
    """
    attempts = _attempts()
    found = next((each for each in attempts if each["state"] == state), None)
    if found is None:
        return None
    session[_ATTEMPTS] = [each for each in attempts if each is not found]
    if found["until"] <= time.time():
        return None
    return Attempt(found["state"], found["nonce"], found["verifier"]), found["path"]


def local_path(path: str) -> str:
    """Return a path of ours; `/` for anything that could lead elsewhere.

    Browsers take a backslash for a slash, and ignore control characters.
    """
    is_local = path.startswith("/") and not path.startswith("//")
    is_plain = path.isascii() and path.isprintable() and "\\" not in path and " " not in path
    is_page = not path.startswith(("/sign-in", "/signed-out", "/sign-out"))
    return path if is_local and is_plain and is_page and len(path) <= _MAX_PATH_CHARACTERS else "/"


def _attempts() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = session.get(_ATTEMPTS, [])
    return found
