"""Slow downloads go on as long as they make progress; stalled ones are given up."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from fleet_fn.deadline import Deadline
from fleet_fn.errors import PermanentError, TransientError
from fleet_fn.oci.manifest import Descriptor, digest_of
from fleet_fn.oci.registry_client import MAX_TAGS, RegistryClient
from tests.support.hostile import raw
from tests.support.http import Request, Response, Server

#: Seconds, instead of the half minute in which a download has to make progress.
STALL_TIMEOUT_SECONDS = 0.4
CONTENT = bytes(range(256)) * 64
BLOB = Descriptor("application/octet-stream", digest_of(CONTENT), len(CONTENT), {})


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleet_fn.http.long_download.STALL_TIMEOUT_SECONDS", STALL_TIMEOUT_SECONDS)


@contextmanager
def registry(answer: Callable[[Request], Response | None]) -> Iterator[RegistryClient]:
    with Server(answer) as server:
        distribution = RegistryClient(
            f"127.0.0.1:{server.port}",
            credentials=lambda _: None,
            plain_http=True,
            ca_file=None,
        )
        try:
            yield distribution
        finally:
            distribution.close()


def download(distribution: RegistryClient, blob: Descriptor = BLOB) -> bytes:
    with distribution.stream("acme/pump", blob) as stream:
        return b"".join(iter(lambda: stream.read(65536), b""))


def sending(pieces: list[bytes], pause: float, over: threading.Event) -> Callable[[Request], None]:
    """Sends a blob piece by piece, and leaves the connection open until it is over."""

    def answer(request: Request) -> None:
        request.connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(CONTENT))
        for piece in pieces:
            if over.wait(pause):
                return
            request.connection.sendall(piece)
        over.wait()

    return answer


@pytest.fixture
def over() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def test_a_download_may_take_longer_than_it_may_stand_still(over: threading.Event) -> None:
    pieces = [CONTENT[at : at + 2048] for at in range(0, len(CONTENT), 2048)]
    began = time.monotonic()
    with registry(sending(pieces, STALL_TIMEOUT_SECONDS / 4, over)) as distribution:
        assert download(distribution) == CONTENT
    assert time.monotonic() - began > STALL_TIMEOUT_SECONDS


@pytest.mark.parametrize(
    ("pieces", "pause"),
    [
        pytest.param([], 0, id="nothing at all"),
        pytest.param([CONTENT[:4096]], 0, id="nothing after a while"),
        pytest.param([bytes((byte,)) for byte in CONTENT], STALL_TIMEOUT_SECONDS / 10, id="a trickle"),
    ],
)
def test_a_download_that_makes_no_progress_is_given_up(
    over: threading.Event, pieces: list[bytes], pause: float
) -> None:
    began = time.monotonic()
    with (
        registry(sending(pieces, pause, over)) as distribution,
        pytest.raises(TransientError, match=r"^OCI registry 127\.0\.0\.1:\d+: a download made no progress for 0\.4 s$"),
    ):
        download(distribution)
    assert time.monotonic() - began < STALL_TIMEOUT_SECONDS * 5


def test_a_registry_that_does_not_begin_to_answer_is_given_up(over: threading.Event) -> None:
    def hang(_: Request) -> None:
        over.wait()

    with (
        registry(hang) as distribution,
        pytest.raises(TransientError, match=r"^OCI registry 127\.0\.0\.1:\d+: no answer in time$"),
    ):
        download(distribution)


def test_no_more_is_read_than_the_descriptor_says(over: threading.Event) -> None:
    sent = 0

    def endless(request: Request) -> None:
        nonlocal sent
        request.connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + CONTENT)
        while not over.is_set() and sent < 100_000_000:
            request.connection.sendall(bytes(100_000))
            sent += 100_000

    with registry(endless) as distribution:
        assert download(distribution) == CONTENT
    assert sent < 20_000_000, "what the system's buffers take"


def test_a_blob_of_another_size_is_not_even_begun() -> None:
    with (
        registry(lambda _: Response(body=CONTENT[1:])) as distribution,
        pytest.raises(
            PermanentError,
            match=rf"^OCI registry [0-9.:]+: size mismatch: blob {BLOB.digest} has 16383 bytes, expected 16384$",
        ),
    ):
        download(distribution)


@pytest.mark.parametrize("announced", ["s3cret", "1 s3cret", "-1", "\xb2"])
def test_a_length_that_is_none_is_not_repeated(announced: str) -> None:
    with (
        registry(raw(f"HTTP/1.1 200 OK\r\nContent-Length: {announced}\r\n\r\n".encode("latin-1"))) as distribution,
        pytest.raises(PermanentError, match=r"^OCI registry 127\.0\.0\.1:\d+: answer is not HTTP$"),
    ):
        download(distribution)


# --- Tags -------------------------------------------------------------------------------------------------------------


def listing(tags: object, next_page: str | None = None) -> Response:
    headers = {"Link": f'<{next_page}>; rel="next"'} if next_page else {}
    return Response(200, json.dumps({"name": "acme/pump", "tags": tags}).encode(), headers)


def test_tags_are_listed_page_by_page() -> None:
    pages = {
        "/v2/acme/pump/tags/list?n=1000": listing(["1", "2"], "/v2/acme/pump/tags/list?last=2&n=1000"),
        "/v2/acme/pump/tags/list?last=2&n=1000": listing(["3"], "http://other.example/v2/acme/pump/tags/list?last=3"),
        "/v2/acme/pump/tags/list?last=3": listing(["latest", "-none", 5]),
    }
    with registry(lambda request: pages[request.path]) as distribution:
        assert distribution.tags("acme/pump", Deadline(10)) == ["1", "2", "3", "latest"]


@pytest.mark.parametrize("tags", [None, []])
def test_a_repository_may_have_no_tags(tags: object) -> None:
    with registry(lambda _: listing(tags)) as distribution:
        assert distribution.tags("acme/pump", Deadline(10)) == []


def test_endless_pages_of_tags_come_to_an_end() -> None:
    asked: list[str] = []

    def answer(request: Request) -> Response:
        asked.append(request.path)
        return listing([f"{len(asked)}-{number}" for number in range(1000)], request.path)

    with registry(answer) as distribution:
        assert len(distribution.tags("acme/pump", Deadline(30))) == MAX_TAGS
    assert len(asked) == MAX_TAGS / 1000


@pytest.mark.parametrize("page", [[], [f"1.0.{number}" for number in range(1000)]], ids=["empty", "full"])
def test_a_list_that_has_to_be_whole_is_no_part_of_one(page: list[str]) -> None:
    with (
        registry(lambda request: listing(page, request.path)) as distribution,
        pytest.raises(PermanentError, match="acme/pump has more than 10000 tags, or lists them on more than 100 pages"),
    ):
        distribution.tags("acme/pump", Deadline(30), whole=True)


@pytest.mark.parametrize("has_empty_page", [False, True])
def test_a_list_of_as_many_tags_as_are_read_is_whole(has_empty_page: bool) -> None:
    tags = [f"1.0.{number}" for number in range(MAX_TAGS)]

    def answer(request: Request) -> Response:
        number = int(request.path.partition("page=")[2] or 0)
        page = tags[1000 * number : 1000 * (number + 1)]
        is_last = number == (10 if has_empty_page else 9)
        return listing(page, None if is_last else f"/v2/acme/pump/tags/list?page={number + 1}")

    with registry(answer) as distribution:
        assert distribution.tags("acme/pump", Deadline(30), whole=True) == tags


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (Response(404), "no repository acme/pump"),
        (Response(405), "OCI registry .* answered 405"),
        (Response(401, headers={"WWW-Authenticate": "Basic"}), "access denied: no credentials are configured"),
        (Response(200, b"<html>"), "OCI registry .*: list of tags: not JSON"),
        (Response(200, b"[]"), "OCI registry .*: list of tags is not a JSON object"),
        (listing({"a": 1}), "OCI registry .*: list of tags is no list"),
        (listing(["1"], "/v2/other/tags/list"), "OCI registry .*: the next page of a list is elsewhere"),
    ],
)
def test_tags_that_cannot_be_listed_are_a_failure(response: Response, reason: str) -> None:
    with registry(lambda _: response) as distribution, pytest.raises(PermanentError, match=reason):
        distribution.tags("acme/pump", Deadline(10))
