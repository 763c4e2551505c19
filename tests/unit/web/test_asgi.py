"""The ASGI application, with messages that no real server can be made to send."""

import asyncio
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from fleet_fn.app import create_app
from fleet_fn.settings import Settings
from fleet_fn.web.asgi import ASGIFunction, Message


def make_function(environment: Mapping[str, str]) -> ASGIFunction:
    settings = Settings.from_environment(environment)
    return ASGIFunction(create_app(settings), settings)


@pytest.fixture
def function(tmp_path: Path) -> ASGIFunction:
    settings = {"DROGUE_API_URL": "http://127.0.0.1:1", "FIRMWARE_REGISTRY": f"oci-layout:{tmp_path}"}
    return make_function(settings)


HEADERS = [
    (b"ce-specversion", b"1.0"),
    (b"ce-id", b"1"),
    (b"ce-source", b"x"),
    (b"ce-type", b"other"),
]


def answer(function: ASGIFunction, received: Iterable[Message] = (), **scope: Any) -> list[Message]:
    """What is sent to whom sends an event that is ignored, where nothing else is said."""
    messages = iter(received or [{"type": "http.request", "body": b"{}"}])
    sent: list[Message] = []

    async def receive() -> Message:
        return next(messages, {"type": "http.disconnect"})

    async def send(message: Message) -> None:
        sent.append(message)

    request = {
        "type": "http",
        "method": "POST",
        "path": "/",
        "query_string": b"",
        "http_version": "2",
        "root_path": "",
        "scheme": "http",
        "server": ("127.0.0.1", 80),
        "client": ("127.0.0.1", 1),
        "headers": HEADERS,
    }
    asyncio.run(function.handle(request | scope, receive, send))
    return sent


@pytest.mark.parametrize(
    ("shown", "status"),
    [
        (["Bearer voilà"], 204),
        (["bearer  voilà "], 204),
        (["Bearer voilà", "Bearer voilà"], 204),
        ([], 401),
        (["Bearer voil\xc3"], 401),
        (["Bearer x", "Bearer voilà"], 401),
        (["Bearer \u202e\x00"], 401),
        (["Basic \xff"], 401),
    ],
)
def test_events_need_the_credentials_here_too(tmp_path: Path, shown: list[str], status: int) -> None:
    settings = {"DROGUE_API_URL": "http://127.0.0.1:1", "FIRMWARE_REGISTRY": f"oci-layout:{tmp_path}"}
    function = make_function({**settings, "EVENTS_TOKEN": "voilà"})
    headers = [(b"authorization", value.encode()) for value in shown]
    assert answer(function, headers=[*HEADERS, *headers])[0]["status"] == status


def test_an_answer_is_a_status_with_headers_and_one_body(function: ASGIFunction) -> None:
    start, body = answer(function)
    assert (start["type"], start["status"]) == ("http.response.start", 204)
    assert (b"fleet-outcome", b"ignored") in start["headers"]
    assert (body["type"], body["body"], body.get("more_body", False)) == ("http.response.body", b"", False)


@pytest.mark.parametrize("query", [b"\xff\xfe", "käse".encode(), b"%ff", b"a=1&a=2"])
def test_nothing_is_made_of_a_query(function: ASGIFunction, query: bytes) -> None:
    assert answer(function, query_string=query)[0]["status"] == 204


def test_a_server_may_not_know_where_it_listens_nor_who_asks(function: ASGIFunction) -> None:
    assert answer(function, server=None, client=None)[0]["status"] == 204


def test_a_body_is_whole_where_a_message_says_so_only(function: ASGIFunction) -> None:
    status = {"type": "http.request", "body": b'{"version": "1"}', "more_body": True}
    assert answer(function, [status])[0]["status"] == 400
    assert answer(function, [status, {"type": "http.request"}])[0]["status"] == 204
    assert answer(function, [{"type": "http.disconnect"}])[0]["status"] == 400


def test_a_body_that_is_much_too_large_is_not_read_to_its_end(function: ASGIFunction) -> None:
    pieces = iter([{"type": "http.request", "body": bytes(1_000_000), "more_body": True}] * 100)
    assert answer(function, pieces)[0]["status"] == 413
    assert len(list(pieces)) > 70
