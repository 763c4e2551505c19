"""`publish` and `inspect` with a real registry, as people run them; and what other tools make of the same."""

import base64
import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import oras.provider
import pytest
import trustme
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from fleet_fn.oci.upload import ANSWER_TIMEOUT_SECONDS
from tests.support import forks
from tests.support.firmware import random_bytes
from tests.support.function import ROOT
from tests.support.http import Response, Server, closed_port
from tests.support.images import ImageLayout
from tests.support.registry import PASSWORD, USER, DockerRegistry, Skopeo, need
from tests.support.signed import P256

CONTENT = random_bytes(5024)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
OTHER = random_bytes(5024, "other")
BASIC = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


@dataclass(frozen=True)
class Ended:
    """What a command left behind."""

    code: int
    output: str
    errors: str

    @property
    def lines(self) -> dict[str, str]:
        """What it told, by name."""
        assert (self.code, self.errors) == (0, "")
        return dict(line.split(maxsplit=1) for line in self.output.splitlines())

    @property
    def refusal(self) -> str:
        """Why it failed: one line, without the command's name."""
        assert self.code == 1
        return self._reason

    @property
    def mistake(self) -> str:
        """What is wrong with the arguments or the settings: the same."""
        assert self.code == 2
        return self._reason

    @property
    def _reason(self) -> str:
        assert self.output == ""
        line = self.errors.removesuffix("\n")
        assert line.isprintable()
        return line.partition(": ")[2]


@dataclass
class User:
    """Somebody with a firmware, a home of their own, and nothing configured."""

    home: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def file(self) -> Path:
        return self.home / "build.bin"

    def run(self, *arguments: str, stdin: bytes | None = None) -> Ended:
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "TMPDIR": str(self.home / "tmp"),
            "PYTHONPATH": str(ROOT),
            "SOURCE_DATE_EPOCH": "1795413600",
            **self.environment,
        }
        if stdin is None:
            ended = forks.run(["fleet_fn", *arguments], environment, self.home, 100)
        else:
            command = [sys.executable, "-m", "fleet_fn", *arguments]
            ended = subprocess.run(
                command, cwd=self.home, env=environment, input=stdin, capture_output=True, timeout=100
            )
        output, errors = ended.stdout.decode(), ended.stderr.decode()
        assert not {secret for secret in (PASSWORD, BASIC) if secret in output + errors}
        assert "Traceback" not in errors
        assert not list((self.home / "tmp").iterdir())
        return Ended(ended.returncode, output, errors)

    def publish(self, reference: str, version: str = "1.2.3", *options: str, content: bytes = CONTENT) -> Ended:
        self.file.write_bytes(content)
        return self.run("publish", str(self.file), reference, "--version", version, *options)

    def inspect(self, reference: str, *options: str) -> Ended:
        return self.run("inspect", reference, *options)


@pytest.fixture
def user(tmp_path: Path) -> User:
    (tmp_path / "tmp").mkdir()
    return User(tmp_path)


