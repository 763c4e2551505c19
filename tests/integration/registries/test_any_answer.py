"""For any answer of a registry the event gets an outcome in time, and no device gets a wrong byte."""

import hashlib
import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import cbor2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.drogue import Drogue
from tests.support.fake_registry import FakeRegistry, digest_of, running
from tests.support.firmware import random_bytes
from tests.support.function import Function, event, parse_outcome
from tests.support.hostile import raw
from tests.support.http import Request, Response
from tests.support.images import EMPTY, OCI_MANIFEST, OCTETS
from tests.support.statuses import STATUS, ago, blocks, midway, record_start
from tests.support.timing import DEADLINE, SLACK

SIZE: Final = 1300


@dataclass(frozen=True)
class Change:
    """What is done to an answer."""

    status: int | None
    headers: list[tuple[str, str]]
    #: Replaces the body.
    body: bytes | None
    #: Where a byte is changed, and how.
    flips: list[tuple[int, int]]
    #: What is left of the answer, head included; None leaves all.
    length: int | None
    #: What follows it.
    more: bytes
    chunked: bool

    def of(self, response: Response) -> bytes:
        body = bytearray(response.body if self.body is None else self.body)
        for position, mask in self.flips:
            if body:
                body[position % len(body)] ^= mask
        headers = {"Content-Length": str(len(body)), **response.headers}
        content = bytes(body)
        if self.chunked:
            del headers["Content-Length"]
            headers["Transfer-Encoding"] = "chunked"
            content = f"{len(body):x}\r\n".encode() + content + b"\r\n0\r\n\r\n"
        lines = [f"HTTP/1.1 {response.status if self.status is None else self.status} X"]
        lines += [f"{name}: {value}" for name, value in [*headers.items(), *self.headers]]
        answer = "\r\n".join([*lines, "", ""]).encode("latin-1") + content
        return answer[: self.length] + self.more


TEXTS = st.text(st.characters(codec="latin-1", exclude_characters="\r\n"), max_size=20)
URLS = st.sampled_from(
    [
        "/",
        "",
        "//",
        "?",
        "..",
        "/again",
        "http://127.0.0.1:1/",
        "http://[::1]:1/",
        "http://169.254.169.254/",
        "http://[",
    ]
)
CHALLENGES = st.builds(
    "{} {}={}, {}".format,
    st.sampled_from(["Bearer", "Basic", "bearer", "Negotiate", ""]),
    st.sampled_from(["realm", "scope", "service", "error", ""]),
    st.one_of(URLS.map('"{}"'.format), TEXTS),
    TEXTS,
)
HEADERS = st.one_of(
    st.tuples(st.just("Location"), URLS | TEXTS),
    st.tuples(st.just("WWW-Authenticate"), CHALLENGES | TEXTS),
    st.tuples(st.just("Docker-Content-Digest"), TEXTS | st.just(f"sha256:{'0' * 64}")),
    st.tuples(st.just("Retry-After"), TEXTS | st.sampled_from(["0", "3", "1000000", "Wed, 21 Oct 2015 07:28:00 GMT"])),
    st.tuples(st.just("Content-Length"), st.sampled_from(["0", "1", "-1", "x", "1300", "1301", "9" * 20])),
    st.tuples(st.just("Transfer-Encoding"), st.sampled_from(["chunked", "gzip", "identity", "chunked, chunked"])),
    st.tuples(st.sampled_from(["Connection", "Content-Encoding", "Content-Type", "X"]), TEXTS),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["mediaType", "layers", "manifests", "config", "digest", "size", "annotations", "token"]),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
).map(lambda value: json.dumps(value).encode())
CHANGES = st.builds(
    Change,
    status=st.none()
    | st.sampled_from([100, 101, 103, 199, 201, 204, 206, 301, 304, 307, 400, 401, 403, 404, 429, 500, 503])
    | st.integers(0, 1000),
    headers=st.lists(HEADERS, max_size=3),
    body=st.none() | st.binary(max_size=100) | JSON,
    flips=st.lists(st.tuples(st.integers(0, 2**16), st.integers(1, 255)), max_size=2),
    length=st.none() | st.integers(0, 2000),
    more=st.binary(max_size=20),
    chunked=st.booleans(),
)


@pytest.fixture(scope="module")
def hasty(drogue: Drogue, registry: FakeRegistry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Function]:
    environment = {
        "EVENT_DEADLINE_SECONDS": str(DEADLINE),
        "FIRMWARE_REGISTRY_USER": "robot",
        "FIRMWARE_REGISTRY_TOKEN": "s3cret",
    }
    with running(drogue, registry, tmp_path_factory.mktemp("cache"), **environment) as function:
        yield function


class Repository:
    """Firmware that nobody has asked for before, and answers about it that are changed."""

    def __init__(self, registry: FakeRegistry, name: str, changes: dict[str, Change]) -> None:
        self.content = random_bytes(SIZE, name)
        self._changes = changes
        self._name = name
        self._challenge = f'Bearer realm="{registry.url}/token/{name}",scope="repository:{name}:pull"'
        layer = {"mediaType": OCTETS, "digest": digest_of(self.content), "size": SIZE}
        config = {"mediaType": EMPTY, "digest": digest_of(b"{}"), "size": 2}
        manifest = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [layer]}
        self._manifest = json.dumps(manifest).encode()
        registry.answers[name] = self
        registry.answers[f"/token/{name}"] = self

    def __call__(self, request: Request) -> Response | None:
        what, response = self._honest(request)
        if change := self._changes.get(what):
            return raw(change.of(response))(request)
        return response

    def _honest(self, request: Request) -> tuple[str, Response]:
        if request.path.startswith("/token/"):
            return "token", Response(200, b'{"token": "t", "expires_in": 300}')
        if "challenge" in self._changes and request.headers.get("Authorization") != "Bearer t":
            return "challenge", Response(401, headers={"WWW-Authenticate": self._challenge})
        if "/manifests/" in request.path:
            digest = {"Docker-Content-Digest": digest_of(self._manifest)}
            return "manifest" if request.method == "GET" else "head", Response(200, self._manifest, digest)
        return "blob", Response(200, self.content)


_numbers = itertools.count(1)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    changes=st.dictionaries(st.sampled_from(["challenge", "token", "head", "manifest", "blob"]), CHANGES, min_size=1),
    status=st.sampled_from([STATUS, midway("1", 512)]),
)
def test_any_answer_yields_an_outcome_and_no_wrong_byte(
    hasty: Function,
    drogue: Drogue,
    registry: FakeRegistry,
    device: str,
    changes: dict[str, Change],
    status: dict[Any, Any],
) -> None:
    name = f"{device}-{next(_numbers)}"
    repository = Repository(registry, name, changes)
    drogue.put_image("example", name, f"{name}:1", imagePullPolicy="Always")
    record_start(drogue, name, "1", hashlib.sha256(repository.content).digest())
    outcomes = []
    for age in (5, 0):
        started = time.monotonic()
        sent = event(name, datacontenttype="application/cbor", time=ago(age))
        answer = hasty.post(sent, cbor2.dumps(status))
        assert time.monotonic() - started < DEADLINE + SLACK
        outcomes.append(parse_outcome(answer)[0])
        assert answer.status == {"write": 204, "wait": 204, "failed": 422, "retry": 503}[outcomes[-1]]
    assert "Traceback" not in "".join(hasty.log[-50:])
    written = blocks(drogue, name)
    assert len(written) == outcomes.count("write")
    for offset, block in written:
        assert block == repository.content[offset : offset + 512]
