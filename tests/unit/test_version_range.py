"""Semantic versions and ranges: the specification's order, npm's syntax, and an oracle that only counts."""

import time
from collections.abc import Callable
from itertools import product
from typing import Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fleet_fn.version_range import MAX_RANGE_CHARACTERS, MalformedRangeError, Version, parse_range

#: Pre-releases in the order of SemVer 2.0.0, section 11; the release comes last.
_SUFFIXES: Final = ("-0", "-1", "-2", "-11", "-0a", "-a-b", "-alpha", "-alpha.1", "-alpha.beta", "-rc", "-rc.2", "")
#: All versions of a small world, in their order.
_WORLD: Final = [f"{a}.{b}.{c}{suffix}" for a, b, c in product(range(4), repeat=3) for suffix in _SUFFIXES]
_PLACE: Final = {text: place for place, text in enumerate(_WORLD)}


def _read(text: str) -> Version:
    version = Version.read(text)
    assert version is not None, text
    return version


# --- Versions ---------------------------------------------------------------------------------------------------------


def test_versions_have_the_order_of_the_specification() -> None:
    versions = [_read(text) for text in _WORLD]
    assert versions == sorted(versions)
    assert len(set(versions)) == len(versions)


def test_build_metadata_makes_no_difference() -> None:
    assert _read("1.2.3+linux.01") == _read("1.2.3") < _read("1.2.4-rc+7")


def test_numbers_beyond_any_machine_word_are_compared_exactly() -> None:
    assert _read(f"1.0.{10**60}") > _read(f"1.0.{10**60 - 1}") > _read("1.0.9")
    assert _read(f"1.0.0-{10**60}") > _read(f"1.0.0-{10**60 - 1}")


@pytest.mark.parametrize(
    "text",
    [
        *("", "1", "1.2", "1.2.3.4", "v1.2.3", "01.2.3", "1.2.03", "1.2.3-", "1.2.3-01", "1.2.3-a..b", "1.2.3+"),
        *("latest", "1.2.x", "-1.2.3", "1.2.3\n", "1.2.3 ", "1.2.٣", f"1.2.{'9' * 300}", "1_000.2.3"),
    ],
)
def test_texts_that_are_no_semantic_versions(text: str) -> None:
    assert Version.read(text) is None


# --- Ranges -----------------------------------------------------------------------------------------------------------


def _oracle(text: str) -> set[str]:
    """Return the versions of the world in a range, told by their places and the parts that they share."""
    return set().union(*(_oracle_of_alternative(alternative.strip()) for alternative in text.split("||")))


def _oracle_of_alternative(text: str) -> set[str]:
    if " - " in text:
        first, last = text.split(" - ")
        found = _from_first(first) & _up_to_last(last)
        named = [first, last]
    else:
        found, named = set(_WORLD), []
        for term in text.split():
            bare = term.lstrip("<>=^~")
            found &= _OPERATORS[term.removesuffix(bare)](bare)
            named.append(bare)
    cores = {name.split("-")[0] for name in named if "-" in name}
    return {version for version in found if "-" not in version or version.split("-")[0] in cores}


def _parts(text: str) -> list[str]:
    """Return the parts before the first `x`."""
    parts = text.split("-")[0].split(".")
    return parts[: next((place for place, part in enumerate(parts) if part in "xX*"), len(parts))]


def _sharing(parts: list[str]) -> set[str]:
    return {version for version in _WORLD if version.split("-")[0].split(".")[: len(parts)] == parts}


def _place_of_first(text: str) -> int:
    """Return the place of the first version that a text describes: the first release, if it leaves parts open."""
    parts = _parts(text)
    return _PLACE[text if len(parts) == 3 else ".".join([*parts, "0", "0", "0"][:3])]


def _place_after_last(text: str) -> int:
    parts = _parts(text)
    return 1 + max(_PLACE[version] for version in ({text} if len(parts) == 3 else _sharing(parts)))


def _exactly(text: str) -> set[str]:
    if not _parts(text):
        return set(_WORLD)
    return set(_WORLD[_place_of_first(text) : _place_after_last(text)])


def _from_first(text: str) -> set[str]:
    if not _parts(text):
        return set(_WORLD)
    return set(_WORLD[_place_of_first(text) :])


def _up_to_last(text: str) -> set[str]:
    return set(_WORLD[: _place_after_last(text)])


def _above(text: str) -> set[str]:
    if len(_parts(text)) == 3:
        return set(_WORLD[_place_after_last(text) :])
    # The pre-releases of the release that follows are no more above 1.2 than they are below 1.3.
    return set(_WORLD[_place_after_last(text) + len(_SUFFIXES) - 1 :])


def _below(text: str) -> set[str]:
    parts = _parts(text)
    return set(_WORLD[: _PLACE[text] if len(parts) == 3 else min(_PLACE[version] for version in _sharing(parts))])


def _caret(text: str) -> set[str]:
    parts = _parts(text)
    kept = next((place for place, part in enumerate(parts) if part != "0"), len(parts) - 1) + 1
    return _from_first(text) & _sharing(parts[:kept])


