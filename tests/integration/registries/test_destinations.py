"""Requests go to the configured registry, and after redirects to public hosts only, without credentials."""

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from tests.support.drogue import Drogue
from tests.support.fake_registry import FakeRegistry, less_host, release, running
from tests.support.firmware import Published, publish, random_bytes
from tests.support.function import Function, event
from tests.support.hostile import always, redirect
from tests.support.http import Request, Response, Server
from tests.support.statuses import blocks, post, told
from tests.support.token_realm import basic, guarded_by

USER, PASSWORD = "robot", "s3cret-password"


@pytest.fixture(scope="module")
def function(drogue: Drogue, registry: FakeRegistry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Function]:
    """A function with credentials."""
    environment = {"FIRMWARE_REGISTRY_USER": USER, "FIRMWARE_REGISTRY_TOKEN": PASSWORD}
    with running(drogue, registry, tmp_path_factory.mktemp("cache"), **environment) as function:
        yield function


@pytest.fixture
def released(registry: FakeRegistry, drogue: Drogue, device: str) -> Published:
    """What the device should run; the registry wants to see credentials for it."""
    registry.answers[device] = guarded_by(basic(USER, PASSWORD), 'Basic realm="registry"', registry.honest)
    return release(registry, drogue, device)


class Elsewhere(Server):
    """Another server, which has a blob."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(lambda _: Response(200, self.content), tls)
        self.content = b""


@pytest.fixture
def elsewhere(released: Published) -> Iterator[Elsewhere]:
    with Elsewhere() as server:
        server.content = released.content
        yield server


def send_on(registry: FakeRegistry, device: str, location: str, status: int = 307) -> None:
    """Has the registry redirect whoever shows credentials for a blob."""
    answer = always(redirect(location, status))
    registry.answers[f"{device}/blobs"] = guarded_by(basic(USER, PASSWORD), 'Basic realm="registry"', answer)


def is_served(function: Function, drogue: Drogue, device: str, released: Published) -> bool:
    assert post(function, device).outcome.startswith("write")
    return blocks(drogue, device) == [(0, released.content[:512])]


def failed(function: Function, drogue: Drogue, device: str) -> str:
    answer = post(function, device)
    assert answer.status == 422, answer.outcome
    assert [variant for variant, _ in told(drogue, device)] == ["wait"]
    return less_host(answer.reason)


# --- Blobs that are somewhere else


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_blob_is_fetched_from_where_the_registry_says_it_is_and_credentials_stay_behind(
    function: Function,
    drogue: Drogue,
    registry: FakeRegistry,
    device: str,
    released: Published,
    elsewhere: Elsewhere,
    status: int,
) -> None:
    send_on(registry, device, f"{elsewhere.url}/bucket/{device}?X-Amz-Signature=a%2Fb%3D&x=y%20z", status)
    assert is_served(function, drogue, device, released)
    (request,) = elsewhere.requests
    assert (request.method, request.path) == ("GET", f"/bucket/{device}?X-Amz-Signature=a%2Fb%3D&x=y%20z")
    assert not {"authorization", "cookie"} & {header.lower() for header in request.headers}
    assert PASSWORD not in str(request.headers)
    assert request.headers["Host"] == elsewhere.url.removeprefix("http://")


@pytest.mark.parametrize("status", [401, 403])
def test_a_host_that_wants_credentials_for_what_is_elsewhere_gets_none(
    function: Function,
    drogue: Drogue,
    registry: FakeRegistry,
    device: str,
    elsewhere: Elsewhere,
    status: int,
) -> None:
    elsewhere.answer = always(Response(status, headers={"WWW-Authenticate": 'Basic realm="registry"'}))
    send_on(registry, device, f"{elsewhere.url}/blob")
    assert failed(function, drogue, device) == f"OCI registry HOST, sent to 127.0.0.1: answered {status} for a blob"
    (request,) = elsewhere.requests
    assert "Authorization" not in request.headers


@pytest.mark.parametrize(
    ("location", "path"),
    [
        ("/elsewhere/{device}", "/elsewhere/{device}"),
        ("../../../../elsewhere/{device}", "/elsewhere/{device}"),
        ("?elsewhere", "/v2/{device}/blobs/{digest}?elsewhere"),
        ("{url}/elsewhere/{device}#fragment", "/elsewhere/{device}"),
        ("//{host}/elsewhere/{device}", "/elsewhere/{device}"),
        ("/elsewhere/{device} with/sp\xe4ces", "/elsewhere/{device}%20with/sp%C3%A4ces"),
    ],
)
def test_even_at_the_same_host_credentials_stay_behind(
    function: Function,
    drogue: Drogue,
    registry: FakeRegistry,
    device: str,
    released: Published,
    location: str,
    path: str,
) -> None:
    digest = f"sha256:{released.checksum.hex()}"
    names = {"device": device, "digest": digest, "url": registry.url, "host": registry.host}
    expected = path.format(**names)
    seen: list[Request] = []

    def blob(request: Request) -> Response:
        if request.path == expected:
            seen.append(request)
            return Response(200, released.content)
        return redirect(location.format(**names))

    registry.answers[f"{device}/blobs"] = blob
    registry.answers[expected.partition("?")[0]] = blob
    assert is_served(function, drogue, device, released)
    (request,) = seen
    assert "Authorization" not in request.headers


@pytest.mark.parametrize(("hops", "follows"), [(5, True), (6, False), (1000, False)])
def test_five_redirects_are_followed(
    function: Function,
    drogue: Drogue,
    registry: FakeRegistry,
    device: str,
    released: Published,
    elsewhere: Elsewhere,
    hops: int,
    follows: bool,
) -> None:
    def hop(request: Request) -> Response:
        number = int(request.path.rpartition("/")[2])
        return redirect(f"/hop/{number + 1}") if number < hops else Response(200, released.content)

    elsewhere.answer = hop
    send_on(registry, device, f"{elsewhere.url}/hop/1")
    if follows:
        assert is_served(function, drogue, device, released)
    else:
        assert failed(function, drogue, device) == "OCI registry HOST: more than 5 redirects for a blob"
    assert len(elsewhere.requests) == 5


@pytest.mark.usefixtures("released")
def test_redirects_in_a_circle_end(function: Function, drogue: Drogue, registry: FakeRegistry, device: str) -> None:
    registry.answers[f"{device}/blobs"] = lambda request: redirect(request.path)
    assert failed(function, drogue, device) == "OCI registry HOST: more than 5 redirects for a blob"


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("http://169.254.169.254/latest/meta-data/", "no address that requests may go to"),
        ("http://[fe80::1]/", "no address that requests may go to"),
        ("http://[::ffff:169.254.169.254]/", "no address that requests may go to"),
        ("http://2852039166/", "no address that requests may go to"),
        ("http://0xa9fea9fe/", "no address that requests may go to"),
        ("http://0251.0376.0251.0376/", "no address that requests may go to"),
        ("http://169.254.43518/", "no address that requests may go to"),
        ("http://224.0.0.1/", "no address that requests may go to"),
        ("http://255.255.255.255/", "no address that requests may go to"),
        ("//169.254.169.254/latest/", "no address that requests may go to"),
        ("file:///etc/passwd", "a URL that is not http or https"),
        ("ftp://127.0.0.1/blob", "a URL that is not http or https"),
        ("http://user:password@127.0.0.1/", "a URL that is not http or https"),
        ("javascript:alert(1)", "a URL that is not http or https"),
        ("http://[::1/", "malformed URL"),
        ("http://127.0.0.1:99999/", "malformed URL"),
        ("http://127.0.0.1:port/", "malformed URL"),
        ("http://" + "a" * 64 + ".example/", "malformed URL"),
        ("", "answered 307"),
    ],
)
@pytest.mark.usefixtures("released")
def test_a_redirect_to_where_no_request_may_go_fails(
    function: Function, drogue: Drogue, registry: FakeRegistry, device: str, location: str, reason: str
) -> None:
    send_on(registry, device, location)
    said = failed(function, drogue, device)
    assert reason in said
    assert "password" not in said


@pytest.mark.usefixtures("released")
def test_a_realm_where_no_request_may_go_fails(
    function: Function, drogue: Drogue, registry: FakeRegistry, device: str
) -> None:
    challenge = 'Bearer realm="http://169.254.169.254/latest/api/token",service="x"'
    registry.answers[device] = always(Response(401, headers={"WWW-Authenticate": challenge}))
    assert "169.254.169.254: no address that requests may go to" in failed(function, drogue, device)


@pytest.mark.usefixtures("released")
def test_a_manifest_is_not_fetched_from_elsewhere(
    function: Function, drogue: Drogue, registry: FakeRegistry, device: str, elsewhere: Elsewhere
) -> None:
    registry.answers[f"{device}/manifests"] = always(redirect(elsewhere.url))
    assert failed(function, drogue, device) == "OCI registry HOST: answered 307"
    assert not elsewhere.requests


@pytest.mark.usefixtures("released")
def test_a_redirect_for_a_token_is_not_followed(
    function: Function, drogue: Drogue, registry: FakeRegistry, device: str, elsewhere: Elsewhere
) -> None:
    challenge = f'Bearer realm="{registry.url}/token/{device}"'
    registry.answers[device] = always(Response(401, headers={"WWW-Authenticate": challenge}))
    registry.answers[f"/token/{device}"] = always(redirect(elsewhere.url))
    assert "token realm answered 307" in failed(function, drogue, device)
    assert not elsewhere.requests


# --- References


@pytest.mark.parametrize(
    "image",
    [
        "//x",
        "/x",
        "x/",
        "x//y",
        "..",
        "../x",
        "x/../y",
        "x/..",
        ".",
        "x/./y",
        "http://evil.example/x",
        "evil.example:80/x",
        "@evil.example/x",
        "user@evil.example/x",
        "x:1@evil.example",
        "x@sha256:{zeros}/../y",
        "x@sha256:{zeros}?x",
        "x@sha512:{zeros}{zeros}",
        "x@",
        "x:",
        "x:1/../y",
        "x:1?y",
        "x:1#y",
        "x?y",
        "x#y",
        "x%2f..%2fy",
        "x\\y",
        "x y",
        "x\ty",
        "x\r\nHost: evil.example",
        "x:1\r\nX: y",
        "X",
        "ï",
        "\N{FULLWIDTH FULL STOP}\N{FULLWIDTH FULL STOP}/x",
        "a" * 256,
        "{application}",
    ],
)
def test_no_reference_leads_to_where_the_operator_has_not_said(
    function: Function, drogue: Drogue, registry: FakeRegistry, device: str, image: str
) -> None:
    asked = len(registry.requests)
    drogue.put_image("example", device, image.replace("{zeros}", "0" * 64))
    assert failed(function, drogue, device).startswith("invalid reference")
    assert len(registry.requests) == asked


@pytest.mark.parametrize("image", ["evil.example/x", "localhost/x", "evil.example", "evil.example:80", "127.0.0.1/x:1"])
def test_host_like_name_is_a_repository_of_the_registry(
    function: Function, drogue: Drogue, registry: FakeRegistry, device: str, image: str
) -> None:
    drogue.put_image("example", device, image)
    name, _, tag = image.partition(":")
    assert failed(function, drogue, device) == f"OCI registry HOST: no tag {tag or 'latest'} in {name}"
    assert registry.asked(name)[-1] == f"GET manifests/{tag or 'latest'}"


def test_application_gets_only_repositories_below_its_name(
    drogue: Drogue, registry: FakeRegistry, device: str, tmp_path: Path
) -> None:
    publish(registry.folder, f"acme/{device}/app", "1", random_bytes(3000, device))
    with running(drogue, registry, tmp_path, FIRMWARE_REGISTRY=f"{registry.host}/acme/{{application}}") as function:
        for application, outcome in (
            (device, "write"),
            (f"{device}-evil", f'failed; reason="OCI registry {registry.host}: no tag 1 in acme/{device}-evil/app"'),
            (f"{device}/..", "failed"),
            ("..", "failed"),
            ("x@y", "failed"),
        ):
            drogue.put(application, spec={"firmware": {"container": {"image": "app:1"}}})
            drogue.put(application, "thing", spec={})
            answer = function.post(event("thing", application), b'{"version": "0"}')
            assert answer.outcome.startswith(outcome), application
    assert {request.path.split("/")[2] for request in registry.requests if "/app/" in request.path} == {"acme"}


# --- TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def certified(authority: trustme.CA) -> ssl.SSLContext:
    """What a server on loopback speaks TLS with."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.fixture(scope="module")
