"""Each change by the console writes and tells what the command does that its page shows.

Two clouds have the same applications. A user changes one of them in the console, the other one with the command.
"""

import html
import json
import random
import re
import shlex
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlencode

import pytest
import requests
from click.testing import CliRunner

from fleet_fn.cli.main import main
from fleet_fn.sandbox.cloud import Sandbox
from tests.support.console import Browser, Form, browsing, environment_of
from tests.support.firmware import publish, random_bytes
from tests.support.shop import failed_device
from tests.support.sink import Sink, sinking

Object = dict[str, Any]
CASES = 80
LONG_AGO = "2024-05-01T10:00:00Z"
STAGES: list[list[Object]] = [
    [{"percent": 1, "approval": True}, {"percent": 100}],
    [{"percent": 10}, {"percent": 50, "after": "1h", "success": 90}, {"percent": 100, "over": "2h"}],
    [{"percent": 50, "success": 0.5}, {"percent": 100}],
]
SOURCES = [
    {"container": {"image": "pump:1.0.0"}},
    {"container": {"image": "pump:1.1.0"}},
    {"oci": {"image": "pump:latest", "platform": "linux/arm64"}},
    {"container": {"image": "pump", "version": "^1.0"}},
    {"container": {"image": "pump:gone"}},
    {"file": {"name": "pump"}},
    {},
    {"container": {"image": "pump:1.0.0"}, "file": {"name": "both"}},
]
VERSIONS = ["1.0.0", "1.1.0", "0.9.0", "-v$(id)'\n2"]
#: Written by either side at a time of its own.
NOW = re.compile(rf'"{datetime.now(UTC):%Y-}[^"]*Z"')


@dataclass
class Side:
    """A cloud, with a sink for what is told of it."""

    sandbox: Sandbox
    sink: Sink
    environment: dict[str, str]

    def create(self, objects: list[Object]) -> None:
        for each in objects:
            metadata = each["metadata"]
            application, path = metadata.get("application"), f"{self.sandbox.url}/api/registry/v1alpha1/apps"
            path += f"/{application}/devices" if application else ""
            answer = requests.post(path, json=each, auth=("sandbox", "sandbox"), timeout=10)
            answer.raise_for_status()
            if "status" in each:
                url = f"{path}/{quote(metadata['name'])}"
                found = requests.get(url, auth=("sandbox", "sandbox"), timeout=10).json()
                found["status"] = each["status"]
                requests.put(url, json=found, auth=("sandbox", "sandbox"), timeout=10).raise_for_status()

    def read(self, application: str) -> Any:
        """What is written about an application and its devices, whenever it was."""
        url = f"{self.sandbox.url}/api/registry/v1alpha1/apps/{application}"
        found = [requests.get(path, auth=("sandbox", "sandbox"), timeout=10).json() for path in (url, f"{url}/devices")]
        return timeless([{**each, "metadata": kept(each["metadata"])} for each in [found[0], *found[1]]])


def kept(metadata: Object) -> Object:
    return {key: metadata[key] for key in ("name", "labels") if metadata.get(key)}


def timeless(found: Any) -> Any:
    return json.loads(NOW.sub('"now"', json.dumps(found, sort_keys=True)))


@dataclass
class World:
    console: Side
    command: Side
    browser: Browser


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("layouts")
    for version in ("1.0.0", "1.1.0"):
        publish(folder, "pump", version, random_bytes(4096, version))
    with ExitStack() as stack:

        def open_side() -> Side:
            sandbox, sink = stack.enter_context(Sandbox()), stack.enter_context(sinking())
            registry = {"FIRMWARE_REGISTRY": f"oci-layout:{folder}", "K_SINK": sink.url()}
            return Side(sandbox, sink, environment_of(sandbox.url, **registry))

        console, command = open_side(), open_side()
        yield World(console, command, stack.enter_context(browsing(console.environment)))


