"""ClientCredentials: fetching, caching and renewing access tokens, and keeping them secret."""

import json
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType

import pytest

from fleet_fn.deadline import Deadline
from fleet_fn.drogue.oidc import ClientCredentials
from fleet_fn.errors import PermanentError, RateLimitedError, TransientError
from fleet_fn.http.client import HttpClient
from tests.support.http import Request, Response, closed_port
from tests.support.oidc import CLIENT, SECRET, Provider
from tests.support.timing import Clock, Gate


class Client:
    """The credentials of a client, on a clock of the test's."""

    def __init__(self, provider: Provider) -> None:
        self.provider = provider
        self.clock = Clock()
        self.upstream = HttpClient("token endpoint", provider.server.url)
        self.credentials = ClientCredentials(self.upstream, "/realms/drogue/token/", CLIENT, SECRET, clock=self.clock)

    def header(self, seconds: float = 5.0) -> str | None:
        return self.credentials.header(Deadline(seconds))

    def refresh(self, refused: str, status: int = 401) -> str | None:
        return self.credentials.refresh(refused, status, Deadline(5))


@pytest.fixture
def client() -> Iterator[Client]:
    with Provider() as provider:
        client = Client(provider)
        yield client
        client.upstream.close()


def answers(client: Client, status: int, body: bytes = b"", headers: Mapping[str, str] = MappingProxyType({})) -> None:
    client.provider.answer_instead = lambda _: Response(status, body, headers)


def test_a_token_is_fetched_with_the_clients_credentials_and_kept(client: Client) -> None:
    assert [client.header() for _ in range(3)] == ["Bearer t0ken-1"] * 3
    assert client.provider.asked == 1


@pytest.mark.parametrize(
    ("lifetime", "last"), [(300, 289.9), (300.9, 289.9), (20, 14.9), (None, 49.9), (10**9, 24 * 60 * 60 - 10.1)]
)
def test_it_is_renewed_shortly_before_it_expires(client: Client, lifetime: float | None, last: float) -> None:
    client.provider.lifetime = lifetime
    client.header()
    client.clock.now += last
    assert client.header() == "Bearer t0ken-1"
    client.clock.now += 0.2
    assert client.header() == "Bearer t0ken-2"


def test_those_who_want_a_token_at_the_same_time_share_one(client: Client) -> None:
    gate = Gate(Response(200, b'{"access_token": "shared"}'))
    client.provider.answer_instead = gate
    with ThreadPoolExecutor(8) as pool:
        headers = [pool.submit(client.header) for _ in range(8)]
        assert gate.reached.wait(10)
        gate.opened.set()
        assert {header.result() for header in headers} == {"Bearer shared"}
    assert client.provider.asked == 1


def test_who_has_less_time_than_a_fetch_takes_does_not_wait_for_its_end(client: Client) -> None:
    gate = Gate(Response(200, b'{"access_token": "late"}'))
    client.provider.answer_instead = gate
    with ThreadPoolExecutor(1) as pool:
        header = pool.submit(client.header)
        try:
            assert gate.reached.wait(10)
            with pytest.raises(TransientError, match=r"^token endpoint: an earlier request for a token has not ended$"):
                client.header(0.1)
        finally:
            gate.opened.set()
        assert header.result() == "Bearer late"


def test_one_that_is_refused_is_replaced_once_for_all_who_showed_it(client: Client) -> None:
    first = client.header()
    assert first
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(client.refresh, [first] * 8)) == {"Bearer t0ken-2"}
    assert client.provider.asked == 2
    assert client.header() == "Bearer t0ken-2"


def test_a_403_tells_of_a_tokens_end_only_where_it_has_lived_for_a_while(client: Client) -> None:
    first = client.header()
    assert first
    client.clock.now += 9
    assert client.refresh(first, 403) is None
    client.clock.now += 2
    assert client.refresh(first, 403) == "Bearer t0ken-2"
    # Another who showed it hears of its end only now.
    assert client.refresh(first, 403) == "Bearer t0ken-2"
    assert client.provider.asked == 2


def test_the_same_token_once_more_is_no_other_to_try(client: Client) -> None:
    answers(client, 200, b'{"access_token": "same"}')
    first = client.header()
    assert first
    assert client.refresh(first) is None
    assert client.provider.asked == 2


