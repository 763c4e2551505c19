"""References follow the OCI grammar, and none of them leaves its prefix."""

import re
from pathlib import PurePosixPath

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from fleet_fn.errors import PermanentError
from fleet_fn.oci.reference import Reference, fill_in, parse_reference

DIGEST = "sha256:" + "0123456789abcdef" * 4

#: Texts that look like references, and some way off.
references = st.one_of(
    st.text(max_size=30),
    st.text("ab1./:@-_~%\\{} \n\0Aü", max_size=30),
    st.from_regex(r"\A[a-z0-9./_-]{1,30}(:[A-Za-z0-9._-]{0,10})?(@sha256:[a-f0-9]{60,66})?\Z"),
)


@pytest.mark.parametrize(
    ("text", "name", "tag", "digest"),
    [
        ("pump", "pump", "latest", None),
        ("pump:1.2.3", "pump", "1.2.3", None),
        ("pump:latest", "pump", "latest", None),
        ("pump:V1_x-y.z", "pump", "V1_x-y.z", None),
        (f"pump@{DIGEST}", "pump", None, DIGEST),
        (f"pump:1@{DIGEST}", "pump", "1", DIGEST),
        ("a/b-c/d__e.f/g--h", "a/b-c/d__e.f/g--h", "latest", None),
        ("0", "0", "latest", None),
        ("a" * 255 + ":" + "t" * 128, "a" * 255, "t" * 128, None),
    ],
)
def test_names_tags_and_digests_are_told_apart(text: str, name: str, tag: str | None, digest: str | None) -> None:
    assert parse_reference(text, "ghcr.io/acme/") == Reference("ghcr.io/acme/", name, tag, digest)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":1",
        f"@{DIGEST}",
        "Pump",
        "pump/",
        "/pump",
        "//evil.example/pump",
        "a//b",
        "../pump",
        "a/../b",
        "a/./b",
        ".",
        "..",
        "a..b",
        "a___b",
        "-a",
        "a-",
        "_a",
        "pump:",
        "pump:1:2",
        "pump:-1",
        "pump:.1",
        "pump:1/2",
        "pump:" + "t" * 129,
        "a" * 256,
        "pump@",
        "pump@sha256:",
        f"pump@{DIGEST}0",
        f"pump@{DIGEST.upper()}",
        f"pump@sha512:{'0' * 128}",
        f"pump@{DIGEST}@{DIGEST}",
        "evil.example:5000/pump",
        "https://evil.example/pump",
        "user@evil.example/pump",
        "pump\n",
        "pump:1\n",
        f"pump@{DIGEST}\n",
        "pu mp",
        "pump?x",
        "pump#x",
        "pump%2f..%2fx",
        "pump\\..\\x",
        "{application}",
        "pümp",
        "\u0661",
        "pump\0",
        "-evil/x",
    ],
)
def test_invalid_reference_fails_with_a_one_line_reason(text: str) -> None:
    with pytest.raises(PermanentError, match=r"^invalid reference '") as caught:
        parse_reference(text, "ghcr.io/acme/")
    assert caught.value.reason.isprintable()


def test_the_reason_of_a_long_one_is_short() -> None:
    with pytest.raises(PermanentError) as caught:
        parse_reference("A" * 1_000_000)
    assert len(caught.value.reason) < 300


@pytest.mark.timeout(5)
@pytest.mark.parametrize("part", ["a", "a-", "a/", "a.", "a__", "-"])
def test_long_ones_are_refused_quickly(part: str) -> None:
    with pytest.raises(PermanentError):
        parse_reference(part * 200_000 + "!")


@given(references)
@example("../x")
@example("a/..")
@example("pump:1.2.3")
@example(f"pump@{DIGEST}")
def test_any_text_fails_or_stays_below_the_prefix(text: str) -> None:
    prefix = "ghcr.io/acme/"
    try:
        reference = parse_reference(text, prefix)
    except PermanentError as error:
        assert error.reason.isprintable()
        return
    path = PurePosixPath(reference.prefix, reference.name)
    assert path.is_relative_to("ghcr.io/acme")
    assert path != PurePosixPath("ghcr.io/acme")
    assert not {"..", ".", ""} & set(reference.name.split("/"))
    assert re.fullmatch(r"[a-z0-9._/-]+", reference.name)
    assert reference.tag is None or re.fullmatch(r"\w[\w.-]*", reference.tag, re.ASCII)
    assert (reference.tag is None) <= (reference.digest is not None)
    assert parse_reference(str(reference), prefix) == reference


def test_placeholders_are_replaced_by_names() -> None:
    names = {"application": "fleet", "device": "pump-1"}
    assert fill_in("ghcr.io/{application}/{device}/{application}:1", names) == "ghcr.io/fleet/pump-1/fleet:1"
    assert fill_in("ghcr.io/{other}/", names) == "ghcr.io/{other}/"


def test_names_that_no_placeholder_asks_for_may_be_anything() -> None:
    assert fill_in("ghcr.io/acme/", {"application": "../x", "device": "\n"}) == "ghcr.io/acme/"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "Pump", "ü", "a:b", "a@b", "a\n", "{device}", "a" * 256])
def test_a_name_that_is_not_one_component_fails(name: str) -> None:
    with pytest.raises(PermanentError, match=r"^application name '.*' is not one valid path component") as caught:
        fill_in("ghcr.io/{application}/", {"application": name})
    assert caught.value.reason.isprintable()


@given(st.text(max_size=20) | st.text("ab./:@{}-_", max_size=12), st.text(max_size=20))
def test_any_name_fills_one_component_or_fails(application: str, device: str) -> None:
    try:
        filled = fill_in("ghcr.io/{application}/{device}", {"application": application, "device": device})
    except PermanentError:
        return
    assert filled == f"ghcr.io/{application}/{device}"
    assert filled.count("/") == 2
    assume(len(application) + len(device) < 200)
    assert parse_reference(filled.removeprefix("ghcr.io/")).name == f"{application}/{device}"
