"""One connection's requests and responses, compared with those of `http.client`."""

import http.client
import io
import socket
import threading
from collections.abc import Mapping
from contextlib import closing
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fleet_fn.deadline import Deadline
from fleet_fn.http.connection import Connection, Request, Response, TimedSocket

# --- Heads ------------------------------------------------------------------------------------------------------------


class Sent:
    """A socket that is at its end after `content`."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def makefile(self, _: str) -> io.BufferedReader:
        return io.BufferedReader(io.BytesIO(self._content))


class Expected(http.client.HTTPResponse):
    """What `http.client` reads, once all interim responses are skipped: it skips 100 only."""

    def begin(self) -> None:
        super().begin()
        found: Any = self
        while 100 < self.status < 200:
            if self.status == 101:
                raise http.client.HTTPException
            found.headers = None
            super().begin()


def read(kind: type[http.client.HTTPResponse], content: bytes, method: str) -> Any:
    """All that is known of an answer, and its body; or the kind of error that reading it ends in."""
    sent: Any = Sent(content)
    response: Any = kind(sent, method=method)
    try:
        response.begin()
        headers = [(name, response.headers.get_all(name)) for name in response.headers]
        known = (response.status, response.version, response.chunked, response.length, response.will_close)
        return known, response.isclosed(), headers, response.read()
    except (http.client.HTTPException, ValueError) as error:
        return type(error)
    finally:
        response.close()


methods = st.sampled_from(["GET", "HEAD", "POST"])
lines = st.one_of(
    st.sampled_from(
        [
            "HTTP/1.1 200 OK",
            "HTTP/1.1 204 No Content",
            "HTTP/1.1 304 Not Modified",
            "HTTP/1.1 202",
            "HTTP/1.1 100 Continue",
            "HTTP/1.1 101 Switching Protocols",
            "HTTP/1.1 103 Early Hints",
            "HTTP/1.0 200 OK",
            "HTTP/1.1  200 OK",
            "HTTP/2 200",
            "Content-Length: 2",
            "content-length: 5 ",
            "Content-Length: +2",
            "Content-Length: 0",
            "Content-Length: -1",
            "Content-Length: two",
            "Content-Length:",
            "Transfer-Encoding: chunked",
            "transfer-encoding: CHUNKED",
            "Transfer-Encoding: gzip, chunked",
            "Transfer-Encoding:",
            "Connection: close",
            "connection: Keep-Alive, CLOSE",
            "Connection: keep-alive",
            " folded: value",
            "\tfolded",
            "no colon",
            ": no name",
            "name : value",
            "Retry-After:\t 3 ",
            "X: \x0b\x85\xff",
            "X: a\rb",
            "",
        ]
    ),
    st.from_regex(r"[!-~]{1,9}: ?[\t -~]{0,9}", fullmatch=True),
    st.text(st.characters(max_codepoint=255), max_size=9),
)


@given(
    st.lists(st.tuples(lines, st.sampled_from(["\r\n", "\r\n", "\r\n", "\n"])), max_size=8),
    st.sampled_from(["\r\n", "\r\n", "\n", ""]),
    st.sampled_from([b"", b"ok", b"2\r\nok\r\n0\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"]),
    methods,
)
@example([("HTTP/1.1 200 OK", "\r\n"), ("Content-Length: 2", "\r\n")], "\r\n", b"ok", "GET")
@example([("HTTP/1.1 200 OK", "\r\n"), ("Transfer-Encoding: chunked", "\r\n")], "\r\n", b"2\r\nok\r\n0\r\n\r\n", "GET")
@example([("HTTP/1.1 200 OK", "\r\n"), *[("A: b", "\r\n")] * 100], "\r\n", b"", "GET")
@example([("HTTP/1.1 200 OK", "\r\n"), *[("A: b", "\r\n")] * 99], "\r\n", b"", "GET")
@example([("HTTP/1.1 200 OK", "\r\n"), ("A: " + "b" * 9000, "\r\n")], "\r\n", b"", "GET")
def test_an_answer_is_what_http_client_takes_it_for(
    head: list[tuple[str, str]], end: str, rest: bytes, method: str
) -> None:
    content = "".join(line + ending for line, ending in head).encode("latin-1") + end.encode() + rest
    assert read(Response, content, method) == read(Expected, content, method)


@pytest.mark.parametrize("status", [100, 102, 103, 199])
def test_interim_responses_are_skipped(status: int) -> None:
    interim = f"HTTP/1.1 {status} Wait\r\nLink: x\r\nContent-Length: 3\r\n\r\n".encode()
    final = b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno"
    for content in (interim + final, interim * 3 + final):
        (known, *_), _, headers, body = read(Response, content, "GET")
        assert (known, headers, body) == (404, [("Content-Length", ["2"])], b"no")


@given(
    st.sampled_from([200, 201, 202, 204, 304, 404, 429, 503]),
    st.dictionaries(st.from_regex(r"[A-Za-z-]{1,12}", fullmatch=True), st.from_regex(r"[!-~]{0,12}", fullmatch=True)),
    st.binary(max_size=40),
    methods,
)
def test_so_is_one_as_servers_make_them(status: int, headers: Mapping[str, str], body: bytes, method: str) -> None:
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    content = f"HTTP/1.1 {status} Reason\r\n{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    assert read(Response, content, method) == read(http.client.HTTPResponse, content, method)


# --- Requests ---------------------------------------------------------------------------------------------------------


def request(target: str = "/", headers: Mapping[str, str] | None = None, body: bytes | None = None) -> Request:
    return Request("POST" if body is not None else "GET", target, headers or {}, body, wants_body=True)


@given(
    st.from_regex(r"/[!-~]{0,20}", fullmatch=True),
    st.dictionaries(
        st.sampled_from(["Accept", "Authorization", "Content-Type"]),
        st.from_regex(r"[\t -~\xa0-\xff]{0,20}", fullmatch=True),
    ),
    st.one_of(st.none(), st.binary(max_size=20)),
)
def test_what_is_sent_is_what_http_client_sends(target: str, headers: Mapping[str, str], body: bytes | None) -> None:
    class Recorded(http.client.HTTPConnection):
        sent = b""

        def send(self, data: Any) -> None:
            self.sent += data

    asked = request(target, headers, body)
    recorded = Recorded("cloud.example", 81)
    recorded.request(asked.method, target, body, dict(headers))
    assert asked.encode("cloud.example:81") == recorded.sent


@pytest.mark.parametrize("target", ["/a b", "/a\r\nX: y", "/ä", "/\x7f"])
def test_a_target_that_could_end_the_request_line_is_not_sent(target: str) -> None:
    with pytest.raises(http.client.InvalidURL):
        request(target).encode("cloud.example")


@given(st.sampled_from("\r\n\0\x1b\x7f"))
def test_a_header_that_could_end_is_not_sent_and_not_repeated_in_the_error(control: str) -> None:
    with pytest.raises(ValueError, match="'Authorization' contains a control character") as caught:
        request(headers={"Authorization": f"s3cret{control}X: y"}).encode("cloud.example")
    assert "s3cret" not in str(caught.value)


def test_a_request_with_a_body_goes_out_in_one_piece() -> None:
    ours, theirs = socket.socketpair()
    writes = []

    class Counted(TimedSocket):
        def sendall(self, data: Any, *flags: int) -> None:
            writes.append(bytes(data))
            super().sendall(data, *flags)

    with theirs, closing(Counted(fileno=ours.detach()).mark_connected()) as sock:
        answering = threading.Thread(target=lambda: theirs.sendall(b"HTTP/1.1 202 Accepted\r\n\r\n"))
        answering.start()
        response = Connection("cloud.example", sock).ask(request(body=b"block"), Deadline(5))
        answering.join()
        assert response.status == 202
        response.close()
    (sent,) = writes
    assert sent.endswith(b"\r\n\r\nblock")
