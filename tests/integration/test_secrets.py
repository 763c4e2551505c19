"""Servers that throw our own credentials back: nothing of them gets into a log, an answer, a report or an error."""

import base64
import gc
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any
from urllib.parse import quote, quote_plus

import cbor2
import pytest
from click.testing import CliRunner

from fleet_fn.cli.main import main
from fleet_fn.deadline import Deadline
from fleet_fn.http.client import HttpClient
from fleet_fn.http.messages import Answer as UpstreamAnswer
from fleet_fn.http.messages import Request as UpstreamRequest
from fleet_fn.parts import Parts
from fleet_fn.settings import Settings
from tests.support.drogue import Drogue
from tests.support.firmware import random_bytes
from tests.support.function import Answer, Function, event
from tests.support.hostile import raw
from tests.support.http import Request, Response, Server
from tests.support.oidc import CLIENT, SECRET, TOKEN_BEGINS, Provider
from tests.support.statuses import STATUS
from tests.support.token_realm import basic

#: Characters that encodings change; each secret in a place of its own, so that one that is found tells whose it is.
DROGUE = "dr0gue s3cret/é+&%"
OCI = "0ci s3cret/é+&%"
DOCKER = "d0cker s3cret/é+&%"
EVENTS = "3vents s3cret/é+&%"
EVENTS_TOKEN = "3vents-s3cret/+~="
#: What stands in a device's object besides, for the device to show.
DEVICE = "d3vice s3cret/é+&%"
USER = "fleet"
OIDC_BASIC = basic(quote_plus(CLIENT), quote_plus(SECRET))
SECRETS = [DROGUE, OCI, DOCKER, EVENTS, EVENTS_TOKEN, DEVICE, SECRET, TOKEN_BEGINS, OIDC_BASIC.partition(" ")[2]]


def spellings(secret: str) -> set[str]:
    """A secret as it may stand somewhere: as it is, in base64 (alone and after a user), percent-encoded, escaped."""
    encoded = {base64.b64encode(text.encode()).decode().rstrip("=") for text in (secret, f"{USER}:{secret}")}
    escaped = {json.dumps(secret)[1:-1], repr(secret)[1:-1], ascii(secret)[1:-1], secret.encode().decode("latin-1")}
    percent = {quote(secret), quote(secret, safe=""), quote_plus(secret)}
    return {secret} | encoded | escaped | percent | {quote(text, safe="") for text in encoded}


def told_in(text: str) -> list[str]:
    """The secrets that stand in a text, in whatever spelling."""
    return [secret for secret in SECRETS for spelling in spellings(secret) if spelling in text]


# --- What servers throw back ------------------------------------------------------------------------------------------

STATUSES = (200, 201, 302, 307, 400, 401, 403, 404, 409, 429, 500, 503)


def parrot(status: int, body: str = "{}") -> Callable[[Request], None]:
    """An answer with what the request carried as credentials in its reason phrase, in headers, and in its body."""

    def answer(request: Request) -> None:
        shown = request.headers.get("Authorization", "nothing")
        secret = shown.partition(" ")[2] or shown
        try:
            plain = base64.b64decode(secret, validate=True).decode("latin-1")
        except ValueError:
            plain = secret
        content = body.replace("{}", json.dumps({"error": plain, "message": shown})).replace("SHOWN", shown)
        lines = [
            f"HTTP/1.1 {status} {plain}",
            f"Location: http://127.0.0.1:1/{quote(plain, safe='')}?{secret}",
            f'WWW-Authenticate: {secret} realm="{secret}", Bearer realm="http://u:{secret}@127.0.0.1:1/{secret}"',
            f"Retry-After: {plain}",
            f"Docker-Content-Digest: sha256:{secret}",
            f"X-Said: {plain}",
            f"Content-Type: application/{secret}",
            f"Content-Length: {len(content.encode())}",
            "Connection: close",
        ]
        raw("\r\n".join([*lines, "", content]).encode("latin-1", "replace"))(request)

    return answer


