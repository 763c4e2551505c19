"""What the real cosign makes of our signatures, and `inspect` of its: in registries of both kinds."""

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest

from tests.support.cosign import KINDS, Cosign, Keys, need_peer
from tests.support.function import ROOT
from tests.support.registry import DockerRegistry

BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_numbers = count(1)


@dataclass
class Place:
    """A repository that no other test uses, with a firmware in it once that is published."""

    host: str
    folder: Path
    name: str
    #: The registry has the referrers API.
    has_api: bool
    digest: str = ""

    @property
    def by_digest(self) -> str:
        return f"{self.host}/{self.name}@{self.digest}"

    def publish(self, *options: str) -> None:
        """Publishes the same bytes each time."""
        file = self.folder / "build.bin"
        file.write_bytes(self.name.encode() * 32)
        ended = self._run("publish", str(file), f"{self.host}/{self.name}:1", "--version", "1", *options)
        assert (ended.returncode, ended.stderr) == (0, "")
        self.digest = next(line.split()[1] for line in ended.stdout.splitlines() if line.startswith("digest"))

    def inspect(self, *options: str) -> "Inspected":
        ended = self._run("inspect", f"{self.host}/{self.name}:1", *options)
        lines = ended.stdout.splitlines()
        return Inspected(
            ended.returncode,
            ended.stderr,
            sorted(line.split(maxsplit=1)[1] for line in lines if line.startswith("signature")),
            sorted(line.split()[1] for line in lines if line.startswith("attached")),
        )

    def has_tag(self, suffix: str = "") -> bool:
        """Whether there is a tag for the firmware's attachments."""
        tag = self.digest.replace(":", "-") + suffix
        request = urllib.request.Request(f"http://{self.host}/v2/{self.name}/manifests/{tag}", method="HEAD")
        request.add_header("Accept", "application/vnd.oci.image.index.v1+json")
        try:
            with urllib.request.urlopen(request, timeout=10):
                return True
        except urllib.error.HTTPError as error:
            assert error.code == 404
            return False

    def _run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "PYTHONPATH": str(ROOT),
            "FIRMWARE_REGISTRY_INSECURE": "true",
        }
        command = [sys.executable, "-m", "fleet_fn", *arguments]
        return subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=100, check=False
        )


@dataclass
class Inspected:
    """What `inspect` told."""

    code: int
    errors: str
    signatures: list[str]
    attached: list[str]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    need_peer("cosign")
    return Keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def cosign(keys: Keys) -> Cosign:
    return Cosign(keys)


@pytest.fixture(params=[False, True], ids=["fallback", "referrers API"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """In a registry without the referrers API, and in one with it."""
    if request.param:
        host: str = request.getfixturevalue("host_with_api")
    else:
        need_peer("cosign")
        docker_registry: DockerRegistry = request.getfixturevalue("docker_registry")
        host = docker_registry.host.replace("127.0.0.1", "localhost")
    return Place(host, tmp_path, f"cosign/{next(_numbers)}", request.param)


def test_cosign_verifies_what_publish_signed(place: Place, cosign: Cosign, keys: Keys) -> None:
    for kind in KINDS:
        place.publish("--sign-key", str(keys.private(kind)))
        # Published again for each key, so that each verifies among those of the others.
        assert [cosign.verifies(place.by_digest, key) for key in KINDS] == [
            KINDS.index(key) <= KINDS.index(kind) for key in KINDS
        ]
    assert place.inspect("--key", str(keys.folder / "rsa.pub")).code == 0


def test_a_list_of_referrers_is_a_tag_only_if_the_registry_has_none(place: Place, keys: Keys) -> None:
    place.publish("--sign-key", str(keys.private("p256")))
    assert place.has_tag() is not place.has_api


@pytest.mark.parametrize("bundle", [True, False], ids=["bundle", "simple signing"])
def test_inspect_finds_what_cosign_signed(
    place: Place, cosign: Cosign, keys: Keys, bundle: bool, tmp_path: Path
) -> None:
    place.publish()
    for kind in KINDS:
        cosign.sign(place.by_digest, kind, bundle=bundle)
    trusted = tmp_path / "trusted"
    trusted.mkdir()
    for kind in KINDS:
        (trusted / f"{kind}.pub").write_bytes(keys.public(kind).read_bytes())
    told = place.inspect("--key", str(trusted))
    form = "bundle" if bundle else "simple signing"
    # cosign signs with Ed25519ph; its own `verify` refuses that, too.
    assert told.signatures == [
        f"{form} of the manifest: does not count: signed by another key",
        *(f"{form} of the manifest: good, by {kind}.pub" for kind in ("p256", "p384", "rsa")),
    ]
    assert (told.code, told.errors) == (0, "")
    assert told.attached == (["signature"] * 4 if bundle else [])
    refused = place.inspect("--key", str(keys.public("ed25519")))
    assert (refused.code, refused.errors) == (1, "inspect: not signed by a trusted key: signed by another key\n")


def test_cosign_and_publish_keep_the_signatures_of_each_other(
    place: Place, cosign: Cosign, keys: Keys, tmp_path: Path
) -> None:
    sbom = tmp_path / "sbom.json"
    sbom.write_text(json.dumps({"spdxVersion": "SPDX-2.3"}))
    place.publish()
    cosign.sign(place.by_digest, "p256")
    place.publish("--sign-key", str(keys.private("ed25519")), "--sbom", str(sbom))
    cosign.attest(place.by_digest, "p256", sbom)
    for kind in ("p256", "ed25519"):
        assert cosign.verifies(place.by_digest, kind)
        assert place.inspect("--key", str(keys.public(kind))).code == 0
    assert place.inspect().attached == ["SBOM", "attestation", "signature", "signature"]


def test_an_attestation_by_a_trusted_key_is_no_signature(
    place: Place, cosign: Cosign, keys: Keys, tmp_path: Path
) -> None:
    sbom = tmp_path / "sbom.json"
    sbom.write_text(json.dumps({"spdxVersion": "SPDX-2.3"}))
    place.publish()
    cosign.attest(place.by_digest, "p256", sbom)
    told = place.inspect("--key", str(keys.public("p256")))
    assert (told.code, told.signatures, told.attached) == (1, ["none"], ["attestation"])
    assert told.errors == "inspect: not signed by a trusted key: no signature\n"
    assert cosign.verifies(place.by_digest, "p256"), "cosign has become as strict: say so in docs/trust.md"
