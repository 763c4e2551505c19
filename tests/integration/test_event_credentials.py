"""Credentials that events carry: once, several times on lines of their own, or joined by a comma."""

import base64
from collections.abc import Iterator

import pytest

from tests.support.drogue import Drogue
from tests.support.function import Answer, Function, event, running

USER, PASSWORD = "drogue", "pässword, with: a comma"
#: Looks like a list of credentials itself, and ends in a comma.
TOKEN = "s3cret, Bearer à,Basic x,"


def basic(user: str, password: str) -> bytes:
    return b"Basic " + base64.b64encode(f"{user}:{password}".encode())


BASIC = basic(USER, PASSWORD)
BEARER = f"Bearer {TOKEN}".encode()
WRONG = [basic(USER, "wrong"), b"Bearer s3cret", b"Bearer", b"Digest username=drogue", b""]


@pytest.fixture(scope="module")
def guarded(environment: dict[str, str]) -> Iterator[Function]:
    """A function that takes events with either kind of credentials."""
    with running(environment | {"EVENTS_USER": USER, "EVENTS_PASSWORD": PASSWORD, "EVENTS_TOKEN": TOKEN}) as function:
        yield function


def post(function: Function, device: str, values: list[bytes]) -> Answer:
    """Posts a status with each of the `values` on an `Authorization` line of its own."""
    attributes = [(f"ce-{name}", value.encode()) for name, value in event(device).items() if value]
    lines = [*(("Authorization", value) for value in values), *attributes, ("Content-Type", b"application/json")]
    return function.request("POST", "/", lines, b'{"version": "1"}')


@pytest.mark.parametrize(
    "right",
    [
        [BASIC],
        [BEARER],
        [BASIC, BASIC],  # as drogue-event-source 0.2.3 sends it
        [BEARER, BEARER],
        [BASIC, BEARER],
        [BEARER, BASIC],
        [BEARER, BASIC, BASIC, BEARER],
        [BASIC.replace(b"Basic ", b"bASIC   ")] * 2,
    ],
)
@pytest.mark.parametrize("joined_by", [None, b",", b", ", b"\t , "])
def test_equal_credentials_count_once(
    guarded: Function, drogue: Drogue, device: str, right: list[bytes], joined_by: bytes | None
) -> None:
    values = right if joined_by is None else [joined_by.join(right)]
    assert post(guarded, device, values).status == 204
    assert len(drogue.commands_for(device)) == 1


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("right", [BASIC, BEARER])
@pytest.mark.parametrize("joined_by", [None, b",", b", "])
def test_one_wrong_credential_denies(
    guarded: Function, drogue: Drogue, device: str, right: bytes, wrong: bytes, joined_by: bytes | None
) -> None:
    for values in ([wrong, right], [right, wrong], [right, wrong, right]):
        answer = post(guarded, device, values if joined_by is None else [joined_by.join(values)])
        assert (answer.status, answer.outcome) == (401, "denied")
    assert not drogue.commands_for(device)


@pytest.mark.parametrize("values", [[], [b""], [b","], [b"", b""], [BEARER[:-1]], [BEARER + b","], [BASIC + b" x"]])
def test_what_is_not_the_credential_denies(guarded: Function, device: str, values: list[bytes]) -> None:
    assert post(guarded, device, values).status == 401


def test_a_kind_that_is_not_configured_denies(environment: dict[str, str], device: str) -> None:
    with running(environment | {"EVENTS_TOKEN": "a,b"}) as function:
        assert [post(function, device, values).status for values in ([BASIC], [b"Bearer a,b", BASIC])] == [401, 401]
        assert post(function, device, [b"Bearer a,b", b"Bearer a,b"]).status == 204