def secure(certified: ssl.SSLContext, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeRegistry]:
    """A registry that speaks TLS."""
    with FakeRegistry(tmp_path_factory.mktemp("registry"), certified) as registry:
        yield registry


@pytest.fixture(scope="module")
def secured(
    drogue: Drogue, secure: FakeRegistry, authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Function]:
    """A function that reads from it."""
    ca_file = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    environment = {"FIRMWARE_REGISTRY_CA_FILE": str(ca_file)}
    with running(drogue, secure, tmp_path_factory.mktemp("cache"), **environment) as function:
        yield function


@pytest.fixture
def securely_released(secure: FakeRegistry, drogue: Drogue, device: str) -> Published:
    return release(secure, drogue, device)


def test_with_tls_a_blob_may_be_at_another_host_that_speaks_it(
    secured: Function,
    drogue: Drogue,
    secure: FakeRegistry,
    device: str,
    securely_released: Published,
    certified: ssl.SSLContext,
) -> None:
    with Elsewhere(certified) as elsewhere:
        elsewhere.content = securely_released.content
        secure.answers[f"{device}/blobs"] = always(redirect(f"{elsewhere.url}/blob"))
        assert is_served(secured, drogue, device, securely_released)
        assert len(elsewhere.requests) == 1


def test_with_tls_nothing_is_fetched_without(
    secured: Function, drogue: Drogue, secure: FakeRegistry, device: str, securely_released: Published
) -> None:
    with Elsewhere() as elsewhere:
        elsewhere.content = securely_released.content
        secure.answers[f"{device}/blobs"] = always(redirect(f"{elsewhere.url}/blob"))
        reason = "OCI registry HOST: sends us to http://127.0.0.1, and plain HTTP is not allowed"
        assert failed(secured, drogue, device) == reason
        assert not elsewhere.requests


