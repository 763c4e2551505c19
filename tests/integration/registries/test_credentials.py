"""Credentials go to the registry that they belong to, and to no other host."""

import base64
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.drogue import Drogue
from tests.support.fake_registry import FakeRegistry, less_host, release, running
from tests.support.firmware import Published, publish, random_bytes
from tests.support.function import Function, event
from tests.support.hostile import always, endless
from tests.support.http import Response, Server
from tests.support.statuses import blocks, midway, post, told, update
from tests.support.token_realm import SECRET_TOKEN, TokenRealm, basic, guarded_by

USER, PASSWORD = "robot$x", "s3cret pässword:1"
BEARER = "s3cret-bearer"
OTHER_PASSWORD = "s3cret-of-docker"
SECRETS = (
    "s3cret",
    PASSWORD,
    json.dumps(PASSWORD)[1:-1],
    basic(USER, PASSWORD)[6:],
    basic("docker", OTHER_PASSWORD)[6:],
    SECRET_TOKEN,
)


@pytest.fixture(scope="module")
def start(
    drogue: Drogue, registry: FakeRegistry, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Iterator[Function]]:
    """Starts functions, and looks for secrets in what they have written when they end."""

    def start(**environment: str) -> Iterator[Function]:
        with running(drogue, registry, tmp_path_factory.mktemp("cache"), **environment) as function:
            yield function
            errors = function.errors
        written = errors + "".join(function.log)
        assert written
        assert not [secret for secret in SECRETS if secret in written]

    return start


Start = Callable[..., Iterator[Function]]


@pytest.fixture(scope="module")
def anonymous(start: Start) -> Iterator[Function]:
    yield from start()


@pytest.fixture(scope="module")
def with_password(start: Start) -> Iterator[Function]:
    yield from start(FIRMWARE_REGISTRY_USER=USER, FIRMWARE_REGISTRY_TOKEN=PASSWORD, MANIFEST_TTL_SECONDS="0")


@pytest.fixture(scope="module")
def with_token(start: Start) -> Iterator[Function]:
    yield from start(FIRMWARE_REGISTRY_TOKEN=BEARER)


@pytest.fixture(scope="module")
def docker_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("docker")


@pytest.fixture(scope="module")
def with_docker_config(start: Start, registry: FakeRegistry, docker_config: Path) -> Iterator[Function]:
    configure(docker_config, {registry.host: ("docker", OTHER_PASSWORD)})
    yield from start(DOCKER_CONFIG=str(docker_config))


def configure(folder: Path, entries: dict[str, tuple[str, str]]) -> None:
    auths = {key: {"auth": base64.b64encode(":".join(entry).encode()).decode()} for key, entry in entries.items()}
    (folder / "config.json").write_text(json.dumps({"auths": auths}))


@pytest.fixture
def realm(registry: FakeRegistry, device: str) -> TokenRealm:
    """Gives tokens to everybody, at the registry's own host."""
    return at(registry, TokenRealm(f"{registry.url}/token/{device}"))


def at(registry: FakeRegistry, realm: TokenRealm) -> TokenRealm:
    registry.answers[realm.url.removeprefix(registry.url)] = realm
    return realm


def is_served(function: Function, drogue: Drogue, device: str, released: Published) -> bool:
    answer = post(function, device)
    assert answer.outcome.startswith("write"), answer.body
    return blocks(drogue, device)[-1] == (0, released.content[:512])


def failed(function: Function, device: str) -> str:
    answer = post(function, device)
    assert answer.status == 422, answer.outcome
    assert not [secret for secret in SECRETS if secret.encode() in answer.body or secret in str(answer.headers)]
    return less_host(answer.reason)


def authorizations(registry: FakeRegistry, name: str) -> list[str | None]:
    return [request.headers.get("Authorization") for request in registry.requests_for(name)]


# --- Anonymous


def test_a_token_that_everybody_gets_is_asked_for_once_for_all_that_a_repository_has(
    anonymous: Function,
    drogue: Drogue,
    registry: FakeRegistry,
    device: str,
    released: Published,
    realm: TokenRealm,
) -> None:
    registry.answers[device] = realm.guard(device, registry.honest)
    assert update(anonymous, drogue, device) == ("1", released.content)
    (request,) = realm.requests
    assert "Authorization" not in request.headers
    assert request.path == (
        f"/token/{device}?service=registry.example&scope=repository%3A{device}%3Apull"  # pull, and nothing more
    )
    (token,) = realm.tokens
    assert authorizations(registry, device)[:3] == [None, f"Bearer {token}", f"Bearer {token}"]