@pytest.fixture
def registry(user: User, docker_registry: DockerRegistry) -> DockerRegistry:
    """One that the user knows is reached by plain HTTP."""
    user.environment["FIRMWARE_REGISTRY_INSECURE"] = "true"
    return docker_registry


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A repository that no other test uses."""
    return "tests/" + hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:16]


# --- What is published ------------------------------------------------------------------------------------------------


def test_what_was_published_is_told_and_is_in_the_registry_byte_for_byte(
    user: User, registry: DockerRegistry, name: str
) -> None:
    told = user.publish(f"{registry.host}/{name}:1.2.3").lines
    assert told == {
        "reference": f"{registry.host}/{name}:1.2.3",
        "digest": str(registry.digest(name, "1.2.3")),
        "version": "1.2.3",
        "size": "5024",
        "sha256": SHA256,
    }
    assert registry.blob(name, f"sha256:{SHA256}") == CONTENT
    assert registry.manifest(name, "1.2.3").json == {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": "application/vnd.drogue.firmware.v1",
        "config": {
            "mediaType": "application/vnd.oci.empty.v1+json",
            "digest": f"sha256:{hashlib.sha256(b'{}').hexdigest()}",
            "size": 2,
        },
        "layers": [
            {
                "mediaType": "application/octet-stream",
                "digest": f"sha256:{SHA256}",
                "size": 5024,
                "annotations": {"org.opencontainers.image.title": "firmware.bin"},
            }
        ],
        "annotations": {
            "org.opencontainers.image.version": "1.2.3",
            "org.opencontainers.image.created": "2026-11-23T06:00:00+00:00",
        },
    }
    assert registry.blob(name, f"sha256:{hashlib.sha256(b'{}').hexdigest()}") == b"{}"
    assert user.inspect(f"{registry.host}/{name}:1.2.3").lines == {
        "shape": "artifact",
        "digest": told["digest"],
        "version": "1.2.3",
        "size": "5024",
        "sha256": f"{SHA256} (verified)",
        "created": "2026-11-23T06:00:00+00:00",
        "signature": "none",
    }


def test_it_is_the_same_manifest_as_in_an_image_layout(user: User, registry: DockerRegistry, name: str) -> None:
    options = ("--annotation", "org.opencontainers.image.source=https://example.org/ü", "--pad-to", "512")
    in_registry = user.publish(f"{registry.host}/{name}", "1.2.3", *options).lines
    in_layout = user.publish(f"oci-layout:{user.home}/layout", "1.2.3", *options).lines
    assert in_registry["digest"] == in_layout["digest"]
    assert registry.tags(name) == {"1.2.3"}


def test_padding_and_annotations_are_part_of_it(user: User, registry: DockerRegistry, name: str) -> None:
    told = user.publish(f"{registry.host}/{name}", "1.2.3", "--pad-to", "4096", "--annotation", "a=b=c").lines
    padded = CONTENT + b"\xff" * (8192 - 5024)
    assert (told["size"], told["sha256"]) == ("8192", hashlib.sha256(padded).hexdigest())
    assert registry.blob(name, f"sha256:{told['sha256']}") == padded
    assert registry.manifest(name, "1.2.3").json["annotations"]["a"] == "b=c"


def test_a_firmware_can_come_out_of_a_pipe(user: User, registry: DockerRegistry, name: str) -> None:
    told = user.run("publish", "-", f"{registry.host}/{name}:1.2.3", "--version", "1.2.3", stdin=CONTENT).lines
    assert told["sha256"] == SHA256
    assert registry.blob(name, f"sha256:{SHA256}") == CONTENT


def test_a_digest_is_not_published_to(user: User, registry: DockerRegistry, name: str) -> None:
    reference = f"{registry.host}/{name}@sha256:{'0' * 64}"
    assert user.publish(reference).mistake == f"{reference!r}: name a tag, HOST/NAME:TAG"


# --- Signatures and SBOMs ---------------------------------------------------------------------------------------------


def test_signature_and_sbom_are_listed_under_the_fallback_tag(user: User, registry: DockerRegistry, name: str) -> None:
    key, sbom = user.home / "key.pem", user.home / "sbom.json"
    private = ec.generate_private_key(ec.SECP256R1())
    key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"s3cret")))
    public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (user.home / "key.pub").write_bytes(public)
    sbom.write_text('{"bomFormat": "CycloneDX", "specVersion": "1.6"}')
    reference, options = f"{registry.host}/{name}:1.2.3", ("--sign-key", str(key), "--sbom", str(sbom))
    assert "the key is encrypted" in user.publish(reference, "1.2.3", *options).mistake
    assert registry.tags(name) == set()
    user.environment["FIRMWARE_SIGN_KEY_PASSWORD"] = "s3cret"
    told = user.publish(reference, "1.2.3", *options).lines
    assert user.publish(reference, "1.2.3", *options).lines == told
    fallback = told["digest"].replace(":", "-")
    assert registry.tags(name) == {"1.2.3", fallback}
    listed = registry.manifest(name, fallback).json["manifests"]
    assert [entry["digest"] for entry in listed] == [told["sbom"], told["signature"]]
    attached = registry.manifest(name, told["sbom"]).json
    assert registry.blob(name, attached["layers"][0]["digest"]) == sbom.read_bytes()
    inspected = user.inspect(reference, "--key", str(user.home / "key.pub"))
    assert (inspected.code, inspected.errors) == (0, "")
    assert "signature  bundle of the manifest: good, by key.pub" in inspected.output.splitlines()
    other = user.inspect(reference, "--key", str(P256))
    assert (other.code, other.errors) == (1, "inspect: not signed by a trusted key: signed by another key\n")


def test_a_registry_that_is_protected_takes_signatures(user: User, protected: DockerRegistry, name: str) -> None:
    key = user.home / "key.pem"
    private = ec.generate_private_key(ec.SECP256R1())
    key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    user.environment |= {"FIRMWARE_REGISTRY_USER": USER, "FIRMWARE_REGISTRY_TOKEN": PASSWORD}
    told = user.publish(f"{protected.host}/{name}", "1.2.3", "--insecure", "--sign-key", str(key)).lines
    assert told["digest"].replace(":", "-") in protected.tags(name)


# --- Tags -------------------------------------------------------------------------------------------------------------


def test_a_tag_is_not_moved_to_other_bytes_unless_it_is_forced(user: User, registry: DockerRegistry, name: str) -> None:
    reference = f"{registry.host}/{name}:1.2.3"
    first = user.publish(reference).lines
    refusal = user.publish(reference, "1.2.3", "--latest", content=OTHER).refusal
    assert refusal == "tag 1.2.3 has other bytes already: publish another version, or move it with --force"
    assert registry.digest(name, "1.2.3") == first["digest"]
    assert registry.tags(name) == {"1.2.3"}
    assert registry.get(f"/v2/{name}/blobs/sha256:{hashlib.sha256(OTHER).hexdigest()}").status == 404
    assert user.publish(reference).lines == first
    forced = user.publish(reference, "1.2.3", "--force", content=OTHER)
    assert "version 1.2.3 had other bytes, at the tag 1.2.3;" in forced.errors
    assert user.inspect(reference).lines["sha256"].startswith(hashlib.sha256(OTHER).hexdigest())


def test_latest_moves_along_and_the_other_tags_stay(user: User, registry: DockerRegistry, name: str) -> None:
    first = user.publish(f"{registry.host}/{name}", "1.2.3", "--latest").lines
    assert registry.digest(name, "latest") == first["digest"]
    second = user.publish(f"{registry.host}/{name}", "1.2.4", content=OTHER).lines
    assert user.inspect(f"{registry.host}/{name}").lines["version"] == "1.2.3"
    user.publish(f"{registry.host}/{name}", "1.2.4", "--latest", content=OTHER)
    assert registry.digest(name, "latest") == registry.digest(name, "1.2.4") == second["digest"]
    assert registry.digest(name, "1.2.3") == first["digest"]
    assert registry.tags(name) == {"1.2.3", "1.2.4", "latest"}


def test_latest_itself_may_be_published_to_again_and_again(user: User, registry: DockerRegistry, name: str) -> None:
    user.publish(f"{registry.host}/{name}:latest", "1.2.3")
    assert user.publish(f"{registry.host}/{name}:latest", "1.2.4", content=OTHER).lines["version"] == "1.2.4"


def test_a_version_whose_bytes_change_is_warned_of(user: User, registry: DockerRegistry, name: str) -> None:
    user.publish(f"{registry.host}/{name}:v1.2.3", "1.2.3")
    ended = user.publish(f"{registry.host}/{name}:1.2.3-again", "1.2.3", content=OTHER)
    assert ended.code == 0
    bytes_warning, tag_warning = ended.errors.splitlines()
    assert bytes_warning.startswith("warning: version 1.2.3 had other bytes, at the tag v1.2.3; ")
    assert tag_warning.startswith("warning: the tag 1.2.3-again differs from the version 1.2.3; ")


def test_an_image_is_not_replaced_by_a_firmware_unless_it_is_forced(
    user: User, registry: DockerRegistry, skopeo: Skopeo, name: str, tmp_path: Path
) -> None:
    layout = ImageLayout(tmp_path / "layout")
    layout.tag(layout.labelled_image(CONTENT, "1.2.3"), "image")
    skopeo.copy(layout.folder, "image", registry, f"{name}:1.2.3")
    assert "has other bytes already" in user.publish(f"{registry.host}/{name}:1.2.3").refusal
    assert user.publish(f"{registry.host}/{name}:1.2.3", "1.2.3", "--force").lines["sha256"] == SHA256


# --- Credentials and trust --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def protected(_has_docker_registry: None) -> Iterator[DockerRegistry]:
    with DockerRegistry(protected=True) as registry:
        yield registry


def logged_in(registry: DockerRegistry, password: str = PASSWORD) -> str:
    """A configuration as `docker login` leaves it."""
    return json.dumps({"auths": {registry.host: {"auth": base64.b64encode(f"{USER}:{password}".encode()).decode()}}})


def test_credentials_come_from_the_environment(user: User, protected: DockerRegistry, name: str) -> None:
    user.environment |= {"FIRMWARE_REGISTRY_USER": USER, "FIRMWARE_REGISTRY_TOKEN": PASSWORD}
    assert user.publish(f"{protected.host}/{name}", "1.2.3", "--insecure").lines["sha256"] == SHA256
    assert protected.blob(name, f"sha256:{SHA256}") == CONTENT
    assert user.inspect(f"{protected.host}/{name}:1.2.3", "--insecure").lines["version"] == "1.2.3"


@pytest.mark.parametrize("where", [".docker/config.json", "config/config.json", "run/containers/auth.json"])
def test_credentials_come_from_what_docker_or_podman_saved(
    user: User, protected: DockerRegistry, name: str, where: str
) -> None:
    user.environment["XDG_RUNTIME_DIR"] = str(user.home / "run")
    if where.startswith("config"):
        user.environment["DOCKER_CONFIG"] = str(user.home / "config")
    saved = user.home / where
    saved.parent.mkdir(parents=True)
    saved.write_text(logged_in(protected))
    assert user.publish(f"{protected.host}/{name}", "1.2.3", "--insecure").lines["sha256"] == SHA256
    assert user.inspect(f"{protected.host}/{name}:1.2.3", "--insecure").lines["version"] == "1.2.3"
    saved.write_text(logged_in(protected, "wrong"))
    assert "the credentials were refused" in user.publish(f"{protected.host}/{name}", "1.2.3", "--insecure").refusal


def test_wrong_credentials_are_refused_and_not_shown(user: User, protected: DockerRegistry, name: str) -> None:
    wrong = "not-" + PASSWORD  # which every run looks for
    user.environment |= {"FIRMWARE_REGISTRY_USER": USER, "FIRMWARE_REGISTRY_TOKEN": wrong}
    reference = f"{protected.host}/{name}:1.2.3"
    refusal = user.publish(reference, "1.2.3", "--insecure").refusal
    assert refusal.startswith(f"{protected.host}: the credentials were refused")
    assert "refused" in user.inspect(reference, "--insecure").refusal
    assert protected.tags(name) == set()


def test_missing_credentials_are_asked_for(user: User, protected: DockerRegistry, name: str) -> None:
    refusal = user.publish(f"{protected.host}/{name}", "1.2.3", "--insecure").refusal
    assert refusal.startswith(f"{protected.host}: wants credentials: set FIRMWARE_REGISTRY_USER and")


def test_a_credential_helper_that_is_not_run_is_told(user: User, protected: DockerRegistry, name: str) -> None:
    config = user.home / ".docker" / "config.json"
    config.parent.mkdir()
    config.write_text('{"credsStore": "desktop"}')
    for refusal in (
        user.publish(f"{protected.host}/{name}", "1.2.3", "--insecure").refusal,
        user.inspect(f"{protected.host}/{name}:1.2.3", "--insecure").refusal,
    ):
        assert " set FIRMWARE_REGISTRY_USER and FIRMWARE_REGISTRY_TOKEN, or log in as docker does" in refusal
        assert refusal.endswith(f"; {config} names a credential helper, which is not run")


def test_what_netrc_says_does_not_displace_credentials(user: User, protected: DockerRegistry, name: str) -> None:
    (user.home / ".netrc").write_text("machine 127.0.0.1 login other password other\n")
    user.environment |= {"FIRMWARE_REGISTRY_USER": USER, "FIRMWARE_REGISTRY_TOKEN": PASSWORD}
    assert user.publish(f"{protected.host}/{name}", "1.2.3", "--insecure").lines["sha256"] == SHA256


def test_a_registrys_certificate_has_to_be_trusted(user: User, name: str) -> None:
    need("docker-registry")
    authority, another = trustme.CA(), trustme.CA()
    ca_file = user.home / "ca.pem"
    authority.cert_pem.write_to_path(ca_file)
    another.cert_pem.write_to_path(user.home / "another.pem")
    with DockerRegistry(protected=True, authority=authority) as registry:
        user.environment |= {"FIRMWARE_REGISTRY_USER": USER, "FIRMWARE_REGISTRY_TOKEN": PASSWORD}
        for host in (registry.host, f"localhost:{registry.port}"):
            reference = f"{host}/{name}:1.2.3"
            told = user.publish(reference, "1.2.3", "--ca-file", str(ca_file)).lines
            assert told["digest"] == registry.digest(name, "1.2.3")
            assert user.inspect(reference, "--ca-file", str(ca_file)).lines["version"] == "1.2.3"
        for options in ([], ["--ca-file", str(user.home / "another.pem")]):
            refusal = user.publish(reference, "1.2.3", *options).refusal
            assert refusal.startswith(f"{host}: certificate not trusted: ")
            assert refusal.endswith("name the trust anchors with --ca-file")
        assert user.publish(reference, "1.2.3", "--insecure").refusal == f"{host}: speaks TLS; leave out --insecure"
        user.environment["FIRMWARE_REGISTRY_CA_FILE"] = str(ca_file)
        assert user.publish(reference).lines == told
        del user.environment["FIRMWARE_REGISTRY_CA_FILE"]
        user.environment["SSL_CERT_FILE"] = str(ca_file)  # which is where the system's trust anchors are, for OpenSSL
        assert user.publish(reference).lines == told
        assert user.inspect(reference).lines["version"] == "1.2.3"


def test_what_speaks_no_tls_is_told_and_what_helps(user: User, docker_registry: DockerRegistry, name: str) -> None:
    refusal = user.publish(f"{docker_registry.host}/{name}").refusal
    assert refusal == f"{docker_registry.host}: does not speak TLS; --insecure is for plain HTTP"
    assert "does not speak TLS" in user.inspect(f"{docker_registry.host}/{name}").refusal


def test_inspect_says_what_helps_with_tls(user: User, docker_registry: DockerRegistry, name: str) -> None:
    need("docker-registry")
    assert user.inspect(f"{docker_registry.host}/{name}:1").refusal.endswith(
        "does not speak TLS; --insecure (FIRMWARE_REGISTRY_INSECURE=true) is for plain HTTP"
    )
    with DockerRegistry(authority=trustme.CA()) as registry:
        assert user.inspect(f"{registry.host}/{name}:1").refusal.endswith(
            "; name the trust anchors with --ca-file or FIRMWARE_REGISTRY_CA_FILE"
        )
        assert user.inspect(f"{registry.host}/{name}:1", "--insecure").refusal == (
            f"OCI registry {registry.host}: answered 400; if it speaks TLS, leave out --insecure "
            "(FIRMWARE_REGISTRY_INSECURE)"
        )


def test_inspect_says_what_helps_with_credentials(user: User, protected: DockerRegistry, name: str) -> None:
    reference = f"{protected.host}/{name}:1"
    assert user.inspect(reference, "--insecure").refusal.endswith(
        "; set FIRMWARE_REGISTRY_USER and FIRMWARE_REGISTRY_TOKEN, or log in as docker does"
    )
    user.environment |= {"FIRMWARE_REGISTRY_USER": USER, "FIRMWARE_REGISTRY_TOKEN": "wrong"}
    assert user.inspect(reference, "--insecure").refusal.endswith(
        "refused; check FIRMWARE_REGISTRY_USER and FIRMWARE_REGISTRY_TOKEN, or log in as docker does again"
    )


def test_inspect_says_that_a_web_page_is_no_registry(user: User, name: str) -> None:
    with Server(lambda _: Response(200, b"<html>", headers={"Content-Type": "text/html"})) as server:
        host = server.url.removeprefix("http://")
        refusal = user.inspect(f"{host}/{name}:1", "--insecure").refusal
    assert refusal.startswith("manifest: not JSON")
    assert refusal.endswith(f"; is {host} an OCI registry? It answered with something else")


def test_credentials_do_not_leave_tls_for_a_token(user: User, name: str) -> None:
    need("docker-registry")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(user.home / "ca.pem")
    user.environment |= {"FIRMWARE_REGISTRY_USER": USER, "FIRMWARE_REGISTRY_TOKEN": PASSWORD}
    with Server(lambda _: Response(200)) as issuer, DockerRegistry(authority=authority, realm=issuer.url) as registry:
        refusal = user.publish(f"{registry.host}/{name}", "1.2.3", "--ca-file", str(user.home / "ca.pem")).refusal
        assert issuer.requests == []
    assert refusal == "the registry's token realm has no TLS: our credentials were not sent"


def test_a_firmware_does_not_leave_tls_on_its_way(user: User, name: str) -> None:
    need("docker-registry")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(user.home / "ca.pem")
    with DockerRegistry(authority=authority, external_url="http://registry.invalid") as registry:
        refusal = user.publish(f"{registry.host}/{name}", "1.2.3", "--ca-file", str(user.home / "ca.pem")).refusal
    assert refusal == f"{registry.host}: redirects the upload to a URL without TLS"


# --- Registries of another kind ---------------------------------------------------------------------------------------


def test_uploads_may_be_told_by_a_relative_url_and_large_ones_do_not_pass_through_memory(
    user: User, name: str, tmp_path: Path
) -> None:
    need("docker-registry")
    measured = (
        "import atexit, resource, sys; from fleet_fn.cli.main import main\n"
        "atexit.register(lambda: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)); main()"
    )

    def peak(host: str, size: int) -> int:
        """KiB of memory that publishing so many bytes takes."""
        user.file.write_bytes(b"")
        os.truncate(user.file, size)
        options = ["--version", "1", "--insecure", "--pad-to", "4096"]
        ended = subprocess.run(
            [sys.executable, "-c", measured, "publish", str(user.file), f"{host}/{name}:{size}", *options],
            env={"PATH": os.environ["PATH"], "HOME": str(user.home), "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
            timeout=100,
        )
        assert f"size       {size}\n" in ended.stdout
        return int(ended.stderr.splitlines()[-1])

    with DockerRegistry(relative_urls=True, storage=tmp_path / "storage") as registry:
        small, large = peak(registry.host, 4096), peak(registry.host, 128 * 1024 * 1024)
    assert large - small < 16 * 1024


def test_a_registry_that_takes_nothing_is_told(user: User, name: str) -> None:
    need("docker-registry")
    with DockerRegistry(read_only=True) as registry:
        refusal = user.publish(f"{registry.host}/{name}", "1.2.3", "--insecure").refusal
    assert refusal.startswith(f"{registry.host}: answered 405 to a POST")
    assert refusal.endswith("; the registry is read-only, or a mirror: publish to another")


def test_a_token_with_a_newline_is_told_by_its_variable(user: User, name: str) -> None:
    user.environment |= {"FIRMWARE_REGISTRY_USER": USER, "FIRMWARE_REGISTRY_TOKEN": f"{PASSWORD}\n"}
    told = "FIRMWARE_REGISTRY_TOKEN contains a control character (a trailing newline?)"
    assert user.publish(f"ghcr.io/{name}").mistake == told
    assert user.inspect(f"ghcr.io/{name}").mistake == told


def test_a_registry_that_is_not_there_is_told_at_once(user: User) -> None:
    with closed_port() as port:
        begun = time.monotonic()
        assert user.publish(f"127.0.0.1:{port}/pump").refusal == f"127.0.0.1:{port}: connection refused"
        assert "connection refused" in user.inspect(f"127.0.0.1:{port}/pump").refusal
        assert time.monotonic() - begun < ANSWER_TIMEOUT_SECONDS


def test_a_registry_that_does_not_answer_is_not_waited_for_long(user: User) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host = f"127.0.0.1:{silent.getsockname()[1]}"
        begun = time.monotonic()
        assert user.publish(f"{host}/pump", "1.2.3", "--insecure").refusal == f"{host}: no answer in time"
        assert time.monotonic() - begun < 2 * ANSWER_TIMEOUT_SECONDS


def test_a_bare_name_lists_the_versions(user: User, registry: DockerRegistry, name: str) -> None:
    for version in ("1.0.0", "1.0.1"):
        user.publish(f"{registry.host}/{name}", version, content=random_bytes(5024, version))
    ended = user.inspect(f"{registry.host}/{name}")
    assert ended.code == 0
    header, *rows = [line.split() for line in ended.output.splitlines()]
    assert header == ["TAG", "VERSION", "SIZE", "DIGEST"]
    assert rows == [[version, version, "5024", registry.digest(name, version)] for version in ("1.0.1", "1.0.0")]
    assert ended.errors == f"warning: no tag latest in {name}: a device whose image names no tag finds nothing\n"


# --- Other tools ------------------------------------------------------------------------------------------------------


@pytest.fixture
def oras_py(user: User, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """oras-py's own client, which reads and writes by itself."""
    monkeypatch.setenv("HOME", str(user.home))
    client = oras.provider.Registry(insecure=True)
    client.session.trust_env = False
    with client.session:
        yield client