def malformed(answer: str) -> Callable[[Request], None]:
    """An answer that is not quite HTTP, or whose body is not what it says, with the credentials where it breaks."""

    def send(request: Request) -> None:
        shown = request.headers.get("Authorization", "nothing")
        raw(answer.replace("SHOWN", shown).encode("latin-1", "replace"))(request)

    return send


#: Faults by what they are called.
FAULTS: dict[str, Callable[[Request], Response | None]] = {
    **{f"answers {status}": parrot(status) for status in STATUSES},
    "a JSON string": parrot(200, '"SHOWN"'),
    "no JSON": parrot(200, "SHOWN"),
    "JSON cut short": parrot(200, '{"access_token": "SHOWN", "token": "SHOWN", "spec": "SHOWN'),
    "a token that no header carries": parrot(200, '{"access_token": "SHOWN\\r\\n", "token": "SHOWN\\r\\n"}'),
    "a token of another type": parrot(200, '{"access_token": "x", "token_type": "SHOWN"}'),
    "an object of another shape": parrot(200, '{"metadata": {}, "spec": {"firmware": {"container": "SHOWN"}}}'),
    "not UTF-8": malformed('HTTP/1.1 200 OK\r\nContent-Length: 30\r\n\r\n"\xff SHOWN padding padding padding'),
    "no HTTP": malformed("SHOWN\r\n\r\n"),
    "a status that is none": malformed("HTTP/1.1 SHOWN\r\n\r\n"),
    "a version that is none": malformed("HTTP/SHOWN 200 OK\r\n\r\n"),
    "a header without a colon": malformed("HTTP/1.1 200 OK\r\nSHOWN\r\n\r\n{}"),
    "a length that is none": malformed("HTTP/1.1 200 OK\r\nContent-Length: SHOWN\r\n\r\nSHOWN"),
    "a chunk that is none": malformed("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nSHOWN\r\nSHOWN\r\n"),
    "a coding that is none": malformed("HTTP/1.1 200 OK\r\nTransfer-Encoding: SHOWN\r\n\r\nSHOWN"),
    "cut short": malformed("HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\nSHOWN"),
}


@dataclass
class Place:
    """A function, its upstreams, and all that it has answered."""

    function: Function
    drogue: Drogue
    authorization: str
    answers: list[Answer] = field(default_factory=list)

    def status(self, device: str, authorization: str | None = None, path: str = "/") -> Answer:
        headers = {"Authorization": self.authorization if authorization is None else authorization}
        attributes = event(device, datacontenttype="application/cbor")
        answer = self.function.post(attributes, cbor2.dumps(STATUS), headers=headers, path=path)
        self.answers.append(answer)
        return answer


class Registry:
    """An OCI registry that wants to see credentials, and then does what a test wants."""

    def __init__(self) -> None:
        self.fault: Callable[[Request], Response | None] = parrot(500)
        self.realm_fault: Callable[[Request], Response | None] | None = None
        self.server = Server(self._answer)

    def _answer(self, request: Request) -> Response | None:
        if request.path.startswith("/token") and self.realm_fault:
            return self.realm_fault(request)
        if "Authorization" in request.headers:
            return self.fault(request)
        realm = f'Bearer realm="{self.server.url}/token"' if self.realm_fault else 'Basic realm="x"'
        return Response(401, headers={"WWW-Authenticate": realm})


@pytest.fixture(scope="module")
def registry() -> Iterator[Registry]:
    registry = Registry()
    with registry.server:
        yield registry


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with Provider() as provider:
        yield provider


