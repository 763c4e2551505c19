"""What `inspect` makes of what the real oras pushes, and oras of what `publish` attached."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.support.cosign import need_peer
from tests.support.function import ROOT
from tests.support.registry import DockerRegistry

_numbers = count(1)


@dataclass
class Place:
    """A repository that no other test uses, and a folder with files to push."""

    repository: str
    folder: Path

    def oras(self, command: str, *arguments: str) -> str:
        ended = self._run(["oras", command, "--plain-http", *arguments])
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    def fleet(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return self._run([sys.executable, "-m", "fleet_fn", *arguments])

    def inspect(self, tag: str) -> dict[str, str]:
        ended = self.fleet("inspect", f"{self.repository}:{tag}")
        assert ended.returncode == 0, ended.stderr
        return dict(line.split(maxsplit=1) for line in ended.stdout.splitlines() if not line.startswith(" "))

    def _run(self, command: Sequence[str]) -> "subprocess.CompletedProcess[str]":
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "PYTHONPATH": str(ROOT),
            "FIRMWARE_REGISTRY_INSECURE": "true",
        }
        return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=100)


@pytest.fixture(params=[False, True], ids=["fallback", "referrers API"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """In a registry without the referrers API, and in one with it."""
    need_peer("oras")
    if request.param:
        host: str = request.getfixturevalue("host_with_api")
    else:
        docker_registry: DockerRegistry = request.getfixturevalue("docker_registry")
        host = docker_registry.host
    (tmp_path / "firmware.bin").write_bytes(b"firmware" * 32)
    (tmp_path / "boot.bin").write_bytes(b"boot" * 32)
    (tmp_path / "sbom.json").write_text('{"bomFormat": "CycloneDX"}')
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "firmware.bin").write_bytes(b"firmware" * 32)
    return Place(f"{host}/oras/{next(_numbers)}", tmp_path)


def test_a_single_file_of_any_type_is_a_firmware(place: Place) -> None:
    version = ["--annotation", "org.opencontainers.image.version=2.0.0"]
    for tag, files in (
        ("plain", ["boot.bin"]),
        ("octets", ["boot.bin:application/octet-stream"]),
        ("espressif", ["boot.bin:application/vnd.espressif.esp32.firmware.v1+binary"]),
        ("several", ["firmware.bin:application/x-firmware", "boot.bin:application/x-bootloader"]),
    ):
        place.oras("push", f"{place.repository}:{tag}", *version, *files)
        told = place.inspect(tag)
        assert (told["shape"], told["version"], told["size"]) == (
            "artifact",
            "2.0.0",
            "256" if tag == "several" else "128",
        )


def test_a_folder_a_document_and_nothing_are_no_firmware(place: Place) -> None:
    for tag, arguments in (
        ("folder", ["parts"]),
        ("document", ["sbom.json:application/vnd.cyclonedx+json"]),
        ("nothing", ["--artifact-type", "application/x-firmware"]),
    ):
        place.oras("push", f"{place.repository}:{tag}", *arguments)
        ended = place.fleet("inspect", f"{place.repository}:{tag}")
        assert ended.returncode == 1
        assert ended.stderr.startswith("inspect: no firmware: ")


def test_oras_and_publish_keep_the_documents_of_each_other(place: Place) -> None:
    reference = f"{place.repository}:1"
    publish = ["publish", "firmware.bin", reference, "--version", "1"]
    assert place.fleet(*publish).returncode == 0
    sbom = "sbom.json:application/vnd.cyclonedx+json"
    place.oras("attach", reference, "--artifact-type", "application/vnd.example.first", sbom)
    assert place.fleet(*publish, "--sbom", "sbom.json").returncode == 0
    place.oras("attach", reference, "--artifact-type", "application/vnd.example.last", "boot.bin")
    types = ["application/vnd.cyclonedx+json", "application/vnd.example.first", "application/vnd.example.last"]
    found: Any = json.loads(place.oras("discover", "--format", "json", reference))
    assert sorted(entry["artifactType"] for entry in found["referrers"]) == types
    ended = place.fleet("inspect", reference)
    attached = [line.split() for line in ended.stdout.splitlines() if line.startswith("attached")]
    assert sorted((media_type, kind) for _, kind, _, media_type in attached) == list(
        zip(types, ("SBOM", "SBOM", "other"), strict=True)
    )


def test_oras_pulls_what_was_published(place: Place) -> None:
    reference = f"{place.repository}:1"
    assert place.fleet("publish", "boot.bin", reference, "--version", "1", "--sbom", "sbom.json").returncode == 0
    place.oras("pull", reference, "--output", "pulled")
    assert {path.name for path in (place.folder / "pulled").iterdir()} == {"firmware.bin"}
    assert (place.folder / "pulled" / "firmware.bin").read_bytes() == b"boot" * 32
