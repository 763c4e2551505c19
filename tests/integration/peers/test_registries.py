"""Whole updates from real registries, with firmware that cosign signed, oras pushed or skopeo copied."""

import os
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest

from tests.peers.cloud import running
from tests.peers.simulated import device
from tests.support.cosign import PEER_REGISTRY, Cosign, Keys, need_peer
from tests.support.firmware import random_bytes
from tests.support.function import ROOT
from tests.support.registry import DockerRegistry, need

SIZE = 20_000
_numbers = count(1)


@pytest.fixture(params=["docker-registry", PEER_REGISTRY])
def host(request: pytest.FixtureRequest) -> str:
    """A registry without the referrers API, and one with it, by a name that cosign takes for one without TLS."""
    if request.param == PEER_REGISTRY:
        need_peer(PEER_REGISTRY)
        host: str = request.getfixturevalue("host_with_api")
        return host
    registry: DockerRegistry = request.getfixturevalue("docker_registry")
    return registry.host.replace("127.0.0.1", "localhost")


class Workshop:
    """Where a firmware is made and pushed."""

    def __init__(self, host: str, folder: Path) -> None:
        self.name = f"peers/sensor-{next(_numbers)}"
        self.reference = f"{host}/{self.name}"
        self._host = host
        self._folder = folder
        self.file = folder / "sensor.bin"
        self.file.write_bytes(random_bytes(SIZE, self.name))

    def publish(self, version: str) -> str:
        """Publish the firmware; return its digest."""
        where = f"{self.reference}:{version}"
        publish = (sys.executable, "-m", "fleet_fn", "publish", str(self.file), where)
        said = self.run(*publish, "--version", version)
        return next(line.split()[1] for line in said.splitlines() if line.startswith("digest"))

    def run(self, *command: str) -> str:
        """Run a program in the folder; return its output."""
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self._folder),
            "PYTHONPATH": str(ROOT),
            "FIRMWARE_REGISTRY_INSECURE": "true",
        }
        ended = subprocess.run(
            command, cwd=self._folder, env=environment, capture_output=True, text=True, timeout=100, check=False
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    def update(self, version: str, **settings: str) -> tuple[str, str]:
        """Have a device report until it is told to stay; return what it runs, and why it is not in sync."""
        registry = {"FIRMWARE_REGISTRY": f"{self._host}/", "FIRMWARE_REGISTRY_INSECURE": "true"}
        with running(self._folder, **registry, **settings) as cloud:
            cloud.create("example", "sensor", {"container": {"image": f"{self.name}:{version}"}})
            with device(cloud, "example", "sensor", self._folder, "--once") as simulated:
                simulated.end()
            return cloud.device("example", "sensor")["status"]["firmware"]["current"], cloud.reason("example", "sensor")


@pytest.fixture
def workshop(host: str, tmp_path: Path) -> Workshop:
    return Workshop(host, tmp_path)


def test_a_published_firmware_arrives(workshop: Workshop) -> None:
    workshop.publish("1.0.0")
    assert workshop.update("1.0.0") == ("1.0.0", "")


def test_what_cosign_signed_arrives(workshop: Workshop, tmp_path: Path) -> None:
    need_peer("cosign")
    keys = Keys(tmp_path)
    digest = workshop.publish("1.0.0")
    Cosign(keys).sign(f"{workshop.reference}@{digest}", "p256")
    assert workshop.update("1.0.0", FIRMWARE_VERIFY_KEYS=str(keys.public("p256"))) == ("1.0.0", "")


def test_what_oras_pushed_arrives(workshop: Workshop) -> None:
    need_peer("oras")
    annotation = "org.opencontainers.image.version=2.0.0"
    workshop.run(
        "oras", "push", "--plain-http", "--annotation", annotation, f"{workshop.reference}:2.0.0", "sensor.bin"
    )
    assert workshop.update("2.0.0") == ("2.0.0", "")


def test_what_skopeo_copied_arrives(workshop: Workshop, docker_registry: DockerRegistry) -> None:
    need("skopeo")
    workshop.publish("3.0.0")
    to = f"{docker_registry.host}/{workshop.name}"
    plain = ("--src-tls-verify=false", "--dest-tls-verify=false")
    workshop.run("skopeo", "copy", *plain, f"docker://{workshop.reference}:3.0.0", f"docker://{to}-copy:3.0.0")
    workshop.name += "-copy"
    workshop._host = docker_registry.host
    assert workshop.update("3.0.0") == ("3.0.0", "")
