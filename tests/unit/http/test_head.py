"""Heads of answers, given line by line."""

from hypothesis import given
from hypothesis import strategies as st

from fleet_fn.http.head import Head

FINAL = [b"HTTP/1.1 401 Unauthorized\r\n", b"WWW-Authenticate: Basic\r\n", b"www-authenticate:Bearer \r\n", b"\r\n"]
INTERIM = [b"HTTP/1.1 103 Early Hints\r\n", b"WWW-Authenticate: Negotiate\r\n", b"\r\n"]


def head(*lines: bytes) -> Head:
    found = Head()
    for line in lines:
        found.add(line)
    return found


@given(st.integers(0, 3), st.lists(st.binary(max_size=20), max_size=3))
def test_the_headers_are_those_of_the_final_answer(interim: int, trailers: list[bytes]) -> None:
    found = head(*INTERIM * interim, *FINAL, *trailers)
    assert found.is_complete
    assert found.headers().getlist("Www-Authenticate") == ["Basic", "Bearer"]


@given(st.integers(0, 3), st.integers(0, len(FINAL) - 1))
def test_a_head_is_not_complete_before_its_empty_line(interim: int, count: int) -> None:
    assert not head(*INTERIM * interim, *FINAL[:count]).is_complete
