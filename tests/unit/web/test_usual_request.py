"""The usual request is read as gunicorn reads it, and every other one is left to gunicorn."""

import io
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

import pytest
from gunicorn.config import Config
from gunicorn.glogging import Logger
from gunicorn.http.message import Request
from gunicorn.http.unreader import IterUnreader
from gunicorn.http.wsgi import Response, create
from hypothesis import example, given
from hypothesis import strategies as st

from fleet_fn.web.usual_request import UsualAnswer, environ_of_connection, is_usual, read_usual
from tests.support.function import event

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse

CLIENT: Final = ("127.0.0.1", 40000)
SERVER: Final = ("127.0.0.1", 8080)
#: What belongs to gunicorn's own objects.
OBJECTS: Final = ("wsgi.errors", "wsgi.input", "wsgi.early_hints", "wsgi.multithread", "gunicorn.socket")
HEAD: Final = b"POST / HTTP/1.1\r\nHost: function\r\nContent-Type: application/cbor\r\nContent-Length: 3\r\n"
FORMS: Final = {
    "an event of Vert.x": b"POST / HTTP/1.1\r\nce-specversion: 1.0\r\nce-id: 1\r\nce-subject: dfu\r\n"
    b"content-type: application/cbor\r\nhost: function.fleet.svc.cluster.local\r\nContent-Length: 3\r\n\r\nabc",
    "a preview": HEAD.replace(b" / ", b" /preview ") + b"\r\nabc",
    "through proxies": HEAD
    + b"X-Forwarded-Proto: https\r\nForwarded: for=10.0.0.1\r\nConnection: keep-alive\r\n\r\nabc",
    "an empty body": HEAD.replace(b"h: 3", b"h: 0") + b"\r\n",
    "an empty header": HEAD + b"ce-dataschema:\r\n\r\nabc",
    "spaces": HEAD + b"ce-device: \t a b \t\r\n\r\nabc",
    "bytes of UTF-8": HEAD + "ce-device: Gerät\r\n\r\nabc".encode(),
}
OTHERS: Final = {
    "another method": HEAD.replace(b"POST", b"PUT") + b"\r\nabc",
    "a query": HEAD.replace(b" / ", b" /?a=b ") + b"\r\nabc",
    "a percent sign": HEAD.replace(b" / ", b" /%41 ") + b"\r\nabc",
    "an absolute target": HEAD.replace(b" / ", b" http://function/ ") + b"\r\nabc",
    "HTTP/1.0": HEAD.replace(b"1.1", b"1.0") + b"\r\nabc",
    "an empty line first": b"\r\n" + HEAD + b"\r\nabc",
    "chunks": HEAD + b"Transfer-Encoding: chunked\r\n\r\nabc",
    "no length": HEAD.replace(b"Content-Length: 3\r\n", b"") + b"\r\n",
    "two lengths": HEAD + b"content-length: 3\r\n\r\nabc",
    "another length": HEAD.replace(b"h: 3", b"h: +3") + b"\r\nabc",
    "a header twice": HEAD + b"ce-id: 1\r\nCE-ID: 2\r\n\r\nabc",
    "an underscore": HEAD + b"ce_id: 1\r\n\r\nabc",
    "a folded line": HEAD + b"ce-id: 1\r\n 2\r\n\r\nabc",
    "a space before the colon": HEAD + b"ce-id : 1\r\n\r\nabc",
    "a bare LF": HEAD + b"ce-id: 1\nce-a: 2\r\n\r\nabc",
    "a bare CR": HEAD + b"ce-id: 1\rce-a: 2\r\n\r\nabc",
    "a NUL": HEAD + b"ce-id: \0\r\n\r\nabc",
    "100-continue": HEAD + b"Expect: 100-continue\r\n\r\nabc",
    "the last request": HEAD + b"Connection: close\r\n\r\nabc",
    "an upgrade": HEAD + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\nabc",
    "a short body": HEAD + b"\r\nab",
    "another request behind it": HEAD + b"\r\nabcPOST",
    "half a head": HEAD,
    "too many headers": HEAD + b"".join(b"ce-%d: 1\r\n" % number for number in range(100)) + b"\r\nabc",
    "a large head": HEAD + b"ce-id: " + bytes([65]) * 4096 + b"\r\n\r\nabc",
    "nothing": b"",
}


