"""The check of URLs and addresses that an OCI registry sends the function to."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_fn.errors import PermanentError
from fleet_fn.http.address_policy import make_address_check, split_url

GLOBAL = ["140.82.121.33", "2606:50c0:8000::154", "64:ff9b::8c52:7921"]
PRIVATE = ["10.0.0.1", "172.16.5.4", "192.168.1.1", "100.64.0.1", "fd00::1", "::ffff:10.0.0.1", "64:ff9b::a00:1"]
LOOPBACK = ["127.0.0.1", "127.8.9.1", "::1", "0.0.0.0", "::", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::"]
NEVER = ["169.254.169.254", "fe80::1", "fe80::1%eth0", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe"]
NOWHERE = ["224.0.0.1", "ff02::1", "255.255.255.255", "240.0.0.1"]

NAME = "OCI registry registry.example"


def permitted(registry: list[str], addresses: list[str]) -> list[str]:
    permits = make_address_check(lambda: registry)
    return [address for address in addresses if permits(address)]


ALL = GLOBAL + PRIVATE + LOOPBACK + NEVER + NOWHERE


@pytest.mark.parametrize("registry", GLOBAL)
def test_a_public_registry_leads_to_public_addresses(registry: str) -> None:
    assert permitted([registry], ALL) == GLOBAL


@pytest.mark.parametrize("registry", PRIVATE)
def test_a_private_one_leads_to_private_ones_too_but_not_to_the_functions_own_pod(registry: str) -> None:
    assert permitted([registry], ALL) == GLOBAL + PRIVATE


@pytest.mark.parametrize("registry", LOOPBACK)
def test_one_on_loopback_leads_to_loopback_too(registry: str) -> None:
    assert permitted([registry], ALL) == GLOBAL + PRIVATE + LOOPBACK


@pytest.mark.parametrize("registry", [*NEVER, *NOWHERE])
def test_one_at_an_odd_address_leads_to_public_ones_only(registry: str) -> None:
    assert permitted([registry], ALL) == GLOBAL


def test_one_of_several_addresses_counts() -> None:
    assert permitted(["140.82.121.33", "10.0.0.1"], ["10.0.0.2", "127.0.0.1"]) == ["10.0.0.2"]
    assert permitted([], PRIVATE) == []


@given(st.ip_addresses())
def test_link_local_is_never_permitted(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    if permitted(["127.0.0.1"], [str(address)]):
        assert not address.is_link_local
        assert not address.is_multicast


@pytest.mark.parametrize(
    ("url", "split"),
    [
        ("https://cdn.example/blob", ("https://cdn.example", "/blob")),
        ("https://cdn.example", ("https://cdn.example", "/")),
        ("https://cdn.example?x=1", ("https://cdn.example", "/?x=1")),
        ("HTTPS://CDN.example:8443/a/b?sig=a%2Fb&x=#fragment", ("https://CDN.example:8443", "/a/b?sig=a%2Fb&x=")),
        ("https://[2606:50c0::1]:5000/a b/ü?ö=x y", ("https://[2606:50c0::1]:5000", "/a%20b/%C3%BC?%C3%B6=x%20y")),
    ],
)
def test_a_url_is_an_origin_and_what_to_ask_for_there(url: str, split: tuple[str, str]) -> None:
    assert split_url(url, plain_http=False, registry=NAME) == split


def test_plain_http_only_where_it_is_allowed() -> None:
    assert split_url("http://cdn.example/x", plain_http=True, registry=NAME) == ("http://cdn.example", "/x")
    with pytest.raises(
        PermanentError,
        match=r"^OCI registry registry\.example: sends us to http://cdn\.example, and plain HTTP is not allowed$",
    ):
        split_url("http://cdn.example/x?secret", plain_http=False, registry=NAME)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/relative",
        "//cdn.example/x",
        "ftp://cdn.example/x",
        "file:///etc/passwd",
        "https://",
        "https:///x",
        "https://user:secret@cdn.example/x",
        "https://cdn.example:0/",
        "https://cdn.example:99999/",
        "https://cdn.example:x/",
        "https://[::1/",
        f"https://{'a' * 64}.example/",
        "https://a..b/",
        "https://127.0.0.1\0.example/",
        "https://cdn.example%00/",
        "https://cdn example/",
        "https://[fe80::1%25eth0]/",
        "https://é.example/",
    ],
)
def test_what_is_no_url_for_a_request_is_refused_and_not_quoted(url: str) -> None:
    with pytest.raises(PermanentError, match=r"^OCI registry registry\.example: sends us to ") as caught:
        split_url(url, plain_http=True, registry=NAME)
    assert "secret" not in caught.value.reason


@given(st.text(), st.booleans())
def test_any_text_is_split_into_what_a_request_line_can_carry_or_refused(text: str, plain_http: bool) -> None:
    for url in (text, f"https://cdn.example/{text}", f"https://cdn.example?{text}", f"https://{text}/"):
        try:
            _, path = split_url(url, plain_http=plain_http, registry=NAME)
        except PermanentError:
            continue
        assert path.startswith("/")
        assert path.isascii()
        assert path.isprintable()
        assert " " not in path
