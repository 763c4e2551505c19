"""Previews: the same decision, and no trace of it."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import cbor2
import pytest

from tests.support.drogue import Drogue
from tests.support.firmware import Published, publish, random_bytes
from tests.support.function import Answer, Function, event, running
from tests.support.http import Response

PACKED = {0: b"0.1.0", 1: 512, 2: 7, 3: None}


@pytest.fixture(scope="session")
def released(firmware: Path) -> Published:
    return publish(firmware, "previewed", "0.1.1", random_bytes(1300))


@pytest.fixture
def managed(drogue: Drogue, device: str, released: Published) -> str:
    drogue.put_image("example", device, f"previewed:{released.version}")
    return device


def preview(function: Function, device: str, payload: bytes, **attributes: str | None) -> Answer:
    return function.post(event(device, **attributes), payload, path="/preview")


def test_a_preview_shows_the_block_and_sends_nothing(
    function: Function, drogue: Drogue, managed: str, released: Published
) -> None:
    answer = preview(function, managed, b'{"version": "0.1.0", "mtu": 512}')
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json == {
        "outcome": "write",
        "reason": None,
        "application": "example",
        "device": managed,
        "dialect": "documented",
        "command": {
            "op": "WRITE",
            "version": "0.1.1",
            "offset": 0,
            "size": 512,
            "data": base64.b64encode(released.content[:512]).decode(),
        },
    }
    assert not drogue.commands_for(managed)


def test_a_preview_shows_every_dialect_as_documented(function: Function, managed: str, released: Published) -> None:
    assert function.post(event(managed), cbor2.dumps(PACKED)).outcome.startswith("write")  # which is recorded
    swap = {"op": "SWAP", "version": "0.1.1", "checksum": released.checksum.hex()}
    packed = preview(function, managed, cbor2.dumps({**PACKED, 3: {0: b"0.1.1", 1: 1300}})).json
    assert (packed["outcome"], packed["dialect"], packed["command"]) == ("swap", "packed", swap)
    named = preview(function, managed, cbor2.dumps({"version": b"0.1.1"})).json
    sync = {"op": "SYNC", "version": "0.1.1", "poll": 300}
    assert (named["outcome"], named["dialect"], named["command"]) == ("sync", "named", sync)


def test_a_preview_tells_why_a_device_is_withheld(function: Function, device: str) -> None:
    shown = preview(function, device, b'{"version": "1"}').json
    assert (shown["outcome"], shown["reason"]) == ("withheld", "unmanaged")
    assert shown["command"] == {"op": "SYNC", "version": "1", "poll": 300}


def test_neither_age_nor_identity_matters_to_a_preview(function: Function, managed: str) -> None:
    old = event(managed, time="2020-01-01T00:00:00Z")
    for _ in range(2):
        assert function.post(old, b'{"version": "0.1.1"}', path="/preview").json["outcome"] == "sync"
    new = event(managed)
    for path, outcome in (("/preview", None), ("/", "sync"), ("/", "duplicate"), ("/preview", None)):
        answer = function.post(new, b'{"version": "0.1.1"}', path=path)
        assert answer.headers.get("fleet-outcome") == outcome


def test_a_preview_shows_what_was_the_answer_to_an_event_that_was_answered(function: Function, managed: str) -> None:
    earlier, answered = event(managed), event(managed)
    payload = cbor2.dumps(PACKED)
    assert function.post(answered, payload).outcome.startswith("write")
    for shown in (answered, earlier):
        assert function.post(shown, payload, path="/preview").json["outcome"] == "write"


def test_a_preview_is_remembered_nowhere(function: Function, drogue: Drogue, managed: str) -> None:
    assert preview(function, managed, b'{"version": "0.1.1"}').json["outcome"] == "sync"
    drogue.put_image("example", managed, None)
    assert function.post(event(managed), b'{"version": "0.1.1"}').outcome.startswith("withheld")
    drogue.put_image("example", managed, "previewed:0.1.1")
    assert preview(function, managed, b'{"version": "0.1.1"}').json["outcome"] == "sync"
    assert function.post(event(managed), b'{"version": "0.1.1"}').outcome.startswith("withheld")


def test_a_preview_shows_what_stands_there_now(function: Function, drogue: Drogue, managed: str) -> None:
    assert preview(function, managed, b'{"version": "0.1.1"}').json["outcome"] == "sync"
    drogue.put_image("example", managed, None)
    assert preview(function, managed, b'{"version": "0.1.1"}').json["outcome"] == "withheld"


def test_a_failed_preview_is_not_remembered_either(
    function: Function, drogue: Drogue, device: str, firmware: Path
) -> None:
    drogue.put_image("example", device, f"previewed:{device}")
    failure = preview(function, device, cbor2.dumps(PACKED)).json
    assert (failure["outcome"], failure["command"]) == ("failed", {"op": "WAIT", "poll": 300})
    assert failure["reason"] == f"no tag {device} in the layout previewed"
    publish(firmware, "previewed", device, b"x" * 32)
    assert function.post(event(device), cbor2.dumps(PACKED)).status == 204


@pytest.mark.parametrize(
    ("payload", "attributes", "outcome"),
    [
        (b"", {}, "invalid"),
        (b'{"mtu": 1}', {}, "invalid"),
        (b'{"version": "1"}', {"specversion": None}, "invalid"),
        (b'{"version": "1"}', {"subject": "temperature"}, "ignored"),
        (b'{"version": "1"}', {"type": "io.drogue.registry.v1", "subject": "devices"}, "ignored"),
    ],
)
def test_previews_answer_200_whatever_the_outcome(
    function: Function, device: str, payload: bytes, attributes: dict[str, str | None], outcome: str
) -> None:
    answer = preview(function, device, payload, **attributes)
    assert (answer.status, answer.json["outcome"], answer.json["command"]) == (200, outcome, None)
    assert set(answer.json) == {"outcome", "reason", "application", "device", "dialect", "command"}


def test_an_upstream_that_is_not_there_is_shown_as_retry(function: Function, drogue: Drogue, device: str) -> None:
    drogue.registry_answers["example", device] = lambda _: Response(503)
    shown = preview(function, device, b'{"version": "1"}').json
    assert (shown["outcome"], shown["dialect"], shown["command"]) == ("retry", "documented", None)
    assert "503" in shown["reason"]


def test_a_preview_takes_the_events_size_bound(function: Function, device: str) -> None:
    assert preview(function, device, b" " * 65537).status == 413


# --- Credentials and switches

PASSWORD = "pässword:with colon"
#: Ends in a byte that is a space to who takes it for ISO 8859-1, as WSGI does.
TOKEN = "s3cret-voilà"


@pytest.fixture(scope="module")
def guarded(environment: dict[str, str]) -> Iterator[Function]:
    """A function that takes events with either kind of credentials, and no previews."""
    settings = {"EVENTS_USER": "drogue", "EVENTS_PASSWORD": PASSWORD, "EVENTS_TOKEN": TOKEN}
    with running(environment | settings) as function:
        yield function


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.mark.parametrize("path", ["/", "/preview"])
@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Basic",
        "Bearer ",
        "Basic %%%",
        f"Bearer {TOKEN[:-1]}".encode(),
        f"Bearer {TOKEN}t".encode(),
        f"Bearer {'x' * 7000}",
        f"Basic {'x' * 7000}",
        "Bearer ü",
        f"Digest {TOKEN}".encode(),
        basic("drogue", "wrong"),
        basic("other", PASSWORD),
        basic("", ""),
    ],
)
def test_requests_without_the_credentials_are_denied(
    guarded: Function, drogue: Drogue, device: str, path: str, authorization: str | bytes | None
) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    answer = guarded.post(event(device), b'{"version": "1"}', path=path, headers=headers)
    assert (answer.status, answer.outcome) == (401, "denied")
    assert "Basic" in answer.headers["www-authenticate"]
    assert not drogue.commands_for(device)


@pytest.mark.parametrize(
    "authorization", [f"Bearer {TOKEN}".encode(), f"bearer  {TOKEN} ".encode(), basic("drogue", PASSWORD)]
)
def test_requests_with_the_credentials_are_answered(guarded: Function, device: str, authorization: str | bytes) -> None:
    headers = {"Authorization": authorization}
    assert guarded.post(event(device), b'{"version": "1"}', headers=headers).status == 204
    assert guarded.post(event(device), b'{"version": "1"}', headers=headers, path="/preview").status == 200


def test_health_needs_no_credentials(guarded: Function) -> None:
    assert guarded.request("GET", "/readyz").status == 200


def test_secrets_are_not_logged(guarded: Function, device: str) -> None:
    guarded.post(event(device), b'{"version": "1"}', headers={"Authorization": f"Bearer {TOKEN}".encode()})
    guarded.post(event(device), b'{"version": "1"}', headers={"Authorization": basic("drogue", "wrong")})
    assert guarded.logged(device)
    assert guarded.logged("denied")
    written = "".join(guarded.log) + guarded.errors
    for secret in ("s3cret", TOKEN, PASSWORD, json.dumps(PASSWORD), "t0ken", basic("drogue", PASSWORD)):
        assert secret not in written


def test_previews_can_be_switched_off(environment: dict[str, str], device: str) -> None:
    with running(environment | {"PREVIEW": "false"}) as function:
        assert function.post(event(device), b'{"version": "1"}', path="/preview").status == 404
        assert function.post(event(device), b'{"version": "1"}').status == 204
