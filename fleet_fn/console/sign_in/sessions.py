"""Sessions of users, in memory: who restarts the console signs all users out."""

import hashlib
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from fleet_fn.console.sign_in.user_token import UserToken
from fleet_fn.console.users import User

#: Sessions that are kept; one more ends the one that was used longest ago.
MAX_SESSIONS: Final = 10_000
#: A session ends when no request came for so long, and at the latest after the lifetime.
IDLE_SECONDS: Final = 60 * 60.0
LIFETIME_SECONDS: Final = 12 * 60 * 60.0
#: Bytes of a session's id.
_ID_BYTES: Final = 32


@dataclass(slots=True)
class Session:
    """A user who has signed in."""

    user: User
    token: UserToken
    id_token: str
    since: float
    used: float


class Sessions:
    """Sessions by the hashes of their ids, so that the memory tells no id.

    Safe to use from several threads.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, max_sessions: int = MAX_SESSIONS) -> None:
        self._clock = clock
        self._max_sessions = max_sessions
        self._lock = threading.Lock()
        #: Those used longest ago first.
        self._sessions: OrderedDict[bytes, Session] = OrderedDict()

    def begin(self, user: User, token: UserToken, id_token: str) -> str:
        """Begin a session, and return its new id, which no browser had before."""
        session_id = secrets.token_urlsafe(_ID_BYTES)
        now = self._clock()
        with self._lock:
            self._sessions[_key(session_id)] = Session(user, token, id_token, now, now)
            ended = self._trim(now)
        for session in ended:
            session.token.end()
        return session_id

    def find(self, session_id: str) -> Session | None:
        """Return the session of an id, which counts as used now; None if it has ended."""
        key, now = _key(session_id), self._clock()
        with self._lock:
            session = self._sessions.get(key)
            if session is None:
                return None
            if self._is_over(session, now):
                del self._sessions[key]
            else:
                session.used = now
                self._sessions.move_to_end(key)
                return session
        session.token.end()
        return None

    def end(self, session_id: str) -> Session | None:
        """End a session, and return it; its token is still to be ended."""
        with self._lock:
            return self._sessions.pop(_key(session_id), None)

    def __len__(self) -> int:
        with self._lock:
            return len(self._sessions)

    def _trim(self, now: float) -> list[Session]:
        """Drop the sessions that have ended, and those that are too many."""
        dropped = []
        while self._sessions:
            oldest = next(iter(self._sessions.values()))
            if len(self._sessions) <= self._max_sessions and not self._is_over(oldest, now):
                break
            dropped.append(self._sessions.popitem(last=False)[1])
        return dropped

    def _is_over(self, session: Session, now: float) -> bool:
        return now - session.used >= IDLE_SECONDS or now - session.since >= LIFETIME_SECONDS


def _key(session_id: str) -> bytes:
    return hashlib.sha256(session_id.encode()).digest()
