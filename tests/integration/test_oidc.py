"""A function whose credentials for Drogue Cloud come from an OpenID provider."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.drogue import Drogue
from tests.support.function import Answer, Function, event
from tests.support.http import Request, Response
from tests.support.oidc import SECRET, TOKEN_BEGINS, Provider
from tests.support.timing import DEADLINE, SLACK


@dataclass
class Place:
    provider: Provider
    drogue: Drogue
    function: Function

    def status(self, device: str = "device1") -> Answer:
        return self.function.post(event(device), b'{"version": "1"}')


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with Provider() as provider, Drogue(provider.accepts) as drogue:
        drogue.put("example", spec={})
        for number in range(1, 9):
            drogue.put("example", f"device{number}", spec={})
        settings = {
            "DROGUE_API_URL": drogue.url,
            **provider.environment,
            "FIRMWARE_REGISTRY": f"oci-layout:{tmp_path}",
            "EVENT_DEADLINE_SECONDS": str(DEADLINE),
        }
        with Function(settings) as function:
            yield Place(provider, drogue, function)
            written = "".join(function.log) + function.errors
        assert "Traceback" not in "".join(function.log)
        assert SECRET not in written
        assert TOKEN_BEGINS not in written


def test_events_that_come_at_once_share_one_token(place: Place) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(place.status, [f"device{number}" for number in range(1, 9)]))
    assert {answer.status for answer in answers} == {204}
    assert place.provider.asked == 1
    assert {authorization and authorization[:14] for authorization in place.drogue.authorizations} == {"Bearer t0ken-1"}


def test_a_token_that_was_revoked_is_replaced_and_the_command_goes_out_once(place: Place) -> None:
    place.drogue.refuses_with = 401
    assert place.status().status == 204
    place.provider.revoke()
    assert place.status().status == 204
    assert place.provider.asked == 2
    assert len(place.drogue.commands) == 2


def test_one_that_is_refused_again_is_not_replaced_again(place: Place) -> None:
    place.drogue.refuses_with = 401
    place.provider.answer_instead = lambda _: Response(200, b'{"access_token": "t0ken-x", "expires_in": 300}')
    answer = place.status()
    assert (answer.status, answer.reason) == (422, "registry: our credentials were refused")
    assert place.provider.asked == 2


def test_credentials_that_the_provider_refuses_are_no_matter_of_a_retry(place: Place) -> None:
    place.provider.answer_instead = lambda _: Response(401, b'{"error": "invalid_client"}')
    answer = place.status()
    assert (answer.status, answer.reason) == (422, "token endpoint: our credentials were refused")


def test_a_provider_that_hangs_does_not_keep_events_beyond_their_deadline(place: Place) -> None:
    def hang(_: Request) -> None:
        time.sleep(3 * DEADLINE)

    place.provider.answer_instead = hang
    with ThreadPoolExecutor(8) as pool:
        started = time.monotonic()
        answers = list(pool.map(place.status, [f"device{number}" for number in range(1, 9)]))
        assert time.monotonic() - started < DEADLINE + SLACK
    assert {answer.status for answer in answers} == {503}
    place.provider.answer_instead = None
    time.sleep(1.05)  # for which what timed out is remembered
    assert place.status().status == 204
