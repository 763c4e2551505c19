"""A console over a sandbox's Drogue Cloud, asked as a browser would ask it."""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from typing import Any

from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from fleet_fn.console.app import make_console
from fleet_fn.console.parts import Parts, open_parts
from fleet_fn.console.settings import ConsoleSettings

PATIENCE = 30.0


class Form(HTMLParser):
    """The fields of the form that a page has for confirming."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.fields: dict[str, str] = {}
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "input" and found.get("type") == "hidden":
            self.fields[found["name"] or ""] = found["value"] or ""


class Browser:
    """Asks a console for pages, and sends its forms."""

    def __init__(self, client: FlaskClient, parts: Parts) -> None:
        self.client = client
        self.parts = parts

    def get(self, path: str, **headers: str) -> TestResponse:
        return self.client.get(path, headers=headers, base_url="http://127.0.0.1:8090", buffered=True)

    def post(self, path: str, fields: dict[str, str], **headers: str) -> TestResponse:
        return self.client.post(path, data=fields, headers=headers, base_url="http://127.0.0.1:8090")

    def wait(self, path: str, condition: Callable[[str], bool] = lambda html: "data-reading" not in html) -> str:
        """Ask for a page until it is as it should be."""
        end = time.monotonic() + PATIENCE
        while True:
            response = self.get(path)
            assert response.status_code == 200, response.text
            if condition(response.text):
                return response.text
            assert time.monotonic() < end, response.text
            time.sleep(0.02)

    def confirm(self, path: str, **changed: str) -> TestResponse:
        """Look at the page of a change, and confirm it."""
        form = Form(self.wait(path)).fields
        assert "csrf_token" in form, path
        return self.post(path, form | changed)


@contextmanager
def browsing(environment: dict[str, str]) -> Iterator[Browser]:
    """Yield a browser of a console with an operator's environment."""
    settings = ConsoleSettings.from_environment(environment)
    with tempfile.TemporaryDirectory() as folder, open_parts(settings, folder) as parts:
        app = make_console(settings, parts)
        app.testing = True
        yield Browser(app.test_client(), parts)


def environment_of(url: str, **variables: Any) -> dict[str, str]:
    """Return the environment of an operator of a sandbox."""
    return {"DROGUE_API_URL": url, "DROGUE_USER": "sandbox", "DROGUE_TOKEN": "sandbox", **variables}