def test_a_realm_may_be_at_another_host(
    anonymous: Function, drogue: Drogue, registry: FakeRegistry, device: str, released: Published
) -> None:
    with Server(lambda request: realm(request)) as elsewhere:
        realm = TokenRealm(f"{elsewhere.url}/auth?account=x")
        registry.answers[device] = realm.guard(device, registry.honest)
        assert is_served(anonymous, drogue, device, released)
        assert [request.path.partition("&")[0] for request in realm.requests] == ["/auth?account=x"]


def test_each_repository_has_a_token_of_its_own(
    anonymous: Function,
    drogue: Drogue,
    registry: FakeRegistry,
    device: str,
    released: Published,
    realm: TokenRealm,
) -> None:
    other = f"{device}-other"
    also_released = release(registry, drogue, other)
    for name in (device, other):
        registry.answers[name] = realm.guard(name, registry.honest)
    assert is_served(anonymous, drogue, device, released)
    assert is_served(anonymous, drogue, other, also_released)
    assert [token.scopes for token in realm.tokens.values()] == [
        (f"repository:{device}:pull",),
        (f"repository:{other}:pull",),
    ]
    assert set(authorizations(registry, device)).isdisjoint(set(authorizations(registry, other)) - {None})


def test_a_token_is_renewed_when_its_time_is_over(
    anonymous: Function, drogue: Drogue, registry: FakeRegistry, device: str, released: Published
) -> None:
    realm = at(registry, TokenRealm(f"{registry.url}/token/{device}", lifetime=1))
    registry.answers[device] = realm.guard(device, registry.honest)
    drogue.put_image("example", device, f"{device}:1", imagePullPolicy="Always")
    assert is_served(anonymous, drogue, device, released)
    time.sleep(1.05)
    assert post(anonymous, device, midway("1", 512)).outcome.startswith("write")
    assert len(realm.requests) == 2


@pytest.mark.usefixtures("released")
@pytest.mark.parametrize(
    ("challenge", "reason"),
    [
        (None, "answered 401 without asking for "),
        ("", "answered 401 without asking for "),
        ("Bearer", "asks for a token, but does not say where to get one"),
        ('Bearer realm=""', "asks for a token, but does not say where to get one"),
        ('Bearer realm="not a URL"', "the token realm is no http or https URL"),
        ('Bearer realm="http://user:s3cret@127.0.0.1/"', "the token realm is no http or https URL"),
        ('Bearer realm="http://127.0.0.1:99999/"', "malformed URL"),
        ("Negotiate s3cret==", "asks for negotiate"),
        ('Basic realm="x"', "no credentials are configured"),
        ('Digest realm="x", nonce="y"', "asks for digest"),
        (", ,,=,\x01\xff", "answered 401 without asking for "),
        (", ,,=,\x00\xff", "answer is not HTTP"),
        ("x" * 60_000, "asks for"),
    ],
)
def test_registry_that_asks_for_missing_credentials_fails(
    anonymous: Function, drogue: Drogue, registry: FakeRegistry, device: str, challenge: str | None, reason: str
) -> None:
    headers = {} if challenge is None else {"WWW-Authenticate": challenge}
    registry.answers[device] = always(Response(401, headers=headers))
    assert reason in failed(anonymous, device)
    assert [variant for variant, _ in told(drogue, device)] == ["wait"]


@pytest.mark.usefixtures("released")
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Response(200, b"<html>s3cret"), "no JSON object"),
        (Response(200, b'"s3cret"'), "no JSON object"),
        (Response(200, b"{}"), "no token that a header can carry"),
        (Response(200, b'{"token": ""}'), "no token that a header can carry"),
        (Response(200, b'{"token": "s3cret\\r\\nX: y"}'), "no token that a header can carry"),
        (Response(200, b'{"token": ["s3cret"]}'), "no token that a header can carry"),
        (Response(200, b'{"token": "s3cret\\u00e4"}'), "no token that a header can carry"),
        (Response(200, b'{"token": "' + b"s3cret" * 20_000 + b'"}'), "no token that a header can carry"),
        (Response(200, b" " * (4 * 1024 * 1024 + 1)), "answer larger than"),
        (Response(401), "no credentials are configured"),
        (Response(403), "no credentials are configured"),
        (Response(404), "token realm answered 404"),
        (Response(200, b'{"token": "s3cret-but-wrong"}'), "no credentials are configured"),
    ],
)
def test_a_realm_that_gives_no_token_fails(
    anonymous: Function, drogue: Drogue, registry: FakeRegistry, device: str, answer: Response, reason: str
) -> None:
    realm = TokenRealm(f"{registry.url}/token/{device}")
    registry.answers[device] = realm.guard(device, registry.honest)
    registry.answers[f"/token/{device}"] = always(answer)
    assert reason in failed(anonymous, device)
    assert [variant for variant, _ in told(drogue, device)] == ["wait"]


