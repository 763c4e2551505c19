"""How long a session lasts, and how many there can be."""

import pytest

from fleet_fn.console.sign_in.sessions import IDLE_SECONDS, LIFETIME_SECONDS, Sessions
from fleet_fn.console.sign_in.user_token import UserToken
from fleet_fn.console.users import User
from fleet_fn.http.client import HttpClient
from tests.support.timing import Clock


class Token:
    """A user's token that tells whether it was ended."""

    def __init__(self) -> None:
        self.is_over = False

    def end(self) -> None:
        self.is_over = True


@pytest.fixture
def clock() -> Clock:
    return Clock()


def begin(sessions: Sessions) -> tuple[str, Token]:
    token = Token()
    user = User("key", "alice", HttpClient("registry", "http://127.0.0.1:1"))
    return sessions.begin(user, _as_token(token), "id token"), token


def _as_token(token: Token) -> UserToken:
    return token  # type: ignore[return-value]


def test_a_session_is_found_by_its_id_only(clock: Clock) -> None:
    sessions = Sessions(clock)
    first, second = begin(sessions)[0], begin(sessions)[0]
    assert first != second
    assert len(first) == 43  # 256 bits
    assert sessions.find(first) is not sessions.find(second)
    for other in ("", first[:-1], first + "A"):
        assert sessions.find(other) is None
    assert first not in repr(sessions.__dict__)


def test_an_idle_session_ends(clock: Clock) -> None:
    sessions = Sessions(clock)
    session_id, token = begin(sessions)
    for _ in range(3):
        clock.now += IDLE_SECONDS - 1
        assert sessions.find(session_id)
    clock.now += IDLE_SECONDS
    assert sessions.find(session_id) is None
    assert token.is_over
    assert len(sessions) == 0


def test_a_session_in_use_ends_with_its_lifetime(clock: Clock) -> None:
    sessions = Sessions(clock)
    session_id, token = begin(sessions)
    began = clock.now
    while clock.now - began + 600 < LIFETIME_SECONDS:
        clock.now += 600
        assert sessions.find(session_id)
    clock.now += 600
    assert sessions.find(session_id) is None
    assert token.is_over


def test_too_many_sessions_end_those_used_longest_ago(clock: Clock) -> None:
    sessions = Sessions(clock, max_sessions=3)
    begun = [begin(sessions) for _ in range(3)]
    assert sessions.find(begun[0][0])
    begin(sessions)
    assert len(sessions) == 3
    assert sessions.find(begun[1][0]) is None
    assert [token.is_over for _, token in begun] == [False, True, False]


def test_a_new_session_clears_those_that_ended(clock: Clock) -> None:
    sessions = Sessions(clock)
    begun = [begin(sessions) for _ in range(5)]
    clock.now += IDLE_SECONDS
    begin(sessions)
    assert len(sessions) == 1
    assert all(token.is_over for _, token in begun)


def test_an_ended_session_is_gone(clock: Clock) -> None:
    sessions = Sessions(clock)
    session_id, _ = begin(sessions)
    assert sessions.end(session_id)
    assert sessions.end(session_id) is None
    assert sessions.find(session_id) is None
