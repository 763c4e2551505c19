"""Publishing to registries that are strict, peculiar or broken, and to servers that are no registry."""

import base64
import hashlib
import json
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs, urlsplit

import pytest

from fleet_fn.errors import PermanentError, TransientError, UpstreamError
from fleet_fn.oci.access import Access, registry_reference
from fleet_fn.oci.docker_config import Credentials
from fleet_fn.oci.manifest import HARDWARE_ANNOTATION
from fleet_fn.oci.publication import Published
from fleet_fn.oci.publishing import publish_to_registry
from tests.support.firmware import random_bytes
from tests.support.http import Request, Response, Server, closed_port

CONTENT = random_bytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
VERSION = {"org.opencontainers.image.version": "1.2.3"}
ME = Credentials("me", "s3cret")
BASIC = "Basic " + base64.b64encode(b"me:s3cret").decode()
EMPTY_DIGEST = f"sha256:{hashlib.sha256(b'{}').hexdigest()}"


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@dataclass
class Registry:
    """A repository `pump`, in memory; `special` may answer in its place."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, bytes] = field(default_factory=dict)
    special: Callable[[Request], Response | None] = lambda _: None
    #: Where uploads are sent to.
    location: str = "/upload/1?state=x%2By"
    port: int = 0
    requests: list[Request] = field(default_factory=list)

    def __call__(self, request: Request) -> Response:
        self.requests.append(request)
        return self.special(request) or self.answer(request)

    def answer(self, request: Request) -> Response:
        url = urlsplit(request.path)
        kind, _, name = url.path.removeprefix("/v2/pump/").partition("/")
        if request.method == "POST":
            return Response(202, headers={"Location": self.location})
        if request.method == "PUT" and kind == "manifests":
            self.manifests[name] = request.body
            return Response(201)
        if request.method == "PUT":
            (digest,) = parse_qs(url.query)["digest"]
            assert digest == digest_of(request.body)
            self.blobs[digest] = request.body
            return Response(201)
        if kind == "tags":
            return Response(200, json.dumps({"name": "pump", "tags": list(self.manifests)}).encode())
        content = (self.manifests if kind == "manifests" else self.blobs).get(name)
        if content is None:
            return Response(404)
        headers = {"Docker-Content-Digest": digest_of(content)}
        return Response(200, b"" if request.method == "HEAD" else content, headers)

    def asked(self, *methods: str) -> list[str]:
        """What was asked of it with these methods, in that order, without what leads to the repository."""
        return [
            f"{request.method} {request.path.removeprefix('/v2/pump/')}"
            for request in self.requests
            if not methods or request.method in methods
        ]


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("no_proxy", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def registry() -> Iterator[Registry]:
    registry = Registry()
    with Server(registry) as server:
        registry.port = server.port
        yield registry


def publish(
    registry: Registry | int,
    tag: str = "1.2.3",
    *,
    content: bytes = CONTENT,
    credentials: Credentials | None = None,
    latest: bool = False,
    force: bool = False,
    hardware: str | None = None,
) -> Published:
    port = registry if isinstance(registry, int) else registry.port
    return publish_to_registry(
        registry_reference(f"127.0.0.1:{port}/pump:{tag}"),
        BytesIO(content),
        {**VERSION, HARDWARE_ANNOTATION: hardware} if hardware else VERSION,
        access=Access(insecure=True, credentials=credentials),
        latest=latest,
        force=force,
    )


def reason(
    registry: Registry | int, kind: type[UpstreamError] = PermanentError, credentials: Credentials | None = None
) -> str:
    """Return the reason of a failed publication without the host at its beginning."""
    with pytest.raises(UpstreamError) as failed:
        publish(registry, credentials=credentials)
    assert isinstance(failed.value, kind)
    text = failed.value.reason
    assert text.isprintable()
    assert "s3cret" not in text
    port = registry if isinstance(registry, int) else registry.port
    assert text.startswith(f"127.0.0.1:{port}: ")
    return text.removeprefix(f"127.0.0.1:{port}: ")


def answering(method: str, path: str, response: Response) -> Callable[[Request], Response | None]:
    """The same answer to every such request; the path may be a regular expression."""
    return lambda request: response if request.method == method and re.search(path, request.path) else None


def error(code: str, message: str) -> bytes:
    return json.dumps({"errors": [{"code": code, "message": message}]}).encode()


# --- What is sent, and in which order ---------------------------------------------------------------------------------


def test_blobs_come_before_the_manifest_that_names_them_and_latest_is_the_last(registry: Registry) -> None:
    published = publish(registry, latest=True)
    assert registry.blobs == {f"sha256:{SHA256}": CONTENT, EMPTY_DIGEST: b"{}"}
    assert digest_of(registry.manifests["1.2.3"]) == published.digest
    assert registry.manifests["latest"] == registry.manifests["1.2.3"]
    assert registry.asked("PUT") == [
        f"PUT /upload/1?state=x%2By&digest=sha256:{SHA256}",
        f"PUT /upload/1?state=x%2By&digest={EMPTY_DIGEST}",
        "PUT manifests/1.2.3",
        "PUT manifests/latest",
    ]


def test_blob_that_the_registry_has_is_not_uploaded_again(registry: Registry) -> None:
    publish(registry)
    publish(registry)
    assert len([asked for asked in registry.asked("PUT") if "/upload" in asked]) == 2


def test_latest_stays_where_it_is_unless_the_other_tag_was_moved(registry: Registry) -> None:
    registry.special = answering("PUT", "manifests/1.2.3", Response(400, error("MANIFEST_INVALID", "no")))
    with pytest.raises(PermanentError, match=r"answered 400 to a PUT \(MANIFEST_INVALID: no\)"):
        publish(registry, latest=True)
    assert registry.manifests == {}


@pytest.mark.parametrize(
    ("location", "asked"),
    [
        ("/upload/1", "/upload/1?digest="),
        ("/upload/1?a=b", "/upload/1?a=b&digest="),
        ("http://127.0.0.1:{port}/upload/1", "/upload/1?digest="),
        ("1?a=b", "/v2/pump/blobs/uploads/1?a=b&digest="),
    ],
)
def test_uploads_go_where_the_registry_sends_them(registry: Registry, location: str, asked: str) -> None:
    registry.location = location.format(port=registry.port)
    publish(registry)
    uploads = [request.path for request in registry.requests if request.method == "PUT" and request.path != "manifests"]
    assert uploads[0] == f"{asked}sha256:{SHA256}"


def test_a_blob_that_the_registry_keeps_elsewhere_is_there(registry: Registry) -> None:
    with Server(lambda _: Response(200)) as elsewhere:
        registry.special = answering("HEAD", "blobs/", Response(307, headers={"Location": f"{elsewhere.url}/blob"}))
        publish(registry, credentials=ME)
        assert not [request for request in elsewhere.requests if "Authorization" in request.headers]
    assert registry.blobs == {}


def test_a_registry_need_not_tell_digests(registry: Registry) -> None:
    registry.special = lambda request: (
        Response(200) if request.method == "HEAD" and "manifests" in request.path and registry.manifests else None
    )
    assert publish(registry).sha256 == SHA256


def test_tag_that_names_another_manifest_afterwards_is_reported(registry: Registry) -> None:
    other = {"Docker-Content-Digest": "sha256:" + "0" * 64}
    registry.special = answering("HEAD", "manifests/", Response(200, headers=other))
    assert re.fullmatch(
        "the tag 1.2.3 names sha256:0{64} instead of sha256:.{64}, which was sent: .*", reason(registry)
    )


# --- Tags that are there already --------------------------------------------------------------------------------------


def test_a_tag_with_the_same_bytes_may_be_published_again(registry: Registry) -> None:
    assert publish(registry) == publish(registry)


@pytest.mark.parametrize("there", [b"{}", b"no JSON", b'{"mediaType": "application/vnd.oci.image.index.v1+json"}'])
def test_tag_with_other_bytes_is_moved_only_by_force(registry: Registry, there: bytes) -> None:
    registry.manifests["1.2.3"] = there
    with pytest.raises(PermanentError, match=r"tag 1\.2\.3 has other bytes already"):
        publish(registry)
    assert registry.blobs == {}
    publish(registry, force=True)
    assert SHA256.encode() in registry.manifests["1.2.3"]


def test_a_tag_keeps_its_hardware_unless_it_is_forced(registry: Registry) -> None:
    publish(registry, hardware="rev-a")
    there = registry.manifests["1.2.3"]
    with pytest.raises(PermanentError, match=r"tag 1\.2\.3 has other hardware already"):
        publish(registry)
    assert registry.manifests["1.2.3"] == there
    publish(registry, force=True)
    publish(registry, hardware="rev-b")
    assert b"rev-b" in registry.manifests["1.2.3"]


def test_tags_where_the_version_has_other_bytes_are_reported(registry: Registry) -> None:
    publish(registry, content=b"other", latest=True)
    publish(registry, "v1.2.3-rc", content=b"another")
    publish(registry, "unlike", content=b"not looked at")
    assert publish(registry, "1.2.3-final").conflicting_tags == ("latest", "1.2.3", "v1.2.3-rc")


def test_not_many_tags_are_looked_at_for_that(registry: Registry) -> None:
    for number in range(50):
        registry.manifests[f"1.2.3-{number}"] = b"{}"
    publish(registry, "1.2.3-final", force=True)
    assert len(registry.asked("GET")) <= 12


@pytest.mark.parametrize("response", [Response(500), Response(401), Response(200, b"[]"), Response(200, b'{"tags":5}')])
def test_a_registry_that_does_not_list_its_tags_is_good_enough(registry: Registry, response: Response) -> None:
    registry.special = answering("GET", "tags/list", response)
    assert publish(registry).conflicting_tags == ()


# --- Credentials ------------------------------------------------------------------------------------------------------


@dataclass
class Guarded(Registry):
    """It wants Bearer tokens, one for reading and another for writing."""

    user: str | None = BASIC
    tokens: list[str] = field(default_factory=list)
    #: How many uploads are refused although the token is good: it may have expired.
    expired: int = 0

    def answer(self, request: Request) -> Response:
        url, authorization = urlsplit(request.path), request.headers.get("Authorization")
        if url.path == "/token":
            if authorization != self.user:
                return Response(401)
            (scope,) = parse_qs(url.query)["scope"]
            self.tokens.append(scope)
            return Response(200, json.dumps({"token": f"token-for-{scope.rpartition(':')[2]}"}).encode())
        actions = "pull" if request.method in ("GET", "HEAD") else "pull,push"
        if request.method == "PUT" and "/upload" in request.path and self.expired:
            self.expired -= 1
            authorization = None
        if authorization not in (f"Bearer token-for-{actions}", "Bearer token-for-pull,push"):
            realm = f"http://127.0.0.1:{self.port}/token"
            challenge = f'Bearer realm="{realm}",service="tests",scope="repository:pump:{actions}"'
            return Response(401, error("UNAUTHORIZED", "access denied"), {"WWW-Authenticate": challenge})
        return super().answer(request)


@pytest.fixture
def guarded() -> Iterator[Guarded]:
    registry = Guarded()
    with Server(registry) as server:
        registry.port = server.port
        yield registry


def test_a_token_for_reading_is_followed_by_one_for_writing(guarded: Guarded) -> None:
    publish(guarded, credentials=ME)
    assert guarded.blobs[f"sha256:{SHA256}"] == CONTENT
    assert guarded.tokens == ["repository:pump:pull", "repository:pump:pull,push"]
    shown = {
        request.path.partition("?")[0] for request in guarded.requests if request.headers.get("Authorization") == BASIC
    }
    assert shown == {"/token"}


def test_a_token_that_expires_before_the_upload_is_replaced_and_all_is_sent_again(guarded: Guarded) -> None:
    guarded.expired = 1
    publish(guarded, credentials=ME)
    assert guarded.blobs[f"sha256:{SHA256}"] == CONTENT
    assert [len(request.body) for request in guarded.requests if request.method == "PUT"][:2] == [len(CONTENT)] * 2


def test_without_credentials_the_token_is_an_anonymous_one(guarded: Guarded) -> None:
    guarded.user = None
    publish(guarded)
    assert guarded.blobs[f"sha256:{SHA256}"] == CONTENT


@pytest.mark.parametrize("wanted", [None, "Basic other"])
def test_credentials_that_the_token_service_refuses_are_told(guarded: Guarded, wanted: str | None) -> None:
    guarded.user = wanted
    assert reason(guarded, credentials=ME) == "the credentials were refused (UNAUTHORIZED: access denied)"


def test_a_registry_that_wants_credentials_says_so_where_there_are_none(guarded: Guarded) -> None:
    assert reason(guarded).startswith("wants credentials: set FIRMWARE_REGISTRY_USER and FIRMWARE_REGISTRY_TOKEN, or")


def test_http_basic_is_spoken_where_it_is_asked_for(registry: Registry) -> None:
    registry.special = lambda request: (
        None
        if request.headers.get("Authorization") == BASIC
        else Response(401, headers={"WWW-Authenticate": "Basic realm=x"})
    )
    publish(registry, credentials=ME)
    assert registry.blobs[f"sha256:{SHA256}"] == CONTENT
    assert "Authorization" not in registry.requests[0].headers
    registry.special = lambda _: Response(401, headers={"WWW-Authenticate": "Basic realm=x"})
    assert reason(registry, credentials=ME) == "the credentials were refused"


def test_of_several_challenges_the_one_for_a_token_is_answered(guarded: Guarded) -> None:
    def ask(request: Request) -> Response | None:
        response = guarded.answer(request)
        if response.status != 401:
            return response
        both = f'Basic realm="http://basic.invalid", {response.headers["WWW-Authenticate"]}'
        return Response(401, headers={"WWW-Authenticate": both})

    guarded.special = ask
    publish(guarded, credentials=ME)
    assert guarded.blobs[f"sha256:{SHA256}"] == CONTENT


def test_a_token_without_a_user_is_shown_as_it_is(registry: Registry) -> None:
    registry.special = lambda request: (
        None if request.headers.get("Authorization") == "Bearer s3cret" else Response(401)
    )
    publish(registry, credentials=Credentials(None, "s3cret"))
    assert registry.blobs[f"sha256:{SHA256}"] == CONTENT


@pytest.mark.parametrize(
    "challenge", ["", "Negotiate", "Bearer", 'Bearer realm=""', 'Bearer realm="ftp://x/"', 'Bearer realm="http://["']
)
def test_unanswerable_challenges_are_a_refusal(registry: Registry, challenge: str) -> None:
    registry.special = lambda _: Response(401, headers={"WWW-Authenticate": challenge})
    assert re.match("the credentials were refused|malformed answer", reason(registry, credentials=ME))


@pytest.mark.parametrize("answer", [b"", b"[]", b"{}", b'{"token": null}', b'{"token": 5}', b"<html>", b"[" * 9999])
def test_a_token_service_that_gives_no_token_is_a_refusal(guarded: Guarded, answer: bytes) -> None:
    guarded.special = answering("GET", "^/token", Response(200, answer))
    assert re.match("the credentials were refused|malformed answer", reason(guarded, credentials=ME))


def test_a_registry_that_repeats_our_secrets_does_not_make_us_tell_them(registry: Registry) -> None:
    def repeat(request: Request) -> Response:
        shown = request.headers.get("Authorization", "")
        headers = {"WWW-Authenticate": "Basic realm=x"}
        return Response(401, error("UNAUTHORIZED", f"{shown} is not s3cret\x1b[2J\nme:s3cret"), headers)

    registry.special = repeat
    told = reason(registry, credentials=ME)
    assert BASIC.removeprefix("Basic ") not in told
    assert "is not …" in told


def test_digest_header_is_quoted_only_if_it_is_a_digest(registry: Registry) -> None:
    registry.special = answering("HEAD", "manifests/", Response(200, headers={"Docker-Content-Digest": "s3cret"}))
    assert reason(registry, credentials=ME).startswith("the tag 1.2.3 names something else instead of sha256:")


def test_credentials_go_without_tls_to_the_registrys_own_host_only(registry: Registry) -> None:
    with Server(lambda _: Response(200, b'{"token": "t"}')) as elsewhere:
        realm = elsewhere.url.replace("127.0.0.1", "localhost")
        registry.special = lambda _: Response(401, headers={"WWW-Authenticate": f'Bearer realm="{realm}/token"'})
        with pytest.raises(
            PermanentError, match=r"^the registry's token realm has no TLS: our credentials were not sent$"
        ):
            publish(registry, credentials=ME)
        assert not elsewhere.requests


def test_credentials_do_not_follow_an_upload_to_another_host(registry: Registry) -> None:
    elsewhere = Registry()
    with Server(elsewhere) as server:
        registry.location = f"{server.url}/upload/1"
        publish(registry, credentials=Credentials(None, "s3cret"))
    assert elsewhere.blobs[f"sha256:{SHA256}"] == CONTENT
    assert all("Authorization" not in request.headers for request in elsewhere.requests)
    assert all(request.headers["Authorization"] == "Bearer s3cret" for request in registry.requests)


def test_netrc_is_ignored(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login other password other\n")
    monkeypatch.setenv("NETRC", str(netrc))
    publish(registry)
    assert all("Authorization" not in request.headers for request in registry.requests)
    registry.requests.clear()
    publish(registry, credentials=Credentials(None, "s3cret"))
    assert {request.headers["Authorization"] for request in registry.requests} == {"Bearer s3cret"}


# --- Proxies ----------------------------------------------------------------------------------------------------------


def test_the_environments_proxy_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with Server(lambda _: Response(418)) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        reference, access = registry_reference("registry.invalid/pump:1"), Access(insecure=True)
        with pytest.raises(PermanentError, match=r"^registry\.invalid: answered 418 to a GET$"):
            publish_to_registry(reference, BytesIO(b"1"), VERSION, access=access)
        assert proxy.requests[0].path == "http://registry.invalid/v2/pump/manifests/1"


def test_unreachable_proxy_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    with closed_port() as port:
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:s3cret@127.0.0.1:{port}")
        with pytest.raises(TransientError) as failed:
            publish_to_registry(registry_reference("registry.invalid/pump:1"), BytesIO(b"1"), VERSION, access=Access())
    assert failed.value.reason == "registry.invalid: the proxy in the environment cannot reach the registry"


# --- Answers that are none, or no good ones ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "kind", "told"),
    [
        (Response(500), TransientError, "answered 500"),
        (Response(503, error("UNAVAILABLE", "later")), TransientError, "answered 503 (UNAVAILABLE: later)"),
        (Response(502, b"<html>", {"Content-Type": "text/html"}), TransientError, "answered 502"),
        (Response(429, error("TOOMANYREQUESTS", "slowly")), TransientError, "answered 429 (TOOMANYREQUESTS: slowly)"),
        (
            Response(403, error("DENIED", "not yours")),
            PermanentError,
            "access denied to pump (DENIED: not yours)",
        ),
        (
            Response(404, error("NAME_UNKNOWN", "no")),
            PermanentError,
            "no repository pump, or no OCI registry at this URL (NAME_UNKNOWN: no)",
        ),
        (
            Response(405, error("UNSUPPORTED", "read-only")),
            PermanentError,
            "answered 405 to a POST (UNSUPPORTED: read-only)",
        ),
        (Response(413), PermanentError, "too large for the registry"),
        (Response(400, b'{"errors": [5]}'), PermanentError, "answered 400 to a POST"),
        (Response(400, error("", "")), PermanentError, "answered 400 to a POST"),
        (Response(400, error("x" * 999, "")), PermanentError, f"answered 400 to a POST ({'x' * 200})"),
        (
            Response(404, b"<html>", {"Content-Type": "text/html"}),
            PermanentError,
            "answers with a web page: is it a registry?",
        ),
        (
            Response(400, b"Client sent an HTTP request to an HTTPS server.\n"),
            PermanentError,
            "speaks TLS; leave out --insecure",
        ),
        (Response(202), PermanentError, "does not say where to upload to: is it a registry?"),
        (
            Response(202, headers={"Location": "ftp://x/"}),
            PermanentError,
            "malformed answer (InvalidSchema)",
        ),
        (
            Response(302, headers={"Location": "/again"}),
            PermanentError,
            "no repository pump, or no OCI registry at this URL",
        ),
        (Response(200, b"x" * 4_200_000), PermanentError, "answers with more than 4194304 bytes"),
        (
            Response(200, b"no gzip at all", {"Content-Encoding": "gzip"}),
            PermanentError,
            "malformed answer (DecodeError)",
        ),
    ],
)
def test_a_registry_that_does_not_take_uploads_says_why(
    registry: Registry, response: Response, kind: type[UpstreamError], told: str
) -> None:
    registry.special = answering("POST", "", response)
    assert reason(registry, kind) == told


def test_a_web_site_is_no_registry(registry: Registry) -> None:
    registry.special = lambda _: Response(200, b"<!doctype html>", {"Content-Type": "text/html; charset=utf-8"})
    assert reason(registry) == "answers with a web page: is it a registry?"


def test_a_registry_that_sends_us_round_and_round_is_left(registry: Registry) -> None:
    registry.special = lambda _: Response(307, headers={"Location": "/v2/pump/again"})
    assert reason(registry) == "malformed answer (TooManyRedirects)"


def test_refused_connection_is_reported() -> None:
    with closed_port() as port:
        assert reason(port, TransientError) == "connection refused"


def test_unknown_host_is_reported() -> None:
    with pytest.raises(PermanentError) as failed:
        publish_to_registry(registry_reference("registry.invalid/pump:1"), BytesIO(b"1"), VERSION, access=Access())
    assert failed.value.reason == "registry.invalid: host not found"


def raw(answer: bytes) -> Callable[[Request], None]:
    return lambda request: request.connection.sendall(answer)


@pytest.mark.parametrize(
    ("answer", "kind", "told"),
    [
        (b"", TransientError, "connection closed without an answer"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", PermanentError, "answer is not HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", TransientError, "connection closed without an answer"),
    ],
)
def test_malformed_answer_is_reported(answer: bytes, kind: type[UpstreamError], told: str) -> None:
    with Server(raw(answer)) as server:
        assert reason(server.port, kind) == told


def test_a_refusal_that_comes_before_all_is_sent_is_heard() -> None:
    class Impatient(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self, status: int, headers: Mapping[str, str]) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": "0", **headers}.items():
                self.send_header(name, value)
            self.end_headers()

        def do_GET(self) -> None:
            self._answer(404, {})

        def do_HEAD(self) -> None:
            self._answer(404, {})

        def do_POST(self) -> None:
            self._answer(202, {"Location": "/upload"})

        def do_PUT(self) -> None:
            self._answer(413, {"Connection": "close"})
            self.connection.shutdown(socket.SHUT_WR)
            self.rfile.read()  # so that what was sent does not reset the connection

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Impatient) as server:
        thread = Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            with pytest.raises(PermanentError, match="too large for the registry"):
                publish(server.server_port, content=bytes(20_000_000))
        finally:
            server.shutdown()
            thread.join()


def test_a_firmware_that_is_rewritten_meanwhile_is_not_waited_for(registry: Registry) -> None:
    file = BytesIO(CONTENT)

    def shorten(request: Request) -> None:
        if request.method == "POST":
            file.truncate(1000)

    registry.special = shorten
    with pytest.raises(PermanentError, match="the firmware's file has become shorter meanwhile"):
        publish_to_registry(
            registry_reference(f"127.0.0.1:{registry.port}/pump:1"), file, VERSION, access=Access(insecure=True)
        )
    assert registry.manifests == {}