@pytest.mark.parametrize("status", [400, 401, 403])
def test_refused_credentials_are_remembered_for_a_while(client: Client, status: int) -> None:
    answers(client, status, b'{"error": "invalid_client"}')
    for _ in range(3):
        with pytest.raises(PermanentError, match=r"^token endpoint: our credentials were refused$"):
            client.header()
        client.clock.now += 4.9
    assert client.provider.asked == 1
    client.provider.answer_instead = None
    assert client.header() == "Bearer t0ken-1"


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_provider_that_is_not_well_is_to_be_asked_again_a_moment_later(client: Client, status: int) -> None:
    answers(client, status)
    for _ in range(3):
        with pytest.raises(TransientError, match=f"token endpoint: answered {status}"):
            client.header()
    assert client.provider.asked == 1
    client.provider.answer_instead = None
    client.clock.now += 1.1
    assert client.header() == "Bearer t0ken-1"


def test_rate_limited_provider_is_not_asked_for_retry_after(client: Client) -> None:
    answers(client, 429, headers={"Retry-After": "5"})
    for _ in range(3):
        with pytest.raises(RateLimitedError, match="token endpoint: answered 429"):
            client.header()
        client.clock.now += 2.4
    assert client.provider.asked == 1
    client.provider.answer_instead = None
    assert client.header() == "Bearer t0ken-1"


def test_each_is_told_of_a_failure_by_an_error_of_his_own(client: Client) -> None:
    answers(client, 401)
    errors = []
    for _ in range(3):
        with pytest.raises(PermanentError) as raised:
            client.header()
        errors.append(raised.value)
    assert len({id(error) for error in errors}) == 3
    assert client.provider.asked == 1


def test_callers_of_hanging_provider_wait_until_their_deadline(
    client: Client,
) -> None:
    over = threading.Event()

    def hang(_: Request) -> None:
        over.wait(30)

    client.provider.answer_instead = hang
    with ThreadPoolExecutor(8) as pool:
        waits = [pool.submit(client.header, 0.3) for _ in range(8)]
        assert all(isinstance(wait.exception(10), TransientError) for wait in waits)
    over.set()
    assert client.provider.asked == 1


def test_a_provider_that_is_not_there_is_to_be_asked_again() -> None:
    with closed_port() as port:
        upstream = HttpClient("token endpoint", f"http://127.0.0.1:{port}")
        with pytest.raises(TransientError, match="token endpoint: connection refused"):
            ClientCredentials(upstream, "/", CLIENT, SECRET).header(Deadline(5))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "no JSON object"),
        (b'["secret"]', "no JSON object"),
        (b'{"access_token": "secret', "no JSON object"),
        (b'{"token": "secret"}', "no access_token"),
        (b'{"access_token": "sec ret"}', "no access_token"),
        (b'{"access_token": ""}', "no access_token"),
        (b'{"access_token": ["secret"]}', "no access_token"),
        (b'{"access_token": "secret", "token_type": "mac"}', "not of type Bearer"),
        (b'{"access_token": "secret", "token_type": 5}', "not of type Bearer"),
    ],
)
def test_an_answer_that_makes_no_sense_is_a_failure_that_does_not_quote_it(
    client: Client, body: bytes, reason: str
) -> None:
    answers(client, 200, body)
    with pytest.raises(PermanentError, match=reason) as raised:
        client.header()
    assert "secret" not in repr(raised.value)
    # An error of the parser's would hold the whole text.
    assert raised.value.__cause__ is None
    assert raised.value.__context__ is None


@pytest.mark.parametrize("lifetime", ["300", None, True, 0, -5, 0.5, []])
def test_a_lifetime_that_makes_no_sense_is_a_short_one(client: Client, lifetime: object) -> None:
    answers(client, 200, json.dumps({"access_token": "a", "expires_in": lifetime}).encode())
    client.header()
    client.clock.now += 49.9
    client.header()
    client.clock.now += 0.2
    client.header()
    assert client.provider.asked == 2


@pytest.mark.parametrize("status", [302, 404, 405])
def test_other_answers_are_a_failure_that_names_their_status(client: Client, status: int) -> None:
    answers(client, status)
    with pytest.raises(PermanentError, match=rf"^token endpoint: answered {status}$"):
        client.header()


def test_nothing_secret_is_shown(client: Client) -> None:
    client.header()
    shown = repr(vars(client.credentials))
    assert "t0ken" not in shown


def test_closing_an_apis_client_closes_its_providers(client: Client) -> None:
    cloud = HttpClient("device registry", client.provider.server.url, authorization=client.credentials)
    for expected in (1, 2):
        for _ in range(2):
            client.header()
            client.clock.now += 1000
        assert client.provider.server.connections == expected
        cloud.close()
