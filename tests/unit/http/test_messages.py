"""Requests: what they may contain, and how libcurl takes their headers."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_fn.http.messages import Request


def request(target: str = "/", headers: Mapping[str, str] | None = None, body: bytes | None = None) -> Request:
    return Request("GET", target, headers or {}, body, wants_body=True)


@pytest.mark.parametrize("target", ["/a b", "/a\r\nX: y", "/ä", "/\x7f"])
def test_a_target_that_could_end_the_request_line_is_refused(target: str) -> None:
    with pytest.raises(ValueError, match="the path is not percent-encoded"):
        request(target)


@given(st.sampled_from("\r\n\0\x1b\x7f"))
def test_a_header_that_could_end_is_refused_and_not_repeated_in_the_error(control: str) -> None:
    with pytest.raises(ValueError, match="'Authorization' contains a control character") as caught:
        request(headers={"Authorization": f"s3cret{control}X: y"})
    assert "s3cret" not in str(caught.value)


def test_neither_credentials_nor_bodies_are_shown() -> None:
    assert "s3cret" not in repr(request(headers={"Authorization": "s3cret"}, body=b"s3cret"))


def test_an_empty_header_is_sent_and_not_taken_for_one_to_leave_out() -> None:
    assert request(headers={"X": ""}).header_lines()[0] == b"X;"
