"""The real hawkBit, which `make peers` builds, as an operator uses it."""

import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import requests

from tests.support.cosign import need_peer

TENANT: Final = "DEFAULT"
TOKEN: Final = "gateway-s3cr3t & more"
_USER: Final = ("admin", "admin")
_START_SECONDS: Final = 480.0
_ENDS: Final = ("finished", "error", "canceled")
_CONFIRMATION: Final = "user.confirmation.flow.enabled"


class Hawkbit:
    """A hawkBit that runs."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.auth = _USER

    @property
    def environment(self) -> dict[str, str]:
        """The settings of a function that asks it."""
        return {"HAWKBIT_URL": self.url, "HAWKBIT_TENANT": TENANT, "HAWKBIT_GATEWAY_TOKEN": TOKEN}

    @property
    def has_confirmation(self) -> bool:
        """Whether assignments can wait for an operator's word, as they can in versions newer than 0.3.0M7."""
        return _CONFIRMATION in self._ask("GET", "/system/configs").json()

    def is_up(self) -> bool:
        try:
            answer = self._session.get(f"{self.url}/rest/v1/system/configs", timeout=10)
        except (requests.ConnectionError, requests.Timeout):
            return False
        assert answer.ok, answer
        return True

    def open_gateway(self) -> None:
        """Let gateways in, by their token."""
        self._configure("authentication.gatewaytoken.enabled", True)
        self._configure("authentication.gatewaytoken.key", TOKEN)

    def ask_for_confirmation(self, asks: bool) -> None:
        """Have assignments wait, from now on, or no longer."""
        self._configure(_CONFIRMATION, asks)

    def release(self, version: str, content: bytes) -> int:
        """Upload a firmware; return its distribution set."""
        module = {"vendor": "acme", "name": "sensor", "type": "os", "version": version}
        (made,) = self._ask("POST", "/softwaremodules", json=[module]).json()
        self._ask("POST", f"/softwaremodules/{made['id']}/artifacts", files={"file": ("firmware.bin", content)})
        distribution = {"name": "sensor", "version": version, "type": "os", "modules": [{"id": made["id"]}]}
        (released,) = self._ask("POST", "/distributionsets", json=[distribution]).json()
        number: int = released["id"]
        return number

    def assign(self, distribution: int, target: str, **options: Any) -> "Action":
        """Assign a distribution set to a target, which need not be known yet."""
        self._session.post(f"{self.url}/rest/v1/targets", json=[{"controllerId": target, "name": target}], timeout=30)
        path = f"/distributionsets/{distribution}/assignedTargets"
        made = self._ask("POST", path, json=[{"id": target, "type": "forced", **options}]).json()
        return Action(self, target, made["assignedActions"][0]["id"])

    def target(self, name: str) -> Mapping[str, Any]:
        """A target, as hawkBit tells of it."""
        found: Mapping[str, Any] = self._ask("GET", f"/targets/{name}").json()
        return found

    def attributes(self, name: str) -> Mapping[str, str]:
        """What the function told of a target."""
        found: Mapping[str, str] = self._ask("GET", f"/targets/{name}/attributes").json()
        return found

    def _configure(self, key: str, value: object) -> None:
        self._ask("PUT", f"/system/configs/{key}", json={"value": value})

    def _ask(self, method: str, path: str, **arguments: Any) -> requests.Response:
        answer = self._session.request(method, f"{self.url}/rest/v1{path}", timeout=60, **arguments)
        assert answer.ok, answer.text
        return answer


class Action:
    """An assignment under way, or what became of it."""

    def __init__(self, hawkbit: Hawkbit, target: str, number: int) -> None:
        self._hawkbit = hawkbit
        self._path = f"/targets/{target}/actions/{number}"

    @property
    def told(self) -> list[str]:
        """The statuses that it has had, from first to last."""
        return [each["type"] for each in self._statuses]

    @property
    def messages(self) -> str:
        """What was said with its statuses."""
        return "\n".join(message for each in self._statuses for message in each["messages"] if message)

    @property
    def ended(self) -> str:
        """`finished`, `error` or `canceled`; empty while it is open.

        What hawkBit calls the status of an action is the last thing that happened to it, even after its end.
        """
        return next((each for each in self.told if each in _ENDS), "")

    def cancel(self) -> None:
        """Ask the device to stop."""
        self._hawkbit._ask("DELETE", self._path)

    def confirm(self) -> None:
        """Let the device begin, as an operator does."""
        self._hawkbit._ask("PUT", f"{self._path}/confirmation", json={"confirmation": "confirmed"})

    @property
    def _statuses(self) -> list[Mapping[str, Any]]:
        query = {"limit": 100, "sort": "id:ASC"}
        found: list[Mapping[str, Any]]
        found = self._hawkbit._ask("GET", f"{self._path}/status", params=query).json()["content"]
        return found


@contextmanager
def running_hawkbit(folder: Path) -> Iterator[Hawkbit]:
    """Run hawkBit, in memory but for artifacts; `folder` has these, and its log."""
    need_peer("hawkbit")
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
    log = folder / "hawkbit.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            ["hawkbit", f"--server.port={port}", "--server.address=127.0.0.1"],
            cwd=folder,
            env=dict(os.environ),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        hawkbit = Hawkbit(f"http://127.0.0.1:{port}")
        deadline = time.monotonic() + _START_SECONDS
        while not hawkbit.is_up():
            assert process.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < deadline, log.read_text()[-4000:]
            time.sleep(0.2)  # between two looks; the deadline ends it
        hawkbit.open_gateway()
        yield hawkbit
    finally:
        process.terminate()
        try:
            process.wait(30)
        finally:
            process.kill()
            process.wait()
