"""A real function behind the sandbox: each deliverer's events reach it, and its commands the right devices."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import requests

from fleet_fn.sandbox import Sandbox
from tests.support.function import Function

PATIENCE = 30.0
CREDENTIALS = {"EVENTS_USER": "fleet", "EVENTS_PASSWORD": "p:w%ä"}
SINK_CREDENTIALS: dict[str, Any] = {"sink_user": "fleet", "sink_password": "p:w%ä"}
#: Beside each name those that a deliverer's mangling could make of it.
NAMES = ["tür", "t?r", "装置", "??", " lead", "lead", "a%20b", "a b", "ä%b c/d", "😀", 'q"u\\o', "100%", "ev@example"]


def device(name: str, **spec: Any) -> dict[str, Any]:
    credentials = {"credentials": [{"pass": "secret"}]}
    return {"metadata": {"application": "my-app-2", "name": name}, "spec": {"authentication": credentials, **spec}}


@contextmanager
def cloud(
    deliver_as: str, folder: Path, *objects: dict[str, Any], user: str = "sandbox", **options: Any
) -> Iterator[tuple[Sandbox, list[str]]]:
    """A sandbox with a function as its sink, and what it logs."""
    lines: list[str] = []
    application = {"metadata": {"name": "my-app-2"}}
    takes_basic = deliver_as != "knative"
    with Sandbox(
        [application, *objects],
        deliver_as=deliver_as,
        log=lines.append,
        **(SINK_CREDENTIALS if takes_basic else {}),
        **options,
    ) as sandbox:
        settings = {
            "DROGUE_API_URL": sandbox.url,
            "DROGUE_USER": user,
            "DROGUE_TOKEN": "sandbox",
            "FIRMWARE_REGISTRY": f"oci-layout:{folder}",
            **(CREDENTIALS if takes_basic else {}),
        }
        with Function(settings) as function:
            sandbox.sink = f"{function.url}/"
            yield sandbox, lines
            sandbox.sink = None


def ask(sandbox: Sandbox, name: str, version: str, query: str = "?ct=20") -> Any:
    """Send a device's status, and return the command that it gets, or None."""
    answer = requests.post(
        f"{sandbox.url}/v1/dfu{query}",
        json={"version": version},
        auth=(f"{quote(name, safe='')}@my-app-2", "secret"),
        timeout=PATIENCE,
    )
    return answer.json() if answer.status_code == 200 else None


@pytest.mark.parametrize("deliver_as", ["event-source", "knative", "encoded"])
def test_each_device_gets_its_own_command_through_each_deliverer(deliver_as: str, tmp_path: Path) -> None:
    versions = {name: f"1.0.{number}" for number, name in enumerate(NAMES)}
    with (
        cloud(deliver_as, tmp_path, *map(device, NAMES)) as (sandbox, lines),
        ThreadPoolExecutor(len(NAMES)) as pool,
    ):
        commands = list(pool.map(lambda name: ask(sandbox, name, versions[name]), NAMES))
    for name, command in zip(NAMES, commands, strict=True):
        assert command is not None, (name, lines)
        assert command == {"op": "SYNC", "version": versions[name], "poll": 300}, (name, command)


def test_what_the_cloud_never_passes_on_is_no_command_for_a_device(tmp_path: Path) -> None:
    with cloud("event-source", tmp_path, device("closed", core={}), device("open")) as (sandbox, lines):
        assert ask(sandbox, "closed", "1", "?ct=2") is None
        assert ask(sandbox, "open", "1") is not None
    assert any("my-app-2/closed dfu: 422" in line for line in lines), lines


def test_a_reader_reads_and_commands(tmp_path: Path) -> None:
    with cloud("event-source", tmp_path, device("till"), user="eve", members={"eve": "reader"}) as (sandbox, lines):
        assert ask(sandbox, "till", "1") is not None, lines


def test_a_stranger_does_not(tmp_path: Path) -> None:
    with cloud("event-source", tmp_path, device("till"), user="eve", members={"eve": "none"}) as (sandbox, lines):
        assert ask(sandbox, "till", "1", "?ct=2") is None
    assert any("my-app-2/till dfu: 422" in line for line in lines), lines
