"""The real cosign, which signs and verifies as users have it do."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

#: A registry with the referrers API, which prints its address; see `tests/peers/registry`.
PEER_REGISTRY: Final = "peer-registry"
KINDS: Final = ("p256", "p384", "ed25519", "rsa")
_SECONDS: Final = 60


def need_peer(program: str) -> None:
    """For tests that need a program of `make peers`, which builds it; elsewhere it need not be there."""
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not on PATH; make peers gets it, if Go is there, or Java for Keycloak")


class Keys:
    """A key pair of each kind, `KIND.pem` and `KIND.pub`, and cosign's form of it, `KIND.key`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        pairs: dict[str, ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey] = {
            "p256": ec.generate_private_key(ec.SECP256R1()),
            "p384": ec.generate_private_key(ec.SECP384R1()),
            "ed25519": ed25519.Ed25519PrivateKey.generate(),
            "rsa": rsa.generate_private_key(65537, 2048),
        }
        for kind, key in pairs.items():
            self.private(kind).write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
            public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
            self.public(kind).write_bytes(public)

    def private(self, kind: str) -> Path:
        return self.folder / f"{kind}.pem"

    def public(self, kind: str) -> Path:
        return self.folder / f"{kind}.pub"


class Cosign:
    """cosign 3 with keys, without its services."""

    def __init__(self, keys: Keys) -> None:
        self._folder = keys.folder / "cosign"
        self._folder.mkdir()
        self._keys = keys
        for kind in KINDS:
            pem, prefix = str(keys.private(kind)), str(self._folder / kind)
            self._run("import-key-pair", "--yes", "--key", pem, "--output-key-prefix", prefix)

    def sign(self, reference: str, kind: str, *, bundle: bool = True) -> None:
        """Signs a manifest, which `reference` names by its digest, in one of the two forms."""
        self._push("sign", kind, f"--new-bundle-format={str(bundle).lower()}", reference)

    def attest(self, reference: str, kind: str, predicate: Path) -> None:
        """Attaches a signed claim about a manifest: an SPDX document."""
        options = ["--new-bundle-format=true", "--type", "spdxjson", "--predicate", str(predicate)]
        self._push("attest", kind, *options, reference)

    def verifies(self, reference: str, kind: str) -> bool:
        """Whether `cosign verify` finds a signature by a key."""
        options = ["--allow-http-registry", "--insecure-ignore-tlog=true"]
        return not self._start("verify", "--key", str(self._keys.public(kind)), *options, reference).returncode

    def _push(self, command: str, kind: str, *arguments: str) -> None:
        options = ["--yes", "--allow-http-registry", "--tlog-upload=false", "--use-signing-config=false"]
        self._run(command, "--key", str(self._folder / f"{kind}.key"), *options, *arguments)

    def _run(self, *arguments: str) -> None:
        ended = self._start(*arguments)
        assert ended.returncode == 0, ended.stderr

    def _start(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            ["cosign", *arguments],
            env={"PATH": os.environ["PATH"], "HOME": str(self._folder), "COSIGN_PASSWORD": ""},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
        )


@contextmanager
def peer_registry() -> Iterator[str]:
    """Run the registry with the referrers API; yield its address."""
    with subprocess.Popen([PEER_REGISTRY], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout
        try:
            # By this name cosign takes a registry for one without TLS.
            yield process.stdout.readline().strip().replace("127.0.0.1", "localhost")
        finally:
            process.terminate()
