"""When a user's access token is renewed, and when the user has to sign in again."""

import threading

import pytest

from fleet_fn.console.sign_in.client import GrantRefusedError, Tokens
from fleet_fn.console.sign_in.user_token import SignedOutError, UserToken
from fleet_fn.deadline import Deadline
from fleet_fn.errors import TransientError, UpstreamError
from fleet_fn.http.bearer_tokens import Token
from tests.support.timing import Clock


class Client:
    """A provider's client whose refresh tokens hold once."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.given = 1
        self.failure: UpstreamError | None = None
        self.lifetime = 300
        self.deadlines: list[float] = []
        self.gate = threading.Event()
        self.gate.set()

    def tokens(self) -> Tokens:
        return Tokens(Token.issued(f"access-{self.given}", self.lifetime, self.clock()), f"refresh-{self.given}")

    def refresh(self, refresh_token: str, deadline: Deadline) -> Tokens:
        self.deadlines.append(deadline.total)
        assert self.gate.wait(10)
        if self.failure:
            raise self.failure
        if refresh_token != f"refresh-{self.given}":
            raise GrantRefusedError("reused")
        self.given += 1
        return self.tokens()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def client(clock: Clock) -> Client:
    return Client(clock)


@pytest.fixture
def token(client: Client, clock: Clock) -> UserToken:
    return UserToken(client, client.tokens(), clock)  # type: ignore[arg-type]


def header(token: UserToken) -> str:
    return token.header(Deadline(60))


def test_a_token_is_used_until_shortly_before_it_expires(token: UserToken, clock: Clock) -> None:
    clock.now += 289
    assert header(token) == "Bearer access-1"
    clock.now += 2
    assert header(token) == header(token) == "Bearer access-2"


def test_the_provider_has_five_seconds(token: UserToken, client: Client, clock: Clock) -> None:
    clock.now += 300
    header(token)
    assert client.deadlines == [5]


def test_a_refused_token_is_replaced_once(token: UserToken, client: Client, clock: Clock) -> None:
    clock.now += 11
    assert token.refresh("Bearer access-1", 403, Deadline(5)) == "Bearer access-2"
    for _ in range(3):
        clock.now += 60
        assert token.refresh("Bearer access-2", 403, Deadline(5)) is None  # the user lacks rights
    assert client.given == 2
    clock.now += 120  # it expires
    assert header(token) == "Bearer access-3"
    clock.now += 11
    assert token.refresh("Bearer access-3", 401, Deadline(5)) == "Bearer access-4"


def test_a_young_token_that_gets_403_has_not_expired(token: UserToken, clock: Clock) -> None:
    clock.now += 9
    assert token.refresh("Bearer access-1", 403, Deadline(5)) is None
    assert token.refresh("Bearer access-1", 401, Deadline(5)) == "Bearer access-2"


def test_a_token_that_expired_on_its_way_is_replaced_however_short_its_life(client: Client, clock: Clock) -> None:
    client.lifetime = 4
    token = UserToken(client, client.tokens(), clock)  # type: ignore[arg-type]
    clock.now += 2
    assert token.refresh("Bearer access-1", 403, Deadline(5)) is None
    for number in (1, 2):
        clock.now += 2 + number
        assert token.refresh(f"Bearer access-{number}", 403, Deadline(5)) == f"Bearer access-{number + 1}"


def test_a_thread_that_was_refused_with_an_earlier_token_gets_the_current_one(token: UserToken, clock: Clock) -> None:
    clock.now += 300
    assert header(token) == "Bearer access-2"
    assert token.refresh("Bearer access-1", 403, Deadline(5)) == "Bearer access-2"


def test_threads_share_one_refresh(token: UserToken, client: Client, clock: Clock) -> None:
    clock.now += 300
    client.gate.clear()
    headers: list[str] = []
    threads = [threading.Thread(target=lambda: headers.append(header(token))) for _ in range(8)]
    for thread in threads:
        thread.start()
    client.gate.set()
    for thread in threads:
        thread.join()
    assert headers == ["Bearer access-2"] * 8
    assert client.given == 2


def test_a_refused_refresh_token_ends_the_session_for_good(token: UserToken, client: Client, clock: Clock) -> None:
    clock.now += 300
    client.failure = GrantRefusedError("it does not hold")
    for seconds in (0, 0, 60):
        clock.now += seconds
        with pytest.raises(SignedOutError, match="sign in again"):
            header(token)
    assert len(client.deadlines) == 1


def test_without_a_refresh_token_the_session_ends_with_the_access_token(client: Client, clock: Clock) -> None:
    token = UserToken(client, Tokens(client.tokens().access, None), clock)  # type: ignore[arg-type]
    assert header(token) == "Bearer access-1"
    clock.now += 300
    with pytest.raises(SignedOutError):
        header(token)


def test_an_outage_ends_no_session(token: UserToken, client: Client, clock: Clock) -> None:
    clock.now += 300
    client.failure = TransientError("OpenID provider: no answer in time")
    with pytest.raises(TransientError):
        header(token)
    client.failure = None
    clock.now += 2
    assert header(token) == "Bearer access-2"


def test_a_signed_out_user_acts_no_more(token: UserToken, clock: Clock) -> None:
    assert token.end() == "refresh-1"
    assert token.end() is None
    with pytest.raises(SignedOutError):
        header(token)
    clock.now += 300
    with pytest.raises(SignedOutError):
        token.refresh("Bearer access-1", 401, Deadline(5))
