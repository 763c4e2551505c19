"""The boundary of events: whatever goes wrong behind it has a status that no deliverer retries for ever."""

import io
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from fleet_fn.app import create_app
from fleet_fn.settings import Settings
from fleet_fn.update.handler import UpdateHandler
from fleet_fn.update.outcome import Outcome
from fleet_fn.web.arrival import MAX_BODY_BYTES
from fleet_fn.web.body_timeout import BodyTimeout
from fleet_fn.web.routes import make_app
from fleet_fn.web.wsgi import Application

EVENT = {"HTTP_CE_SPECVERSION": "1.0", "HTTP_CE_ID": "1", "HTTP_CE_SOURCE": "x", "HTTP_CE_TYPE": "other"}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(drogue_api_url="http://127.0.0.1:1", firmware_registry=f"oci-layout:{tmp_path}")


@pytest.fixture
def sender() -> Iterator[socket.socket]:
    """The server's end of a connection."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours


def post(app: Application, body: bytes, path: str = "/", **variables: Any) -> tuple[int, str | None]:
    """The status and the outcome of an event."""
    environ: dict[str, Any] = {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": path,
        "SERVER_NAME": "x",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(body),
        "wsgi.input_terminated": True,
    }
    status, headers, _ = app.answer(environ | EVENT | variables)
    return status, dict(headers).get("Fleet-Outcome")


@pytest.mark.parametrize(
    ("path", "size", "answer"),
    [("/", MAX_BODY_BYTES + 1, (413, "invalid")), ("/elsewhere", 1, (400, "invalid"))],
)
def test_body_is_refused_without_a_thread(
    settings: Settings,
    sender: socket.socket,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    size: int,
    answer: tuple[int, str],
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    app = create_app(settings)
    monkeypatch.setattr("fleet_fn.web.body._timeout", BodyTimeout())
    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert post(app, bytes(size), path, **{"gunicorn.socket": sender}) == answer


def test_error_while_a_body_is_discarded_fails_the_event(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise MemoryError

    app = create_app(settings)
    monkeypatch.setattr("fleet_fn.web.routes.discard_body", fail)
    assert post(app, bytes(MAX_BODY_BYTES + 1)) == (422, 'failed; reason="internal error"')


def test_outcome_without_a_status_fails_the_event(settings: Settings) -> None:
    class Updater:
        def answer(self, *_: object) -> Outcome:
            return Outcome(cast("Any", "unheard-of"))

    updater = cast("UpdateHandler", Updater())
    assert post(make_app(settings, updater, updater), b"{}") == (422, 'failed; reason="internal error"')