@pytest.mark.usefixtures("released")
def test_a_realm_that_never_ends_fails(
    anonymous: Function, registry: FakeRegistry, device: str, realm: TokenRealm
) -> None:
    registry.answers[device] = realm.guard(device, registry.honest)
    registry.answers[f"/token/{device}"] = endless(b"x" * 65536)
    assert "answer larger than" in failed(anonymous, device)


def test_credentials_are_not_sent_without_a_challenge(
    with_password: Function, drogue: Drogue, registry: FakeRegistry, device: str, realm: TokenRealm
) -> None:
    # Whoever was asked for a user name before says it at once; here a realm was the last to be asked.
    other = f"{device}-other"
    publish(registry.folder, other, "1", b"x" * 32)
    drogue.put_image("example", other, f"{other}:1")
    registry.answers[other] = realm.guard(other, registry.honest)
    assert post(with_password, other).outcome.startswith("write")
    released = publish(registry.folder, device, "1", random_bytes(3000, device))
    drogue.put_image("example", device, f"{device}:1")
    assert is_served(with_password, drogue, device, released)
    assert set(authorizations(registry, device)) == {None}


# --- A user name and a password


@pytest.mark.parametrize(
    "challenge", ['Basic realm="registry"', "basic", 'Negotiate, Basic realm="x, y", charset=UTF-8']
)
def test_a_registry_that_asks_for_a_password_gets_it(
    with_password: Function,
    drogue: Drogue,
    registry: FakeRegistry,
    device: str,
    released: Published,
    challenge: str,
) -> None:
    registry.answers[device] = guarded_by(basic(USER, PASSWORD), challenge, registry.honest)
    assert update(with_password, drogue, device) == ("1", released.content)
    assert set(authorizations(registry, device)) <= {None, basic(USER, PASSWORD)}


def test_a_realm_gets_the_password_and_the_registry_the_token(
    with_password: Function, drogue: Drogue, registry: FakeRegistry, device: str, released: Published
) -> None:
    realm = at(registry, TokenRealm(f"{registry.url}/token/{device}", credentials=(USER, PASSWORD)))
    registry.answers[device] = realm.guard(device, registry.honest)
    assert update(with_password, drogue, device) == ("1", released.content)
    (request,) = realm.requests
    assert request.headers["Authorization"] == basic(USER, PASSWORD)
    (token,) = realm.tokens
    assert f"Bearer {token}" in authorizations(registry, device)


@pytest.mark.usefixtures("released")
def test_wrong_passwords_fail(with_password: Function, drogue: Drogue, registry: FakeRegistry, device: str) -> None:
    registry.answers[device] = guarded_by(basic("somebody", "else"), 'Basic realm="registry"', registry.honest)
    assert failed(with_password, device) == "OCI registry HOST: our credentials were refused"
    assert not blocks(drogue, device)


@pytest.mark.usefixtures("released")
def test_passwords_that_a_realm_refuses_fail(
    with_password: Function, drogue: Drogue, registry: FakeRegistry, device: str
) -> None:
    realm = at(registry, TokenRealm(f"{registry.url}/token/{device}", credentials=("somebody", "else")))
    registry.answers[device] = realm.guard(device, registry.honest)
    assert failed(with_password, device) == "OCI registry HOST: our credentials were refused"
    assert len(realm.requests) == 1
    assert not blocks(drogue, device)


@pytest.mark.usefixtures("released")
def test_repository_without_access_fails(
    with_password: Function, drogue: Drogue, registry: FakeRegistry, device: str
) -> None:
    realm = at(registry, TokenRealm(f"{registry.url}/token/{device}", credentials=(USER, PASSWORD)))
    registry.answers[device] = realm.guard(device, always(Response(403, b'{"errors": [{"code": "DENIED"}]}')))
    assert failed(with_password, device) == "OCI registry HOST: our credentials were refused"
    assert not blocks(drogue, device)


def test_lost_access_ends_new_updates_despite_the_cache(
    with_password: Function, drogue: Drogue, registry: FakeRegistry, device: str, released: Published
) -> None:
    assert is_served(with_password, drogue, device, released)
    registry.answers[device] = guarded_by("nobody", 'Basic realm="registry"', registry.honest)
    time.sleep(1.05)
    assert failed(with_password, device) == "OCI registry HOST: our credentials were refused"


# --- A token, and Docker's configuration