class Chance:
    """Draws applications in any state, and what is to be done about them."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def some(self, share: float = 0.5) -> bool:
        return self.random.random() < share

    def application(self, name: str) -> list[Object]:
        firmware = dict(self.random.choice(SOURCES[:3] if self.some(0.7) else SOURCES))
        if policy := self.policy():
            firmware["rollout"] = policy
        found: Object = {"metadata": {"name": name}, "spec": {"firmware": firmware}}
        if self.some(0.8):
            found["status"] = {"firmware": {"rollout": self.status()}}
        devices: list[Object] = [failed_device("broken 1"), failed_device("-broken'2"), {"metadata": {"name": "new"}}]
        devices[1]["spec"] = {"firmware": {"container": {"image": "pump:1.0.0"}}}
        for device in devices:
            device["metadata"]["application"] = name
        return [found, *devices]

    def policy(self) -> Object:
        found: Object = {}
        if self.some(0.6):
            found["stages"] = self.random.choice(STAGES)
        elif self.some(0.3):
            found["percent"] = self.random.choice([0, 12.5, 100])
        if self.some(0.25):
            found["paused"] = True
        if self.some(0.6):
            found["maxFailed"] = self.random.choice([1, 3])
        if self.some(0.2):
            found["labels"] = self.random.choice([{"site": "oslo"}, {"fleet-rollout": "1.0.0", "site": "oslo"}])
        return found

    def status(self) -> Object:
        found: Object = {"version": self.random.choice(VERSIONS[:2]), "stage": self.random.choice([0, 0, 1, 2])}
        found["since"] = LONG_AGO
        if self.some(0.3):
            found["approved"] = True
        if self.some(0.1):
            found["complete"] = True
        if self.some(0.4):
            found["failed"] = {self.random.choice(VERSIONS): {"count": 2, "devices": ["broken 1"]}}
        if self.some(0.2):
            found["aborted"] = [self.random.choice(VERSIONS)]
        if self.some(0.6):
            image = self.random.choice(["pump:1.0.0", "pump:1.1.0"])
            found["previous"] = {"container": {"image": image}} | ({"version": image[5:]} if self.some(0.7) else {})
        return found

    def action(self) -> tuple[str, list[tuple[str, str]]]:
        action = self.random.choice(["pause", "resume", "approve", "abort", "advance", "start", "start", "retry"])
        query: list[tuple[str, str]] = []
        if action == "start":
            query = self.start()
        elif action == "resume" and self.some(0.4):
            query = [("version", self.random.choice(VERSIONS))]
        elif action == "retry" and self.some(0.6):
            query = [("device", self.random.choice(["broken 1", "-broken'2", "new"]))]
        return action, query

    def start(self) -> list[tuple[str, str]]:
        query = [("image", self.random.choice(["pump:1.0.0", "pump:1.1.0", "pump:latest", "pump"]))]
        mode = self.random.choice(["keep", "all", "percent", "stages"])
        query.append(("mode", mode))
        if mode == "percent":
            query.append(("percent", self.random.choice(["0", "33.3", " 50 ", "1e1", "100"])))
        if mode == "stages":
            for index, stage in enumerate(self.random.choice(STAGES)):
                fields = {key: "yes" if value is True else f"{value}" for key, value in stage.items()}
                query += [(f"stage.{index}.{key}", value) for key, value in fields.items()]
        if self.some(0.3):
            query.append(("max_failed", self.random.choice(["1", "007", "1000"])))
        if self.some(0.3):
            query.append(("state", self.random.choice(["failed", "unknown"])))
        if self.some(0.15):
            query.append(("from_version", self.random.choice(["0.9.0", VERSIONS[3]])))
        if self.some(0.5):
            query.append(("replace_source", "1"))
        return query


def change_by_console(world: World, name: str, action: str, query: list[tuple[str, str]]) -> list[str] | None:
    """Confirm a change; return the command that its page shows, None if it cannot be made."""
    path = f"/applications/{name}/rollout/{action}" + (f"?{urlencode(query)}" if query else "")
    response = world.browser.get(path)
    while "data-waiting" in response.text:
        response = world.browser.get(path)
    form = Form(response.text).fields
    if "shown" not in form:
        return None
    shown = re.search(r"On the command line:</span> <code>(.*?)</code>", response.text, re.DOTALL)
    assert shown
    made = world.browser.post(path, form)
    assert made.status_code == 303, made.text
    job = world.browser.parts.jobs.last(name)
    while job and job.ended is None:
        world.browser.get(f"/applications/{name}")
    return shlex.split(html.unescape(shown[1]))


def command_of(name: str, action: str, query: list[tuple[str, str]]) -> list[str]:
    """The command for a change whose page shows none."""
    if action == "retry" and not query:
        query = [("failed", "")]
    known = ("image", "version", "device", "state", "max_failed", "from_version", "replace_source", "failed")
    flags = [
        f"--{key.replace('_', '-')}" + ("" if key in known[-2:] else f"={value}")
        for key, value in query
        if key in known
    ]
    return ["fleet-fn", "rollout", action, f"--application={name}", *flags]


def events_of(side: Side, count: int) -> dict[str, Any]:
    received = side.sink.received(count)
    assert len(received) == count
    return {each.data["application"]: timeless(each.data) for each in received}


def test_each_change_is_that_of_the_command(world: World) -> None:
    made = 0
    for seed in range(CASES):
        chance, name = Chance(seed), f"app{seed}"
        objects, (action, query) = chance.application(name), chance.action()
        case = json.dumps([seed, action, query, objects[0]])
        for side in (world.console, world.command):
            side.create(objects)
        before = world.console.read(name)
        assert world.command.read(name) == before
        command = change_by_console(world, name, action, query)
        result = CliRunner().invoke(
            main, (command or command_of(name, action, query))[1:], env=world.command.environment
        )
        after = world.console.read(name)
        assert after == world.command.read(name), (case, command, result.output)
        assert (command is not None) == (after != before), (case, result.output)
        made += command is not None
    assert made > CASES / 4
    assert events_of(world.console, made) == events_of(world.command, made)