@pytest.fixture(scope="module", params=["text", "json"])
def place(
    request: pytest.FixtureRequest, registry: Registry, provider: Provider, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    """With passwords everywhere, and with tokens where there may be some."""
    folder = tmp_path_factory.mktemp("place")
    auth = base64.b64encode(f"{USER}:{DOCKER}".encode()).decode()
    (folder / "config.json").write_text(json.dumps({"auths": {registry.server.url: {"auth": auth}}}))
    has_tokens = request.param == "json"
    environment = {
        "FIRMWARE_REGISTRY": registry.server.url.removeprefix("http://"),
        "FIRMWARE_REGISTRY_INSECURE": "true",
        "FIRMWARE_CACHE_DIR": str(folder / "cache"),
        "LOG_FORMAT": request.param,
    }
    if has_tokens:
        environment |= {"DOCKER_CONFIG": str(folder), "EVENTS_TOKEN": EVENTS_TOKEN, **provider.environment}
        authorization = f"Bearer {EVENTS_TOKEN}"
    else:
        environment |= {"FIRMWARE_REGISTRY_USER": USER, "FIRMWARE_REGISTRY_TOKEN": OCI}
        environment |= {"EVENTS_USER": USER, "EVENTS_PASSWORD": EVENTS, "DROGUE_USER": USER, "DROGUE_TOKEN": DROGUE}
        authorization = basic(USER, EVENTS)

    def accepts(request: Request) -> bool:
        ours = basic(USER, DROGUE)
        return provider.accepts(request) if has_tokens else request.headers.get("Authorization") == ours

    with Drogue(accepts) as drogue:
        drogue.put("example", spec={})
        with Function({"DROGUE_API_URL": drogue.url, **environment}) as function:
            place = Place(function, drogue, authorization)
            yield place
            assert function.logged("retry"), "the log is what is looked at"
            errors = function.errors
        log = "".join(function.log)
        assert "Traceback" not in log + errors.partition("Booting worker")[2]
        assert not told_in(log + errors)
    for answer in place.answers:
        assert not told_in(str(answer.headers) + answer.body.decode())


def device_of(place: Place, image: str | None = None) -> str:
    """A device that nobody else uses, with a password in its object."""
    device = f"device-{len(place.answers)}"
    firmware = {"firmware": {"container": {"image": image}}} if image else {}
    place.drogue.put("example", device, spec={"authentication": {"credentials": [{"pass": DEVICE}]}, **firmware})
    return device


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_drogue_cloud_throws_back(place: Place, fault: str) -> None:
    reads, commands, writes = device_of(place), f"{fault} commands", f"{fault} writes"
    place.drogue.registry_answers["example", reads] = FAULTS[fault]
    place.status(reads)
    place.status(reads, path="/preview")
    place.drogue.put("example", commands, spec={})
    place.drogue.command_answers[commands] = FAULTS[fault]
    place.status(commands)
    place.drogue.put("example", writes, spec={"firmware": {"container": {"image": "/"}}})
    place.drogue.write_answers["example", writes] = FAULTS[fault]
    assert place.status(writes).status == 422
    assert place.drogue.writes_of("example", writes)


@pytest.mark.parametrize("realm", [False, True], ids=["registry", "realm"])
@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_the_registry_throws_back(place: Place, registry: Registry, fault: str, realm: bool) -> None:
    if realm:
        registry.realm_fault = FAULTS[fault]
    else:
        registry.realm_fault, registry.fault = None, FAULTS[fault]
    before = len(registry.server.requests)
    device = device_of(place, f"{'realm' if realm else 'image'}-{len(place.answers)}:1")
    assert place.status(device).outcome.startswith(("failed", "retry"))
    shown = {request.headers.get("Authorization") for request in registry.server.requests[before:]}
    assert shown & {basic(USER, OCI), basic(USER, DOCKER)}, "the fault saw no credentials"
    assert not told_in(json.dumps(place.drogue.object("example", device).get("status")))


def test_events_with_other_credentials_are_told_nothing_of_ours(place: Place) -> None:
    wrong = ["", "Basic", "Basic !", "Bearer", basic(USER, "wrong"), basic("", ""), "Bearer wrong", "Digest x"]
    for authorization in [*wrong, f"{place.authorization}x", f"{place.authorization},Bearer wrong"]:
        assert place.status("device1", authorization).status == 401
        assert place.status("device1", authorization, path="/preview").status == 401


# --- The command line -------------------------------------------------------------------------------------------------


def said(environment: dict[str, str], *arguments: str) -> str:
    """What a command says that fails."""
    ended = CliRunner().invoke(main, arguments, env={"DROGUE_API_URL": "", "DOCKER_CONFIG": "", **environment})
    assert ended.exit_code in (1, 2), ended.output
    assert ended.exception is None or isinstance(ended.exception, SystemExit), ended.exception
    return ended.output


# What a command leaves open ends with its process, elsewhere than here.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("fault", FAULTS)
def test_commands_do_not_say_what_was_thrown_back_at_them(registry: Registry, tmp_path: Path, fault: str) -> None:
    firmware = tmp_path / "firmware.bin"
    firmware.write_bytes(random_bytes(64))
    with Server(FAULTS[fault]) as server:
        registry.realm_fault, registry.fault = None, FAULTS[fault]
        drogue = {"DROGUE_API_URL": server.url}
        grant = {
            "DROGUE_OIDC_TOKEN_URL": f"{server.url}/token",
            "DROGUE_OIDC_CLIENT_ID": CLIENT,
            "DROGUE_OIDC_CLIENT_SECRET": SECRET,
        }
        credentials = {"FIRMWARE_REGISTRY_USER": USER, "FIRMWARE_REGISTRY_TOKEN": OCI}
        image = f"{registry.server.url.removeprefix('http://')}/acme/sensor:1"
        device = ["--url", server.url, "--application", "a", "--device", "d", "--password", DEVICE, "--once"]
        told = [
            said({**drogue, "DROGUE_USER": USER, "DROGUE_TOKEN": DROGUE}, "fleet", "--application", "a"),
            said({**drogue, **grant}, "fleet", "--application", "a"),
            said(credentials, "inspect", image, "--insecure"),
            said(credentials, "publish", str(firmware), image, "--version", "1", "--insecure"),
            said({}, "device", *device, "--speed", "1000"),
        ]
    assert all(told)
    assert not told_in("\n".join(told))
    gc.collect()  # so that no other test hears of it


# --- What could be printed --------------------------------------------------------------------------------------------


def test_nothing_that_holds_a_secret_shows_it(tmp_path: Path, provider: Provider) -> None:
    """Whatever the function is made of may end up in an error some day."""
    (tmp_path / "config.json").write_text("{}")
    environment = {
        "DROGUE_API_URL": "http://127.0.0.1:1",
        "FIRMWARE_REGISTRY": "127.0.0.1:1/acme",
        "FIRMWARE_CACHE_DIR": str(tmp_path),
        "EVENTS_USER": USER,
        "EVENTS_PASSWORD": EVENTS,
        "EVENTS_TOKEN": EVENTS_TOKEN,
        "FIRMWARE_REGISTRY_USER": USER,
        "FIRMWARE_REGISTRY_TOKEN": OCI,
    }
    for drogue in ({"DROGUE_USER": USER, "DROGUE_TOKEN": DROGUE}, provider.environment):
        settings = Settings.from_environment(environment | drogue)
        parts = Parts(settings)
        assert not told_in(repr(settings))
        holders = list(parts_of(parts))
        assert len(holders) > 20
        assert not [type(part) for part in holders if told_in(repr(part))]


def parts_of(*roots: object) -> Iterator[object]:
    """All objects of the project's classes that one can get at from some."""
    pending, seen = list(roots), set()
    while pending:
        each = pending.pop()
        if id(each) in seen or isinstance(each, type | ModuleType):
            continue
        seen.add(id(each))
        if type(each).__module__.startswith("fleet_fn"):
            yield each
        # Of a function only what it closes over: by its module one gets at everything.
        pending += (each.__closure__ or ()) if isinstance(each, FunctionType) else gc.get_referents(each)


def test_neither_a_request_nor_an_answer_shows_what_it_carries() -> None:
    shown: list[Any] = []
    with Server(lambda _: Response(200, EVENTS_TOKEN.encode())) as server:
        upstream = HttpClient("x", server.url)
        shown.append(upstream.request("GET", "/", Deadline(10)))
        upstream.close()
    assert isinstance(shown[0], UpstreamAnswer)
    assert shown[0].body == EVENTS_TOKEN.encode()
    shown.append(UpstreamRequest("POST", "/", {"Authorization": basic(USER, DROGUE)}, SECRET.encode(), True))
    assert not told_in(repr(shown))
