"""Commands: paths, and the meaning of the command API's answers."""

import re
from collections.abc import Iterator

import pytest

from fleet_fn.deadline import Deadline
from fleet_fn.drogue.commands import Commands
from fleet_fn.errors import PermanentError, TransientError
from fleet_fn.http.authorization import Fixed, basic
from fleet_fn.http.client import HttpClient
from tests.support.http import Response, Server, closed_port


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(lambda _: Response(202)) as server:
        yield server


@pytest.fixture
def commands(server: Server) -> Iterator[Commands]:
    upstream = HttpClient("command API", server.url, authorization=Fixed(basic("user", "token")))
    yield Commands(upstream)
    upstream.close()


def send(commands: Commands, application: str = "fleet", device: str = "pump", command: str = "dfu") -> None:
    commands.send(application, device, command, b"\xa1\x00\xff", "application/cbor", Deadline(5))


def test_a_command_is_posted_with_its_payload_as_it_is(server: Server, commands: Commands) -> None:
    send(commands)
    (request,) = server.requests
    assert request.method == "POST"
    assert request.path == "/api/command/v1alpha1/apps/fleet/devices/pump?command=dfu"
    assert request.headers["Content-Type"] == "application/cbor"
    assert request.headers["Authorization"] == basic("user", "token")
    assert request.body == b"\xa1\x00\xff"


def test_an_empty_payload_is_sent_as_such(server: Server, commands: Commands) -> None:
    commands.send("fleet", "pump", "dfu", b"", "application/json", Deadline(5))
    assert server.requests[0].headers["Content-Length"] == "0"


@pytest.mark.parametrize(
    ("application", "device", "command", "path"),
    [
        ("fleet", "pump", "port:223", "fleet/devices/pump?command=port%3A223"),
        ("fleet", "a/b?c#d", "dfu", "fleet/devices/a%2Fb%3Fc%23d?command=dfu"),
        ("fleet", "100%", "dfu", "fleet/devices/100%25?command=dfu"),
        ("fleet", "a%20b", "dfu", "fleet/devices/a%2520b?command=dfu"),
        ("fleet", "Gerät 7", "dfu", "fleet/devices/Ger%C3%A4t%207?command=dfu"),
        ("fl/eet", "a&command=x", "a&b=c d", "fl%2Feet/devices/a%26command%3Dx?command=a%26b%3Dc%20d"),
    ],
)
def test_names_are_percent_encoded(
    server: Server, commands: Commands, application: str, device: str, command: str, path: str
) -> None:
    send(commands, application, device, command)
    assert server.requests[0].path == f"/api/command/v1alpha1/apps/{path}"


@pytest.mark.parametrize("name", [".", ".."])
def test_a_name_that_a_path_would_swallow_fails_before_anything_is_sent(
    server: Server, commands: Commands, name: str
) -> None:
    with pytest.raises(PermanentError, match=rf"^command API: no URL can carry the name {re.escape(name)}$"):
        send(commands, device=name)
    with pytest.raises(PermanentError, match=rf"^command API: no URL can carry the name {re.escape(name)}$"):
        send(commands, application=name)
    assert not server.requests


@pytest.mark.parametrize("status", [200, 202, 204])
def test_any_2xx_is_acceptance(server: Server, commands: Commands, status: int) -> None:
    server.answer = lambda _: Response(status)
    send(commands)


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (401, "command API: 401 for device pump of application fleet (our credentials were refused)"),
        (403, "command API: 403 for device pump of application fleet (our credentials were refused)"),
        (404, "command API: 404 for application fleet (wrong name, wrong DROGUE_API_URL, or not a member)"),
        (
            406,
            "command API: 406: device unknown to the command endpoint, command rejected, or its spec.core section "
            "(released clouds read core.disabled inverted)",
        ),
        (413, "command API: 413: the command is above 65,536 bytes"),
        (302, "command API: answered 302"),
        (400, "command API: answered 400"),
        (418, "command API: answered 418"),
    ],
)
def test_what_no_retry_can_cure_fails_and_is_not_sent_again(
    server: Server, commands: Commands, status: int, reason: str
) -> None:
    server.answer = lambda _: Response(status, b"a secret")
    with pytest.raises(PermanentError) as caught:
        send(commands)
    assert caught.value.reason == reason
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_what_a_retry_can_cure_is_to_be_retried(server: Server, commands: Commands, status: int) -> None:
    server.answer = lambda _: Response(status, headers={"Retry-After": "2"})
    with pytest.raises(TransientError) as caught:
        send(commands)
    assert caught.value.retry_after == 2
    assert len(server.requests) == 1


def test_a_command_api_that_is_not_there_is_to_be_retried() -> None:
    with closed_port() as port, pytest.raises(TransientError):
        send(Commands(HttpClient("command API", f"http://127.0.0.1:{port}")))
