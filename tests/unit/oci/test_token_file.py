"""Registry tokens in files: OpenShift's own registry, and no other, gets that of the pod's service account."""

import re
import ssl
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import trustme

from fleet_fn.concurrency.single_flight import SingleFlight
from fleet_fn.deadline import Deadline
from fleet_fn.errors import PermanentError
from fleet_fn.firmware.store import ImageStore
from fleet_fn.firmware.verified import VerifiedFiles
from fleet_fn.oci import token_file
from fleet_fn.oci.reference import parse_reference
from fleet_fn.oci.token_file import read_token_file, takes_service_accounts
from fleet_fn.parts import make_image_store
from fleet_fn.settings import Settings
from tests.support.fake_registry import FakeRegistry
from tests.support.firmware import publish
from tests.support.http import Response
from tests.support.token_realm import TokenRealm, guarded_by

#: As OpenShift's registry asks.
CHALLENGE = 'Bearer realm="https://localhost/openshift/token"'


@pytest.mark.parametrize(
    "host",
    [
        "image-registry.openshift-image-registry.svc",
        "image-registry.openshift-image-registry.svc:5000",
        "image-registry.openshift-image-registry.svc.cluster.local:5000",
    ],
)
def test_openshifts_registry_takes_service_accounts(host: str) -> None:
    assert takes_service_accounts(host)


@pytest.mark.parametrize(
    "host",
    [
        "ghcr.io",
        "registry.acme.svc:5000",
        "image-registry.openshift-image-registry.svc.evil.example",
        "evil.image-registry.openshift-image-registry.svc",
        "image-registry-openshift-image-registry.svc",
        "image-registry.openshift-image-registry.svc:5000\n",
        "default-route-openshift-image-registry.apps.example.com",
    ],
)
def test_no_other_registry_does(host: str) -> None:
    assert not takes_service_accounts(host)


def test_a_file_without_a_token_is_named_and_not_quoted(tmp_path: Path) -> None:
    file = tmp_path / "token"
    for content in ("", "s3cret token", "s3cret\ntoken"):
        file.write_text(content)
        with pytest.raises(PermanentError, match="the token is empty or has characters that no header") as caught:
            read_token_file(file)
        assert "s3cret" not in str(caught.value)
    file.unlink()
    with pytest.raises(PermanentError, match=rf"^OCI registry credentials: {file}: No such file"):
        read_token_file(file)


@pytest.fixture
def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The mounted folder of a service account."""
    folder = tmp_path / "serviceaccount"
    folder.mkdir()
    (folder / "token").write_text("s3cret-1\n")
    monkeypatch.setattr(token_file, "SERVICE_ACCOUNT", folder)
    return folder


@pytest.fixture
def registry(account: Path, tmp_path: Path) -> Iterator[FakeRegistry]:
    """A registry whose authority is that of the cluster's services."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(account / "service-ca.crt")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    with FakeRegistry(tmp_path / "registry", context) as registry:
        publish(registry.folder, "pump", "1", b"x" * 32)
        yield registry


def open_store(registry: FakeRegistry, tmp_path: Path, **settings: str) -> ImageStore:
    host = f"localhost:{registry.host.rpartition(':')[2]}"
    firmware = {"firmware_registry": f"{host}/", "firmware_cache_dir": str(tmp_path / "cache"), **settings}
    single_flight = SingleFlight()
    return make_image_store(
        Settings(drogue_api_url="", **firmware),  # type: ignore[arg-type]
        VerifiedFiles(single_flight),
        single_flight,
    )


def shown(registry: FakeRegistry) -> list[str | None]:
    return [request.headers.get("Authorization") for request in registry.requests]


def test_openshifts_registry_gets_the_token_as_it_is_now(
    registry: FakeRegistry, account: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_file, "_OPENSHIFT_REGISTRY", re.compile("localhost:[0-9]+"))
    registry.answers["pump"] = guarded_by("Bearer s3cret-1", CHALLENGE, registry.honest)
    with closing(open_store(registry, tmp_path)) as store:
        assert store.tags(parse_reference("pump"), Deadline(10)) == ["1"]
        assert shown(registry) == [None, "Bearer s3cret-1"]
        registry.answers["pump"] = guarded_by("Bearer s3cret-2", CHALLENGE, registry.honest)
        with pytest.raises(PermanentError, match=r"our credentials were refused$"):
            store.tags(parse_reference("pump"), Deadline(10))
        (account / "token").write_text("s3cret-2\n")
        assert store.tags(parse_reference("pump"), Deadline(10)) == ["1"]
        assert shown(registry)[-1] == "Bearer s3cret-2"
        (account / "token").unlink()
        registry.answers["pump"] = guarded_by("nobody", "Basic realm=x", registry.honest)
        with pytest.raises(PermanentError, match=r"no credentials are configured$"):
            store.tags(parse_reference("pump"), Deadline(10))


def test_another_token_comes_first(
    registry: FakeRegistry, account: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert account
    monkeypatch.setattr(token_file, "_OPENSHIFT_REGISTRY", re.compile("localhost:[0-9]+"))
    registry.answers["pump"] = guarded_by("Bearer s3cret-other", CHALLENGE, registry.honest)
    with closing(open_store(registry, tmp_path, firmware_registry_token="s3cret-other")) as store:
        assert store.tags(parse_reference("pump"), Deadline(10)) == ["1"]
    assert shown(registry) == [None, "Bearer s3cret-other"]


def test_any_other_registry_gets_nothing(registry: FakeRegistry, account: Path, tmp_path: Path) -> None:
    realm = TokenRealm(f"https://localhost:{registry.host.rpartition(':')[2]}/token")
    registry.answers["/token"] = realm
    registry.answers["pump"] = realm.guard("pump", registry.honest)
    authority = str(account / "service-ca.crt")
    with closing(open_store(registry, tmp_path, firmware_registry_ca_file=authority)) as store:
        assert store.tags(parse_reference("pump"), Deadline(10)) == ["1"]
        assert not [each for each in shown(registry) if each and "s3cret-1" in each]
        assert "Authorization" not in realm.requests[0].headers
        registry.answers["pump"] = lambda _: Response(401, headers={"WWW-Authenticate": "Basic realm=x"})
        with pytest.raises(PermanentError, match=r"no credentials are configured$"):
            store.tags(parse_reference("pump"), Deadline(10))
    with closing(open_store(registry, tmp_path)) as store, pytest.raises(PermanentError, match="not trusted"):
        store.tags(parse_reference("pump"), Deadline(10))