def test_a_token_is_shown_to_the_registry_itself(
    with_token: Function, drogue: Drogue, registry: FakeRegistry, device: str, released: Published
) -> None:
    challenge = f'Bearer realm="{registry.url}/token/{device}",service="x"'
    registry.answers[device] = guarded_by(f"Bearer {BEARER}", challenge, registry.honest)
    assert update(with_token, drogue, device) == ("1", released.content)
    assert f"/token/{device}" not in {request.path for request in registry.requests}


@pytest.mark.usefixtures("released")
def test_a_token_that_is_refused_fails(with_token: Function, registry: FakeRegistry, device: str) -> None:
    challenge = f'Bearer realm="{registry.url}/token/{device}",service="x"'
    registry.answers[device] = guarded_by("Bearer other", challenge, registry.honest)
    assert failed(with_token, device) == "OCI registry HOST: our credentials were refused"


def test_a_token_in_a_file_is_the_one_that_it_holds_now(
    start: Start, drogue: Drogue, registry: FakeRegistry, device: str, tmp_path: Path
) -> None:
    released, file = release(registry, drogue, device), tmp_path / "token"
    file.write_text(f"{BEARER}-1\n")
    challenge = f'Bearer realm="{registry.url}/token/{device}",service="x"'
    for function in start(FIRMWARE_REGISTRY_TOKEN_FILE=str(file)):
        registry.answers[device] = guarded_by(f"Bearer {BEARER}-1", challenge, registry.honest)
        assert is_served(function, drogue, device, released)
        other = release(registry, drogue, f"{device}-other")
        registry.answers[f"{device}-other"] = guarded_by(f"Bearer {BEARER}-2", challenge, registry.honest)
        file.write_text(f"{BEARER}-2\n")
        assert is_served(function, drogue, f"{device}-other", other)
        third = f"{device}-third"
        release(registry, drogue, third)
        registry.answers[third] = guarded_by("nobody", challenge, registry.honest)
        file.unlink()
        assert failed(function, third) == f"OCI registry credentials: {file}: No such file or directory"
    assert f"/token/{device}" not in {request.path for request in registry.requests}


def test_credentials_come_from_dockers_configuration(
    with_docker_config: Function, drogue: Drogue, registry: FakeRegistry, device: str, released: Published
) -> None:
    registry.answers[device] = guarded_by(basic("docker", OTHER_PASSWORD), "Basic realm=x", registry.honest)
    assert update(with_docker_config, drogue, device) == ("1", released.content)


def test_credentials_that_were_renewed_in_dockers_configuration_are_the_ones(
    with_docker_config: Function,
    drogue: Drogue,
    registry: FakeRegistry,
    device: str,
    released: Published,
    docker_config: Path,
) -> None:
    before = (docker_config / "config.json").read_text()
    configure(docker_config, {registry.host: ("docker", "old"), f"{registry.host}/{device}": ("new", OTHER_PASSWORD)})
    registry.answers[device] = guarded_by(basic("new", OTHER_PASSWORD), "Basic realm=x", registry.honest)
    assert is_served(with_docker_config, drogue, device, released)
    (docker_config / "config.json").write_text(before)


@pytest.mark.usefixtures("released")
@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("s3cret {", "not JSON"),
        ('{"auths": {"HOST": {"auth": "s3cret!"}}}', "is not user:password in base64"),
        ('{"auths": {"HOST": {"identitytoken": "s3cret"}}}', "identity tokens are not supported"),
        ('{"credHelpers": {"HOST": "s3cret"}}', "credential helpers are not supported"),
        ('{"auths": {"other.example": {"auth": "czNjcmV0OnMzY3JldA=="}}}', "no credentials are configured"),
        (None, "no credentials are configured"),
    ],
)
def test_a_configuration_without_credentials_fails(
    with_docker_config: Function,
    registry: FakeRegistry,
    device: str,
    docker_config: Path,
    config: str | None,
    reason: str,
) -> None:
    path = docker_config / "config.json"
    before = path.read_text()
    path.unlink() if config is None else path.write_text(config.replace("HOST", registry.host))
    registry.answers[device] = guarded_by("nobody", "Basic realm=x", registry.honest)
    said = failed(with_docker_config, device)
    path.write_text(before)
    assert reason in said


def test_a_preview_shows_no_secret(
    with_password: Function, registry: FakeRegistry, device: str, released: Published
) -> None:
    registry.answers[device] = guarded_by("nobody", 'Basic realm="registry"', registry.honest)
    shown = with_password.post(event(device), b'{"version": "0"}', path="/preview")
    assert less_host(shown.json["reason"]) == "OCI registry HOST: our credentials were refused"
    assert not [secret for secret in SECRETS if secret.encode() in shown.body]
    assert released
