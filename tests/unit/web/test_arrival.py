"""The end of a request, found as gunicorn's parser finds it, however its bytes are split."""

from collections.abc import Iterable, Iterator
from typing import Any, Final

import pytest
from gunicorn.config import Config
from gunicorn.http.parser import RequestParser
from hypothesis import given
from hypothesis import strategies as st

from fleet_fn.web.arrival import MAX_BODY_BYTES, MAX_DISCARDED_BYTES, Arrival

MAX_LINE, MAX_HEAD = 200, 2000
POST: Final = b"POST / HTTP/1.1\r\nHost: x\r\n"
#: Bytes of a piece in which tests send what is large.
PIECE: Final = 65536


def arrived(*pieces: bytes) -> Arrival:
    arrival = Arrival(MAX_LINE, MAX_HEAD)
    for piece in pieces:
        arrival.feed(piece)
    return arrival


def parsed(request: Iterable[bytes]) -> Iterator[tuple[str, str, bytes]]:
    """What gunicorn reads in these bytes."""
    parser: Any = RequestParser(Config(), iter(request), ("127.0.0.1", 1))
    for message in parser:
        yield message.method, message.uri, message.body.read()


def chunked(pieces: list[bytes], trailers: bytes = b"") -> bytes:
    chunks = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces if piece]
    return b"".join(chunks) + b"0\r\n" + trailers + b"\r\n"


bodies = st.one_of(
    st.just(b"\r\n"),
    st.binary(max_size=40).map(lambda body: b"Content-Length: %d\r\n\r\n%b" % (len(body), body)),
    st.builds(
        lambda pieces, trailers: b"Transfer-Encoding: Chunked\r\n\r\n" + chunked(pieces, trailers),
        st.lists(st.binary(max_size=20), max_size=4),
        st.sampled_from([b"", b"X-Sum: 1\r\n", b"A: b\r\nC: d\r\n"]),
    ),
)
requests = st.lists(
    st.builds(lambda empty, line, body: empty + line + body, st.sampled_from([b"", b"\r\n"]), st.just(POST), bodies),
    min_size=1,
    max_size=3,
)


@given(requests, st.data())
def test_requests_end_where_the_parser_sees_them_end(sent: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(sent)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=6).map(sorted))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True) if a < b]
    arrival, found = Arrival(MAX_LINE, MAX_HEAD), []
    for piece in pieces:
        arrival.feed(piece)
        while arrival.is_whole:
            found.append(arrival.take())
            arrival = arrival.next()
    assert found == sent
    assert not arrival.is_begun
    assert [read for request in found for read in parsed([request])] == list(parsed([stream]))


@given(st.binary(max_size=60), st.lists(st.integers(1, 60), max_size=3))
def test_any_bytes_are_kept_in_order(tail: bytes, cuts: list[int]) -> None:
    stream = POST + tail
    arrival = Arrival(MAX_LINE, MAX_HEAD)
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(stream)], strict=True):
        arrival.feed(stream[start:end])
    arrival.end()
    first = arrival.take()
    assert stream.startswith(first)
    assert arrival.is_cut or arrival.next().is_begun == (len(first) < len(stream))


@pytest.mark.parametrize(
    "malformed",
    [
        b"\x16\x03\x01\x00",
        b"GET / HTTP/1.1\n\n",
        POST + b"X: y\nZ",
        POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
        POST + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        POST + b"Content-Length: -1\r\n\r\n",
        POST + b"Content-Length: \r\n\r\n",
        POST + b"Transfer-Encoding: gzip\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"1" * 9000,
        b"GET /" + b"x" * MAX_LINE,
        POST + b"X: y\r\n" * MAX_HEAD,
    ],
)
def test_malformed_request_goes_to_the_parser_at_once(malformed: bytes) -> None:
    arrival = arrived(malformed)
    assert arrival.is_whole
    assert arrival.is_cut
    assert arrival.take() == malformed


@pytest.mark.parametrize("half", [b"G", b"\r\n", POST, POST + b"Content-Length: 5\r\n\r\n1234", POST + b"X" * MAX_LINE])
def test_half_a_request_is_waited_for_until_its_end(half: bytes) -> None:
    arrival = arrived(half)
    assert (arrival.is_begun, arrival.is_whole) == (True, False)
    arrival.end()
    assert (arrival.is_whole, arrival.is_cut) == (True, True)


def test_large_body_is_dropped_and_the_next_request_found() -> None:
    size = 10 * MAX_BODY_BYTES
    head = POST + b"Content-Length: %d\r\n\r\n" % size
    arrival = arrived(head, *[b" " * (size // 10)] * 9)
    assert arrival.is_large
    assert not arrival.is_whole
    assert arrival.size == len(head)
    arrival.feed(b" " * (size // 10) + b"GET")
    assert (arrival.is_whole, arrival.is_cut) == (True, False)
    assert arrival.take() == head
    assert arrival.next().is_begun


def test_large_body_in_chunks_is_kept_until_it_is_found_too_large() -> None:
    chunk = b"%x\r\n%b\r\n" % (1024, b" " * 1024)
    arrival = arrived(POST + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 1000)
    assert arrival.is_large
    assert MAX_BODY_BYTES < arrival.size < 2 * MAX_BODY_BYTES
    arrival.feed(b"0\r\n\r\n")
    assert (arrival.is_whole, arrival.is_cut) == (True, True)


def test_body_in_chunks_of_one_byte_is_kept() -> None:
    arrival = arrived(POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * MAX_BODY_BYTES + b"0\r\n\r\n")
    assert (arrival.is_whole, arrival.is_cut) == (True, False)


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 99999999999\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\nffffffff\r\n"]
)
def test_body_without_end_is_given_up(framing: bytes) -> None:
    arrival, fed = arrived(POST + framing), 0
    while not arrival.is_whole:
        arrival.feed(b" " * PIECE)
        fed += PIECE
    assert arrival.is_cut
    assert MAX_DISCARDED_BYTES <= fed <= MAX_DISCARDED_BYTES + 4 * PIECE
    assert arrival.size < 4 * PIECE


def test_sender_that_waits_is_told_to_go_on_unless_its_body_is_refused() -> None:
    expect = b"Expect: 100-Continue\r\n"
    assert arrived(POST + expect + b"Content-Length: 5\r\n\r\n").awaits_continue
    assert not arrived(POST.replace(b"1.1", b"1.0") + expect + b"Content-Length: 5\r\n\r\n").awaits_continue
    large = arrived(POST + expect + b"Content-Length: 65537\r\n\r\n")
    assert (large.is_whole, large.is_cut) == (True, True)