def config(**settings: object) -> Config:
    found = Config()
    for name, value in {"forwarded_allow_ips": "", "forwarder_headers": "", **settings}.items():
        found.set(name, value)
    return found


def read(data: bytes) -> dict[str, Any] | None:
    common = environ_of_connection(config(), None, CLIENT, SERVER)
    assert common
    return read_usual(data, common)


def read_by_gunicorn(data: bytes) -> dict[str, Any]:
    request = Request(config(), IterUnreader(iter([data])), CLIENT)
    _, environ = create(request, None, CLIENT, SERVER, config())
    found: dict[str, Any] = environ
    return found


def check_as_gunicorn(data: bytes) -> bool:
    """Return whether it is the usual request; gunicorn reads the same then."""
    ours = read(data)
    if ours is None:
        return False
    theirs = read_by_gunicorn(data)
    assert ours["wsgi.input"].read() == theirs["wsgi.input"].read()
    for name in OBJECTS:
        ours.pop(name, None)
        theirs.pop(name, None)
    assert ours == theirs
    return True


@pytest.mark.parametrize("form", FORMS)
def test_the_usual_request_is_read_as_gunicorn_reads_it(form: str) -> None:
    assert check_as_gunicorn(FORMS[form])


@pytest.mark.parametrize("form", OTHERS)
def test_another_request_is_left_to_gunicorn(form: str) -> None:
    assert read(OTHERS[form]) is None


TEXT: Final = st.text(st.characters(min_codepoint=0, max_codepoint=255), max_size=20)
NAMES: Final = st.one_of(
    st.sampled_from(["Content-Length", "content-type", "Host", "Connection", "Transfer-Encoding", "Expect", "ce-id"]),
    st.text("abcXYZ019-_!", min_size=1, max_size=8),
    TEXT,
)
VALUES: Final = st.one_of(st.sampled_from(["3", "03", "chunked", "keep-alive", "close", " x ", ""]), TEXT)
GOOD_NAMES: Final = st.text("abcXYZ019-", min_size=1, max_size=8)
GOOD_VALUES: Final = st.text(
    st.characters(min_codepoint=32, max_codepoint=255, blacklist_characters="\x7f"), max_size=20
)
GOOD_TARGETS: Final = st.text("/a.", max_size=6).map(lambda text: f"/{text}")
TARGETS: Final = st.one_of(
    st.sampled_from(["/", "/preview", "//", "/a/../b", "*", "/?q"]), st.text("/a.%?#~", max_size=6)
)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """Usual requests, and nearly usual ones."""
    if draw(st.booleans()):
        names, values, targets, damages = GOOD_NAMES, GOOD_VALUES, GOOD_TARGETS, 0
    else:
        names, values, targets, damages = NAMES, VALUES, TARGETS, draw(st.integers(0, 2))
    fields = draw(st.lists(st.tuples(names, values), max_size=6, unique_by=lambda field: field[0].lower()))
    length = "3" if names is GOOD_NAMES else draw(st.sampled_from(["3", "2", "3 ", "03"]))
    fields.insert(draw(st.integers(0, len(fields))), ("Content-Length", length))
    lines = [f"POST {draw(targets)} HTTP/1.1", *(f"{name}:{value}" for name, value in fields)]
    data = bytearray("\r\n".join([*lines, "", "abc"]).encode("latin-1"))
    for _ in range(damages):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.sampled_from(b"\r\n\t :\0\x7f\xa0-_A0"))
    return bytes(data)


@given(requests())
@example(HEAD + b"\r\nabc")
def test_gunicorn_reads_the_same_from_whatever_is_taken_for_usual(data: bytes) -> None:
    check_as_gunicorn(data)


def test_many_drawn_requests_are_usual() -> None:
    usual = []

    @given(requests())
    def draw(data: bytes) -> None:
        usual.append(check_as_gunicorn(data))

    draw()
    assert sum(usual) > len(usual) / 5


