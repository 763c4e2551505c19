"""A function whose credentials for Drogue Cloud come from an OpenID provider."""

import itertools
import ssl
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trustme

from tests.support.drogue import Drogue
from tests.support.function import Answer, Function, event
from tests.support.http import Request, Response, closed_port
from tests.support.oidc import SECRET, TOKEN_BEGINS, Provider
from tests.support.timing import DEADLINE, SLACK

REFUSED = "device device1 of application example (our credentials were refused)"


@dataclass
class Place:
    provider: Provider
    drogue: Drogue
    function: Function
    answers: list[Answer] = field(default_factory=list)

    def status(self, device: str = "device1") -> Answer:
        answer = self.function.post(event(device), b'{"version": "1"}')
        self.answers.append(answer)
        return answer


@contextmanager
def running(provider: Provider, firmware: Path, **settings: str) -> Iterator[Place]:
    """A function between a provider and a Drogue Cloud that accepts its tokens; it is to tell nobody what is secret."""
    with Drogue(provider.accepts) as drogue:
        drogue.put("example", spec={})
        for number in range(1, 9):
            drogue.put("example", f"device{number}", spec={})
        environment = {
            "DROGUE_API_URL": drogue.url,
            **provider.environment,
            "FIRMWARE_REGISTRY": f"oci-layout:{firmware}",
            "EVENT_DEADLINE_SECONDS": str(DEADLINE),
            **settings,
        }
        with Function(environment) as function:
            place = Place(provider, drogue, function)
            yield place
            errors = function.errors
        log = "".join(function.log)
        assert "Traceback" not in log
        for secret in (SECRET, TOKEN_BEGINS):
            assert secret not in log + errors
            assert secret not in repr(place.answers)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with Provider() as provider, running(provider, tmp_path) as place:
        yield place


def hang(_: Request) -> None:
    time.sleep(3 * DEADLINE)


def test_events_that_come_at_once_share_one_token(place: Place) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(place.status, [f"device{number}" for number in range(1, 9)]))
    assert {answer.status for answer in answers} == {204}
    assert place.provider.asked == 1
    assert place.drogue.authorizations == {"Bearer t0ken-1"}


def test_a_token_is_renewed_before_anybody_is_refused_for_it(place: Place) -> None:
    place.provider.lifetime = 2
    limit = time.monotonic() + 20
    while place.provider.asked < 2 and time.monotonic() < limit:
        assert place.status().status == 204
        time.sleep(0.02)
    assert place.provider.asked == 2
    assert not place.provider.refused


def test_a_token_that_was_revoked_is_replaced_and_the_command_goes_out_once(place: Place) -> None:
    place.drogue.refuses_with = 401
    assert place.status().status == 204
    place.provider.revoke()
    assert place.status().status == 204
    assert place.provider.asked == 2
    assert [request.method for request in place.provider.refused] == ["POST"]
    assert len(place.drogue.commands) == 2


def test_one_that_is_refused_again_is_not_replaced_again(place: Place) -> None:
    place.drogue.refuses_with = 401
    numbers = itertools.count(1)
    place.provider.answer_instead = lambda _: Response(200, b'{"access_token": "t0ken-x%d"}' % next(numbers))
    answer = place.status()
    assert (answer.status, answer.reason) == (422, f"device registry: 401 for {REFUSED}")
    assert place.provider.asked == 2
    assert [request.headers["Authorization"] for request in place.provider.refused] == [
        "Bearer t0ken-x1",
        "Bearer t0ken-x2",
    ]


def test_a_lack_of_permission_costs_no_other_token(place: Place) -> None:
    place.provider.answer_instead = lambda _: Response(200, b'{"access_token": "t0ken-x"}')
    answer = place.status()
    assert (answer.status, answer.reason) == (422, f"device registry: 403 for {REFUSED}")
    assert place.provider.asked == 1


def test_credentials_that_the_provider_refuses_are_no_matter_of_a_retry(place: Place) -> None:
    place.provider.answer_instead = lambda _: Response(401, b'{"error": "invalid_client"}')
    answer = place.status()
    assert (answer.status, answer.reason) == (422, "token endpoint: our credentials were refused")


def test_a_provider_that_is_not_there_is_a_matter_of_a_retry(tmp_path: Path) -> None:
    with closed_port() as port, Provider() as provider:
        url = f"http://127.0.0.1:{port}/token"
        with running(provider, tmp_path, DROGUE_OIDC_TOKEN_URL=url) as place:
            answer = place.status()
    assert (answer.status, answer.reason) == (503, "token endpoint: connection refused")
    assert "retry-after" in answer.headers


def test_a_provider_that_hangs_does_not_keep_events_beyond_their_deadline(place: Place) -> None:
    place.provider.answer_instead = hang
    with ThreadPoolExecutor(8) as pool:
        started = time.monotonic()
        answers = list(pool.map(place.status, [f"device{number}" for number in range(1, 9)]))
        assert time.monotonic() - started < DEADLINE + SLACK
    assert {answer.status for answer in answers} == {503}
    place.provider.answer_instead = None
    time.sleep(1.05)  # for which what timed out is remembered
    assert place.status().status == 204


def test_nor_does_one_that_hangs_when_a_token_is_to_be_replaced(place: Place) -> None:
    place.drogue.refuses_with = 401
    assert place.status().status == 204
    place.provider.revoke()
    place.provider.answer_instead = hang
    started = time.monotonic()
    answer = place.status()
    assert time.monotonic() - started < DEADLINE + SLACK
    assert (answer.status, answer.reason) == (503, "token endpoint: no answer in time")
    assert len(place.drogue.commands) == 1


@pytest.mark.parametrize(
    ("is_trusted", "status", "reason"), [(True, 204, ""), (False, 422, "token endpoint: certificate not trusted")]
)
def test_the_provider_is_trusted_by_the_same_authorities_as_drogue_cloud(
    tmp_path: Path, is_trusted: bool, status: int, reason: str
) -> None:
    authority, another = trustme.CA(), trustme.CA()
    certified = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(certified)
    trusted = tmp_path / "ca.pem"
    (authority if is_trusted else another).cert_pem.write_to_path(str(trusted))
    with Provider(certified) as provider, running(provider, tmp_path, DROGUE_CA_FILE=str(trusted)) as place:
        answer = place.status()
    assert answer.status == status
    assert reason in answer.body.decode()
