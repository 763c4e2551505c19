"""Sandbox and function as processes of their own, and the registry API through which targets move."""

import base64
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import click
import requests

from tests.support.drogue import TOKEN, USER
from tests.support.function import ROOT

_APPS: Final = "/api/registry/v1alpha1/apps"
PASSWORD: Final = "password"
_PATIENCE: Final = 30
_TRIES: Final = 20
#: A device is told to poll at once, so that nothing has to wait for a clock.
_SETTINGS: Final = {"WEB_CONCURRENCY": "2", "THREADS": "4", "POLL_SECONDS": "1", "WAIT_SECONDS": "1"}
_INHERITED: Final = ("PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "LD_LIBRARY_PATH")


class Cloud:
    """The sandbox's APIs."""

    def __init__(self, url: str) -> None:
        """A client of the sandbox at `url`."""
        self.url = url

    @property
    def address(self) -> str:
        """Host and port."""
        return urlsplit(self.url).netloc

    def create(self, application: str, device: str, firmware: Mapping[str, Any]) -> None:
        """Create an application with one device, whose `spec.firmware` is `firmware`."""
        self._request("POST", _APPS, {"metadata": {"name": application}, "spec": {}})
        self._request(
            "POST",
            f"{_APPS}/{application}/devices",
            {
                "metadata": {"application": application, "name": device},
                "spec": {"authentication": {"credentials": [{"pass": PASSWORD}]}, "firmware": firmware},
            },
        )

    def device(self, application: str, device: str) -> Any:
        """A device's object."""
        return self._request("GET", f"{_APPS}/{application}/devices/{device}").json()

    def desire(self, application: str, device: str, firmware: Mapping[str, Any]) -> None:
        """Change a device's `spec.firmware`."""

        def change(found: Any) -> None:
            found["spec"]["firmware"] = firmware

        self._change(application, device, change)

    def wipe(self, application: str, device: str) -> None:
        """Replace a device's object by one without status."""
        self._change(application, device, lambda found: found.pop("status", None))

    def _change(self, application: str, device: str, change: Callable[[Any], object]) -> None:
        path = f"{_APPS}/{application}/devices/{device}"
        for _ in range(_TRIES):
            found = self.device(application, device)
            change(found)
            if self._request("PUT", path, found, may_conflict=True).status_code != 409:
                return
        raise RuntimeError(f"{path}: others keep changing it")

    def reason(self, application: str, device: str) -> str:
        """Why the function says that a device is not in sync; empty where it says nothing."""
        status = self.device(application, device).get("status") or {}
        conditions = (status.get("firmware") or {}).get("conditions") or []
        return next((found.get("reason", "") for found in conditions if found["type"] == "InSync"), "")

    @staticmethod
    def authorization(application: str, device: str) -> str:
        """The header's value with which a device speaks."""
        return "Basic " + base64.b64encode(f"{device}@{application}:{PASSWORD}".encode()).decode()

    def _request(self, method: str, path: str, body: Any = None, *, may_conflict: bool = False) -> requests.Response:
        answer = requests.request(method, self.url + path, json=body, auth=(USER, TOKEN), timeout=_PATIENCE)
        if not (may_conflict and answer.status_code == 409):
            answer.raise_for_status()
        return answer


@contextmanager
def sandbox(folder: Path, sink: str) -> Iterator[Cloud]:
    """A sandbox that delivers events to `sink`, and logs into `folder`."""
    objects = folder / "objects.json"
    objects.write_text(json.dumps([{"metadata": {"name": "first"}}]))
    command = [sys.executable, "-m", "fleet_fn", "sandbox", "--port", "0", "--objects", str(objects), "--sink", sink]
    command += ["--user", USER, "--token", TOKEN]
    with _process(command, _inherited(), folder / "sandbox.log"):
        yield Cloud(_url(folder / "sandbox.log"))


def settings_of_function(cloud: Cloud, folder: Path, **more: str) -> dict[str, str]:
    """The settings of a function that answers a sandbox's devices, and serves what is in `folder`/images."""
    return {
        "DROGUE_API_URL": cloud.url,
        "DROGUE_USER": USER,
        "DROGUE_TOKEN": TOKEN,
        "FIRMWARE_REGISTRY": f"oci-layout:{folder / 'images'}",
        "FIRMWARE_CACHE_DIR": str(folder / "cache"),
        **_SETTINGS,
        **more,
    }


@contextmanager
def running(folder: Path, **more: str) -> Iterator[Cloud]:
    """A sandbox and a function; both log into `folder`.

    Args:
        folder: where they keep what they have. The function serves what is in `images`.
        more: further settings of the function.

    """
    (folder / "images").mkdir()
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        function = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        serve: tuple[str, ...] = (sys.executable, "-m", "gunicorn", "--config", "python:fleet_fn.web.server")
        serve += ("--bind", f"fd://{listener.fileno()}", "fleet_fn.app:create_app()")
        with sandbox(folder, function) as cloud:
            settings = {"LOG_FORMAT": "text", **settings_of_function(cloud, folder, **more)}
            log = folder / "function.log"
            with _process(serve, {**_inherited(), **settings}, log, listener.fileno()) as process:
                _await(f"{function}readyz", process, log)
                yield cloud


def _inherited() -> dict[str, str]:
    return {name: os.environ[name] for name in _INHERITED if name in os.environ}


@contextmanager
def _process(
    command: list[str] | tuple[str, ...], environment: Mapping[str, str], log: Path, *descriptors: int
) -> Iterator["subprocess.Popen[bytes]"]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, pass_fds=descriptors, stdout=output, stderr=output
        )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(_PATIENCE)
            finally:
                process.kill()
                process.wait()


def _await(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Wait until a function answers.

    Raises:
        click.ClickException: it has ended, or takes too long.

    """
    limit = time.monotonic() + _PATIENCE
    while process.poll() is None and time.monotonic() < limit:
        # The socket takes connections before anybody answers.
        with suppress(requests.RequestException):
            requests.get(url, timeout=1).raise_for_status()
            return
    raise click.ClickException(f"the function did not start:\n{log.read_text()[-2000:]}")


def _url(log: Path) -> str:
    """The URL that a sandbox tells in its first line."""
    with log.open() as lines:
        limit = time.monotonic() + _PATIENCE
        text = ""
        while time.monotonic() < limit:
            text += lines.read()
            if found := re.search(r"sandbox at (http://[^,\s]+)", text):
                return found[1]
            time.sleep(0.05)
    raise click.ClickException(f"the sandbox did not start:\n{text}")