def test_oras_py_pulls_what_was_published(user: User, registry: DockerRegistry, oras_py: Any, name: str) -> None:
    user.publish(f"{registry.host}/{name}", "1.2.3")
    (file,) = oras_py.pull(f"{registry.host}/{name}:1.2.3", outdir=str(user.home / "pulled"))
    assert Path(file).name == "firmware.bin"
    assert Path(file).read_bytes() == CONTENT


def test_what_oras_py_pushed_is_inspected(user: User, registry: DockerRegistry, oras_py: Any, name: str) -> None:
    file = user.home / "firmware.bin"
    file.write_bytes(CONTENT)
    reference = f"{registry.host}/{name}:2.0.0"
    oras_py.push(reference, files=[f"{file}:application/octet-stream"], disable_path_validation=True, quiet=True)
    told = user.inspect(reference).lines
    assert (told["shape"], told["version"], told["sha256"]) == ("artifact", "2.0.0", f"{SHA256} (verified)")
    assert user.publish(reference, "2.0.0").lines["sha256"] == SHA256  # the same bytes


def test_skopeo_copies_what_was_published_into_a_layout(
    user: User, registry: DockerRegistry, skopeo: Skopeo, name: str
) -> None:
    told = user.publish(f"{registry.host}/{name}", "1.2.3").lines
    skopeo.fetch(registry, f"{name}:1.2.3", user.home / "layout", "mine")
    assert user.inspect(f"oci-layout:{user.home}/layout:mine").lines["digest"] == told["digest"]


