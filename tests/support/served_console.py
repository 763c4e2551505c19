"""The console in its real gunicorn, and users who sign in without a browser."""

import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import parse_qs, urljoin, urlsplit

import requests

from fleet_fn.openid.provider import Provider
from fleet_fn.sandbox import Sandbox
from fleet_fn.sandbox.openid import OpenIdUsers
from tests.support.forks import ROOT, Forked
from tests.support.openid import OpenIdProvider

_SECONDS = 20.0
_OBJECTS: list[dict[str, Any]] = [
    {"metadata": {"name": "example"}, "spec": {"firmware": {"container": {"image": "example:latest"}}}},
    {"metadata": {"application": "example", "name": "device1"}},
]


@dataclass
class Console:
    """A console that runs."""

    url: str
    process: Forked
    _output: IO[str]

    @property
    def output(self) -> str:
        """All that it has printed."""
        return Path(self._output.name).read_text()


@contextmanager
def console(settings: Callable[[str], Mapping[str, str]], folder: Path, *, pace: float = 1.0) -> Iterator[Console]:
    """Run a console with the settings for its URL.

    `folder` keeps what it prints. Its clock runs `pace` times as fast: its readings of Drogue Cloud follow each other
    sooner.
    """
    with socket.socket() as listener, (folder / "console.log").open("w") as output:
        listener.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        process = Forked(
            ["tests.support.console_server", str(listener.fileno()), str(pace)],
            {"PATH": "/usr/bin:/bin", **settings(url)},
            ROOT,
            (0, output.fileno(), output.fileno()),
            [listener.fileno()],
        )
        running = Console(url, process, output)
        try:
            _wait_until_healthy(running)
            yield running
        finally:
            process.terminate()
            try:
                process.wait(_SECONDS)
            finally:
                process.kill()
        assert process.returncode == 0, running.output
        assert "Traceback" not in running.output, running.output


@contextmanager
def signing_in(provider: OpenIdProvider, folder: Path, **settings: str) -> Iterator[Console]:
    """Run a console over a sandbox, with users of the provider: owner, manager, reader, and a stranger."""
    users = OpenIdUsers(Provider(provider.issuer, ca_file=settings.get("DROGUE_CA_FILE")), provider.client.client_id)
    members = {"reader": "reader", "manager": "manager", "stranger": "none"}
    with Sandbox(_OBJECTS, user="owner", members=members, openid=users) as sandbox:

        def settings_for(url: str) -> dict[str, str]:
            provider.register(url)
            return {**provider.environment(url), "DROGUE_API_URL": sandbox.url, **settings}

        with console(settings_for, folder) as running:
            yield running


def _wait_until_healthy(running: Console) -> None:
    deadline = time.monotonic() + _SECONDS
    while time.monotonic() < deadline and running.process.poll() is None:
        try:
            if requests.get(f"{running.url}/healthz", timeout=_SECONDS).status_code == 200:
                return
        except requests.ConnectionError:
            time.sleep(0.02)  # between two looks; the deadline ends it
    raise AssertionError(f"the console does not start: {running.output}")


class Browser:
    """A user's browser, without a screen: cookies, redirects, and the provider's form."""

    def __init__(self, running: Console) -> None:
        self.console = running
        self.session = requests.Session()
        self.session.trust_env = False

    def get(self, path: str, *, follow: bool = True, fragment: bool = False) -> requests.Response:
        headers = {"Fragment": "1"} if fragment else {}
        url = urljoin(self.console.url, path)
        return self.session.get(url, headers=headers, allow_redirects=follow, timeout=30)

    def sign_in(self, name: str, path: str = "/") -> requests.Response:
        """Ask for a path, sign in at the provider, and return the page that the user sees then."""
        form = self.get(path)
        assert "name=username" in form.text, form.text
        return self.session.post(form.url, data={"username": name}, timeout=30)

    def begin(self, path: str = "/") -> dict[str, str]:
        """Begin to sign in; return the parameters with which the provider is asked."""
        there = self.get(f"/sign-in?next={path}", follow=False)
        assert there.status_code == 303, there.text
        return {name: value for name, (value,) in parse_qs(urlsplit(there.headers["Location"]).query).items()}

    def authorize(self, name: str, path: str = "/") -> str:
        """Begin to sign in, and return the URL to which the provider sends the browser back."""
        there = self.get(f"/sign-in?next={path}", follow=False).headers["Location"]
        back = self.session.post(there, data={"username": name}, allow_redirects=False, timeout=30)
        assert back.status_code == 302, back.text
        return back.headers["Location"]

    def sign_out(self, *, follow: bool = True, token: str | None = None) -> requests.Response:
        token = self.csrf_token() if token is None else token
        url = f"{self.console.url}/sign-out"
        return self.session.post(url, data={"csrf_token": token}, allow_redirects=follow, timeout=30)

    def csrf_token(self) -> str:
        found = re.search(r'name="csrf_token" value="([^"]+)"', self.get("/").text)
        assert found
        return found[1]