def test_events_of_the_tests_are_usual() -> None:
    headers = "".join(f"ce-{name}: {value}\r\n" for name, value in event("device", "app").items() if value)
    assert read(HEAD + headers.encode() + b"\r\nabc")


@pytest.mark.parametrize(
    "settings",
    [
        {"accesslog": "-"},
        {"forwarded_allow_ips": "127.0.0.1"},
        {"pre_request": lambda _worker, _request: None},
        {"post_request": lambda _worker, _request, _environ, _response: None},
        {"limit_request_line": 100},
        {"limit_request_fields": 10},
        {"limit_request_field_size": 100},
    ],
)
def test_settings_that_make_a_difference_leave_all_requests_to_gunicorn(settings: dict[str, object]) -> None:
    assert is_usual(config(), Logger(config()))
    changed = config(**settings)
    assert not is_usual(changed, Logger(changed))


def test_a_logger_that_counts_requests_gets_all_of_them() -> None:
    class Counting(Logger):  # type: ignore[misc]
        pass

    assert not is_usual(config(), Counting(config()))


def test_requests_over_a_unix_socket_are_left_to_gunicorn() -> None:
    assert environ_of_connection(config(), None, "", "/run/function.sock") is None


# --- Answers ----------------------------------------------------------------------------------------------------------

Application = Callable[[dict[str, Any], "StartResponse"], Any]


class Sink:
    """Takes what gunicorn sends."""

    def __init__(self) -> None:
        self.data = b""

    def sendall(self, data: bytes) -> None:
        self.data += data


def by_gunicorn(status: str, headers: list[tuple[str, str]], body: list[bytes]) -> bytes:
    sink = Sink()
    response = Response(Request(config(), IterUnreader(iter([HEAD + b"\r\nabc"])), CLIENT), sink, config())
    response.start_response(status, headers)
    for piece in body:
        response.write(piece)
    response.close()
    return sink.data


def without_date(answer: bytes) -> list[bytes]:
    return [line for line in answer.split(b"\r\n") if not line.startswith(b"Date: ")]


@pytest.mark.parametrize(
    ("status", "headers", "body"),
    [
        ("204 NO CONTENT", [("Fleet-Outcome", 'write; offset=0; reason="x"')], []),
        (
            "422 UNPROCESSABLE ENTITY",
            [("Content-Type", "application/problem+json"), ("Content-Length", "2")],
            [b"{", b"}"],
        ),
        ("204 NO CONTENT", [], [b"dropped"]),
    ],
)
def test_an_answer_is_that_of_gunicorn(status: str, headers: list[tuple[str, str]], body: list[bytes]) -> None:
    answer = UsualAnswer()
    answer.start(status, headers)
    answer.take(body)
    assert without_date(answer.to_bytes(keeps=True)) == without_date(by_gunicorn(status, headers, body))
    assert b"\r\nConnection: close\r\n" in answer.to_bytes(keeps=False)


def test_an_answer_without_a_length_gets_one() -> None:
    answer = UsualAnswer()
    write = answer.start("200 OK", [])
    write(b"a")
    answer.take([b"b"])
    assert answer.to_bytes(keeps=True).endswith(b"\r\nContent-Length: 2\r\n\r\nab")


@pytest.mark.parametrize("value", ["a\r\nX: b", "a\nb", "a\0b"])
def test_no_header_forges_a_line(value: str) -> None:
    answer = UsualAnswer()
    answer.start("204 NO CONTENT", [("Fleet-Outcome", value)])
    with pytest.raises(ValueError, match="not HTTP"):
        answer.to_bytes(keeps=True)


def test_a_body_is_closed_however_it_ends() -> None:
    closed = []

    class Body:
        def __iter__(self) -> Iterator[bytes]:
            yield b"a"
            raise ValueError("broken")

        def close(self) -> None:
            closed.append(True)

    with pytest.raises(ValueError, match="broken"):
        UsualAnswer().take(Body())
    assert closed == [True]


def test_the_input_is_a_file_of_its_own() -> None:
    data = HEAD + b"\r\nabc"
    first, second = read(data), read(data)
    assert first
    assert second
    assert isinstance(first["wsgi.input"], io.BytesIO)
    assert first["wsgi.input"].read() == second["wsgi.input"].read() == b"abc"