@pytest.mark.parametrize("options", [(), ("--format", "v2s2")])
@pytest.mark.parametrize("gzipped", [False, True])
def test_images_of_the_first_pipelines_are_inspected(
    user: User,
    registry: DockerRegistry,
    skopeo: Skopeo,
    name: str,
    tmp_path: Path,
    options: tuple[str, ...],
    gzipped: bool,
) -> None:
    layout = ImageLayout(tmp_path / "layout")
    layout.tag(layout.labelled_image(CONTENT, "1.2.3", gzipped=gzipped), "labelled")
    layout.tag(layout.image_with_manifest_file(CONTENT, "1.2.4", prefix="./", gzipped=gzipped), "described")
    for tag, shape, version in (
        ("labelled", "labelled image", "1.2.3"),
        ("described", "image with firmware.json", "1.2.4"),
    ):
        skopeo.copy(layout.folder, tag, registry, f"{name}:{tag}", *options)
        assert user.inspect(f"{registry.host}/{name}:{tag}").lines == {
            "shape": shape,
            "digest": registry.digest(name, tag),
            "version": version,
            "size": "5024",
            "sha256": f"{SHA256} (verified)",
            "signature": "none",
        }


def test_of_an_index_the_platform_says_which_manifest_is_inspected(
    user: User, registry: DockerRegistry, skopeo: Skopeo, name: str, tmp_path: Path
) -> None:
    layout = ImageLayout(tmp_path / "layout")
    images = {"linux/arm/v7": layout.labelled_image(CONTENT), "linux/arm64": layout.labelled_image(OTHER, "2.0.0")}
    layout.tag(layout.index(images), "all")
    skopeo.copy(layout.folder, "all", registry, f"{name}:all", "--all")
    reference = f"{registry.host}/{name}:all"
    assert user.inspect(reference, "--platform", "linux/arm64").lines["version"] == "2.0.0"
    assert user.inspect(reference, "--platform", "linux/arm/v7").lines["sha256"] == f"{SHA256} (verified)"
    assert "linux/arm/v7, linux/arm64" in user.inspect(reference).refusal
    assert "linux/amd64" in user.inspect(reference, "--platform", "linux/amd64").refusal


@pytest.mark.parametrize(
    ("reference", "told"),
    [("{}/{}:2", "no tag 2 in {}"), ("{}/{}-not", "no tag latest in {}-not"), ("{}/{}@sha256:" + "0" * 64, "sha256:0")],
)
def test_what_is_not_there_is_told_in_one_line(
    user: User, registry: DockerRegistry, name: str, reference: str, told: str
) -> None:
    user.publish(f"{registry.host}/{name}:1")
    assert told.format(name) in user.inspect(reference.format(registry.host, name)).refusal


def test_a_label_that_is_not_true_is_told(
    user: User, registry: DockerRegistry, skopeo: Skopeo, name: str, tmp_path: Path
) -> None:
    layout = ImageLayout(tmp_path / "layout")
    label = json.dumps({"version": "1", "size": 5024, "checksum": hashlib.sha256(OTHER).hexdigest()})
    layout.tag(layout.labelled_image(CONTENT, label=label), "untrue")
    skopeo.copy(layout.folder, "untrue", registry, f"{name}:untrue")
    assert "digest mismatch" in user.inspect(f"{registry.host}/{name}:untrue").refusal