_OPERATORS: Final[dict[str, Callable[[str], set[str]]]] = {
    "": _exactly,
    "=": _exactly,
    ">=": _from_first,
    "<=": _up_to_last,
    ">": _above,
    "<": _below,
    "^": _caret,
    "~": lambda text: _from_first(text) & _sharing(_parts(text)[:2]),
}

_numbers = st.sampled_from("0123")
_full = st.sampled_from(_WORLD)
_partial = st.one_of(
    _full,
    _numbers,
    st.tuples(_numbers, _numbers).map(".".join),
    st.sampled_from("xX*"),
    st.tuples(_numbers, st.sampled_from("xX*")).map(".".join),
    st.tuples(_numbers, _numbers, st.sampled_from("xX*")).map(".".join),
)
_terms = st.tuples(st.sampled_from(list(_OPERATORS)), _partial).map("".join)
_alternatives = st.one_of(
    st.lists(_terms, min_size=1, max_size=3).map(" ".join), st.tuples(_partial, _partial).map(" - ".join)
)
_ranges = st.lists(_alternatives, min_size=1, max_size=3).map(" || ".join)


@given(_ranges)
@example("0.0.0-0 || 0.0.0-1 <=x")
@example("x - 0.0.0-1")
def test_ranges_hold_what_the_oracle_counts(text: str) -> None:
    found = parse_range(text)
    assert {version for version in _WORLD if _read(version) in found} == _oracle(text)


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        (">=1.2 <2", "1.2.0 1.99.0", "1.1.9 2.0.0 2.0.0-rc.1 1.3.0-rc.1"),
        ("1.x", "1.0.0 1.9.9", "0.9.9 2.0.0 1.0.0-rc.1"),
        ("^1.2", "1.2.0 1.9.0", "1.1.0 2.0.0"),
        ("^0.2.3", "0.2.3 0.2.9", "0.3.0 0.2.2"),
        ("~1.2", "1.2.0 1.2.9", "1.3.0"),
        ("~1.2.3 || >=3", "1.2.4 3.0.0", "1.2.2 2.0.0"),
        ("1.2 - 2.3", "1.2.0 2.3.9", "2.4.0 1.1.9"),
        (">= 1.2  < 2", "1.2.0", "2.0.0"),
        (">=1.2.0-rc.1", "1.2.0-rc.1 1.2.0-rc.2 1.2.0 9.0.0", "1.2.0-beta 1.3.0-rc.1"),
        ("*", "0.0.0 9.9.9", "1.0.0-rc.1"),
        ("<*", "", "0.0.0 0.0.0-0 1.0.0"),
        ("1.2.3+build", "1.2.3 1.2.3+other", "1.2.4"),
    ],
)
def test_examples(text: str, inside: str, outside: str) -> None:
    found = parse_range(text)
    assert [version for version in inside.split() if _read(version) not in found] == []
    assert [version for version in outside.split() if _read(version) in found] == []


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "an empty alternative"),
        ("1.x ||", "an empty alternative"),
        ("latest", '"latest"'),
        (">=1.2,<2", '">=1.2,<2"'),
        ("v1.2", "versions have no v in front"),
        (">=v1.2", "versions have no v in front"),
        ("1.2.3.4", '"1.2.3.4"'),
        ("1.x.3", "something follows the x"),
        ("1.x-rc", '"1.x-rc"'),
        ("1.x.x-rc", "something follows the x"),
        ("01.2", '"01.2"'),
        ("1.2.3-01", '"1.2.3-01"'),
        ("~>1.2", '"~>1.2"'),
        ("=>1", '"=>1"'),
        ("1 - 2 - 3", '"2 - 3"'),
        (">1 - 2", '">1"'),
        (">=", '">="'),
        (">=1.2\n<2", '">=1.2\n<2"'),
        ("1.٢", '"1.٢"'),
    ],
)
def test_a_malformed_range_names_its_part(text: str, part: str) -> None:
    with pytest.raises(MalformedRangeError) as caught:
        parse_range(text)
    assert part in str(caught.value)


def test_a_long_range_is_not_read() -> None:
    with pytest.raises(MalformedRangeError, match="300 characters"):
        parse_range("1" * 300)


@pytest.mark.parametrize("filler", ["1.", "1-", ">", "^ ", "x.", "1.2.3-a.", "|| ", "1 - ", "-" * 8, "0"])
def test_no_range_takes_long_to_refuse(filler: str) -> None:
    text = ("1.2.3-" + filler * MAX_RANGE_CHARACTERS)[:MAX_RANGE_CHARACTERS]
    began = time.perf_counter()
    for one in (text, text[6:]):
        try:
            parse_range(one)
        except MalformedRangeError:
            pass
        Version.read(one)
    assert time.perf_counter() - began < 0.1


@given(st.text(max_size=40))
def test_any_text_is_a_range_or_malformed(text: str) -> None:
    try:
        assert str(parse_range(text)) == text
    except MalformedRangeError as error:
        assert str(error)