def test_with_tls_no_token_is_fetched_without(
    secured: Function, drogue: Drogue, secure: FakeRegistry, device: str, securely_released: Published
) -> None:
    with Elsewhere() as elsewhere:
        elsewhere.content = securely_released.content
        challenge = f'Bearer realm="{elsewhere.url}/token"'
        secure.answers[device] = always(Response(401, headers={"WWW-Authenticate": challenge}))
        assert "plain HTTP is not allowed" in failed(secured, drogue, device)
        assert not elsewhere.requests


@pytest.mark.usefixtures("securely_released")
def test_host_with_untrusted_certificate_gets_no_request(
    secured: Function, drogue: Drogue, secure: FakeRegistry, device: str
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    with Elsewhere(context) as elsewhere:
        secure.answers[f"{device}/blobs"] = always(redirect(f"{elsewhere.url}/blob"))
        assert failed(secured, drogue, device).startswith(
            "OCI registry HOST, sent to 127.0.0.1: certificate not trusted"
        )
        assert not elsewhere.requests


def test_registry_with_untrusted_certificate_gets_no_credentials(
    drogue: Drogue, secure: FakeRegistry, device: str, tmp_path: Path, securely_released: Published
) -> None:
    asked = len(secure.requests)
    with running(drogue, secure, tmp_path, FIRMWARE_REGISTRY_TOKEN=PASSWORD) as function:
        assert failed(function, drogue, device).startswith("OCI registry HOST: certificate not trusted")
    assert len(secure.requests) == asked
    assert securely_released
