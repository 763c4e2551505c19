"""References to registries on the command line, and the credentials for them."""

import base64
import json
from pathlib import Path

import pytest

from fleet_fn.errors import PermanentError
from fleet_fn.oci.access import Access, credential_helper, find_credentials, registry_reference
from fleet_fn.oci.docker_config import Credentials
from fleet_fn.oci.reference import Reference

DIGEST = "sha256:" + "0" * 64
GHCR = registry_reference("ghcr.io/acme/sensor:1")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user who has configured nothing."""
    for name in ("FIRMWARE_REGISTRY_USER", "FIRMWARE_REGISTRY_TOKEN", "DOCKER_CONFIG", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def save(path: Path, user: str, secret: str, key: str = "ghcr.io") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"auths": {key: {"auth": base64.b64encode(f"{user}:{secret}".encode()).decode()}}}))


# --- References -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("ghcr.io/acme/sensor:1.2.3", Reference("ghcr.io/", "acme/sensor", "1.2.3", None)),
        ("ghcr.io/sensor", Reference("ghcr.io/", "sensor", "latest", None)),
        ("localhost/sensor:1", Reference("localhost/", "sensor", "1", None)),
        ("localhost:5000/a/b/c:1", Reference("localhost:5000/", "a/b/c", "1", None)),
        ("127.0.0.1:5000/a.b/c:1", Reference("127.0.0.1:5000/", "a.b/c", "1", None)),
        ("[::1]:5000/a:1", Reference("[::1]:5000/", "a", "1", None)),
        ("a" * 63 + ":5000/a:1", Reference("a" * 63 + ":5000/", "a", "1", None)),
        (f"ghcr.io/sensor@{DIGEST}", Reference("ghcr.io/", "sensor", None, DIGEST)),
        (f"ghcr.io/sensor:1@{DIGEST}", Reference("ghcr.io/", "sensor", "1", DIGEST)),
    ],
)
def test_a_reference_is_a_host_a_name_and_a_tag_or_a_digest(text: str, reference: Reference) -> None:
    assert registry_reference(text) == reference


def test_the_default_tag_is_for_references_without_any() -> None:
    assert registry_reference("localhost:5000/a", "1.2.3").tag == "1.2.3"
    assert registry_reference("localhost:5000/a:4", "1.2.3").tag == "4"
    assert registry_reference(f"localhost:5000/a@{DIGEST}", "1.2.3").tag is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sensor",
        "sensor:1",
        "acme/sensor:1",
        "/sensor:1",
        "ghcr.io",
        "https://ghcr.io/acme/sensor:1",
        "ghcr..io/sensor:1",
        "ghcr.io:x/sensor:1",
        "ghcr.io:/sensor:1",
        "ghcr.io:65536/sensor:1",
        f"{'a' * 64}.io/sensor:1",
        "gh cr.io/sensor:1",
        "ghcr.io\n/sensor:1",
        "oci-layout/pump:1",
    ],
)
def test_reference_without_host_is_refused_with_expected_form(text: str) -> None:
    with pytest.raises(PermanentError) as failed:
        registry_reference(text)
    assert failed.value.reason == f"{text!r}: expected HOST/NAME:TAG or oci-layout:DIR:TAG"


@pytest.mark.parametrize(
    "text", ["ghcr.io/Acme:1", "ghcr.io/", "ghcr.io/a//b", "ghcr.io/../a:1", "ghcr.io/a:-", "x.y/a@1"]
)
def test_names_and_tags_are_checked_as_everywhere(text: str) -> None:
    with pytest.raises(PermanentError, match=r"^invalid reference "):
        registry_reference(text)


def test_a_password_in_a_reference_is_not_shown() -> None:
    with pytest.raises(PermanentError) as failed:
        registry_reference("me:s3cret@ghcr.io/acme/sensor:1")
    assert "s3cret" not in failed.value.reason


# --- Credentials ------------------------------------------------------------------------------------------------------


def test_without_configuration_there_are_no_credentials() -> None:
    assert find_credentials(GHCR) is None


def test_the_environments_credentials_come_before_saved_ones(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(home / ".docker" / "config.json", "docker", "1")
    monkeypatch.setenv("FIRMWARE_REGISTRY_TOKEN", "2")
    assert find_credentials(GHCR) == Credentials(None, "2")
    monkeypatch.setenv("FIRMWARE_REGISTRY_USER", "me")
    assert find_credentials(GHCR) == Credentials("me", "2")


def test_a_user_without_a_token_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRMWARE_REGISTRY_USER", "me")
    with pytest.raises(PermanentError, match="FIRMWARE_REGISTRY_TOKEN is not"):
        find_credentials(GHCR)


def test_credentials_saved_by_docker_and_podman_are_found(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(home / "run"))
    save(home / "run" / "containers" / "auth.json", "podman", "1")
    assert find_credentials(GHCR) == Credentials("podman", "1")
    save(home / ".docker" / "config.json", "docker", "2")
    assert find_credentials(GHCR) == Credentials("docker", "2")
    monkeypatch.setenv("DOCKER_CONFIG", str(home / "other"))
    save(home / "other" / "config.json", "other", "3")
    assert find_credentials(GHCR) == Credentials("other", "3")


def test_credentials_of_other_registries_are_not_taken(home: Path) -> None:
    save(home / ".docker" / "config.json", "docker", "2", key="quay.io")
    assert find_credentials(GHCR) is None


def test_a_file_that_makes_no_sense_is_told_by_its_path(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in (".docker", "other"):
        (home / folder).mkdir()
        (home / folder / "config.json").write_text("{")
    with pytest.raises(PermanentError) as failed:
        find_credentials(GHCR)
    assert failed.value.reason.startswith(f"OCI registry credentials: {home}/.docker/config.json: not JSON")
    monkeypatch.setenv("DOCKER_CONFIG", str(home / "other"))
    with pytest.raises(PermanentError) as failed:
        find_credentials(GHCR)
    assert failed.value.reason.startswith(
        f"OCI registry credentials: {home}/other/config.json (DOCKER_CONFIG): not JSON"
    )


def test_an_entry_that_makes_no_sense_is_told_by_its_path(home: Path) -> None:
    file = home / ".docker" / "config.json"
    save(file, "docker", "")
    with pytest.raises(PermanentError) as failed:
        find_credentials(GHCR)
    assert failed.value.reason == (f"OCI registry credentials: {file}: the entry for the registry lacks a password")


@pytest.mark.parametrize(
    ("config", "named"),
    [({"credsStore": "desktop"}, True), ({"credHelpers": {"quay.io": "x"}}, True), ({"auths": {}}, False)],
)
def test_a_credential_helper_that_is_not_run_is_found(home: Path, config: object, named: bool) -> None:
    file = home / ".docker" / "config.json"
    file.parent.mkdir()
    file.write_text(json.dumps(config))
    assert find_credentials(GHCR) is None
    assert credential_helper() == (str(file) if named else None)


@pytest.mark.parametrize("name", ["FIRMWARE_REGISTRY_USER", "FIRMWARE_REGISTRY_TOKEN"])
def test_a_newline_in_a_variable_is_told_by_its_name(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("FIRMWARE_REGISTRY_USER", "me")
    monkeypatch.setenv("FIRMWARE_REGISTRY_TOKEN", "s3cret")
    monkeypatch.setenv(name, "s3cret\n")
    with pytest.raises(PermanentError) as failed:
        find_credentials(GHCR)
    assert failed.value.reason == f"{name} contains a control character (a trailing newline?)"


def test_credentials_are_not_shown_with_what_they_give_access_to() -> None:
    assert "s3cret" not in repr(Access(credentials=Credentials("me", "s3cret")))


# --- Trust ------------------------------------------------------------------------------------------------------------


def test_unreadable_trust_anchors_are_named(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    reason = f"--ca-file {file}: not a readable file of certificates (PEM)"
    with pytest.raises(PermanentError) as failed:
        Access(ca_file=str(file)).tls_context()
    assert failed.value.reason == reason
    file.write_text("no certificate")
    with pytest.raises(PermanentError) as failed:
        Access(ca_file=str(file)).tls_context()
    assert failed.value.reason == reason
