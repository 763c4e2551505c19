"""Semantic versions (SemVer 2.0.0) and ranges of them, in the syntax of npm.

No library fits: semver has no ranges, semantic-version lets `<2.0.0` match 2.0.0-rc.1, and node-semver takes any word
for a range that nothing is in.
"""

import re
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from typing import Final, Self

#: A version and a range are no longer, in characters.
MAX_VERSION_CHARACTERS: Final = 256
MAX_RANGE_CHARACTERS: Final = 256
#: Parsed ranges that are remembered: each event needs those of its device.
_REMEMBERED_RANGES: Final = 256

_NUMBER: Final = r"0|[1-9][0-9]*"
_IDENTIFIERS: Final = r"[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*"
_VERSION: Final = re.compile(
    rf"({_NUMBER})\.({_NUMBER})\.({_NUMBER})(?:-({_IDENTIFIERS}))?(?:\+{_IDENTIFIERS})?", re.ASCII
)
#: An operator, and a version whose last parts may be missing or `x`.
_PART: Final = f"{_NUMBER}|[xX*]"
_TERM: Final = re.compile(
    rf"(<=|>=|<|>|=|\^|~)?({_PART})(?:\.({_PART})(?:\.({_PART})(?:-({_IDENTIFIERS}))?(?:\+{_IDENTIFIERS})?)?)?",
    re.ASCII,
)
_SPACES_AFTER_OPERATOR: Final = re.compile(r"([<>=^~]) +")

#: Parts of a pre-release, comparable: numbers come before words.
_Identifiers = tuple[tuple[int, int, str], ...]


@dataclass(frozen=True, slots=True, order=True)
class Version:
    """A semantic version. Build metadata makes no difference between versions."""

    major: int
    minor: int
    patch: int
    #: A pre-release comes before its release.
    is_release: bool = True
    prerelease: _Identifiers = ()

    @classmethod
    def read(cls, text: str) -> Self | None:
        """Return the version in a text; None if it is no semantic version."""
        match = _VERSION.fullmatch(text) if len(text) <= MAX_VERSION_CHARACTERS else None
        if match is None:
            return None
        identifiers = _read_identifiers(match[4])
        if identifiers is None:
            return None
        return cls(int(match[1]), int(match[2]), int(match[3]), match[4] is None, identifiers)

    @property
    def core(self) -> tuple[int, int, int]:
        """Major, minor and patch."""
        return self.major, self.minor, self.patch


class MalformedRangeError(ValueError):
    """A text is no range. The error's text says which part, and completes "it …"."""


class _Is(Enum):
    """How a version compares to a bound."""

    BELOW = "<"
    AT_MOST = "<="
    EQUAL = "="
    AT_LEAST = ">="
    ABOVE = ">"


@dataclass(frozen=True, slots=True)
class _Comparator:
    """One condition of a range."""

    relation: _Is
    bound: Version

    def holds(self, version: Version) -> bool:
        match self.relation:
            case _Is.BELOW:
                return version < self.bound
            case _Is.AT_MOST:
                return version <= self.bound
            case _Is.EQUAL:
                return version == self.bound
            case _Is.AT_LEAST:
                return version >= self.bound
            case _Is.ABOVE:
                return version > self.bound


#: The lowest of all versions, which no version is below.
_LOWEST: Final = Version(0, 0, 0, False, ((0, 0, ""),))
_NOTHING: Final = (_Comparator(_Is.BELOW, _LOWEST),)


@dataclass(frozen=True, slots=True)
class Range:
    """A set of versions: all conditions of one of its alternatives hold.

    A pre-release is in it only if one of these conditions names a pre-release of the same major, minor and patch.
    """

    text: str
    _alternatives: tuple[tuple[_Comparator, ...], ...] = field(repr=False)

    def __contains__(self, version: Version) -> bool:
        return any(_all_hold(comparators, version) for comparators in self._alternatives)

    def __str__(self) -> str:
        return self.text


@lru_cache(_REMEMBERED_RANGES)
def parse_range(text: str) -> Range:
    """Return the range in a text.

    Examples are `>=1.2 <2`, `1.x`, `^1.2`, `~1.2 || 2.0.1` and `1.2 - 2.3`.

    Raises:
        MalformedRangeError: it is none.

    """
    if len(text) > MAX_RANGE_CHARACTERS:
        raise MalformedRangeError(f"has {len(text)} characters; at most {MAX_RANGE_CHARACTERS} are read")
    return Range(text, tuple(tuple(_read_alternative(part.strip(" "))) for part in text.split("||")))


def _all_hold(comparators: tuple[_Comparator, ...], version: Version) -> bool:
    if not all(comparator.holds(version) for comparator in comparators):
        return False
    return version.is_release or any(
        not comparator.bound.is_release and comparator.bound.core == version.core for comparator in comparators
    )


def _read_alternative(text: str) -> list[_Comparator]:
    if not text:
        raise MalformedRangeError("has an empty alternative; * stands for all releases")
    first, dash, last = text.partition(" - ")
    if dash:
        return [*_between(_read_term(first.strip(" "), plain=True), _read_term(last.strip(" "), plain=True))]
    terms = [term for term in _SPACES_AFTER_OPERATOR.sub(r"\1", text).split(" ") if term]
    return [comparator for term in terms for comparator in _comparators(_read_term(term))]


@dataclass(frozen=True, slots=True)
class _Term:
    """An operator and the parts of a version that are given; `x` ends them."""

    operator: str
    parts: tuple[int, ...]
    is_release: bool = True
    prerelease: _Identifiers = ()

    @property
    def lowest(self) -> Version:
        """The lowest release that the parts describe, or the pre-release that is given."""
        major, minor, patch = (*self.parts, 0, 0, 0)[:3]
        return Version(major, minor, patch, self.is_release, self.prerelease)

    def following(self, position: int) -> Version:
        """Return the lowest version after those with the same parts up to a position."""
        parts = (*self.parts[:position], self.parts[position] + 1, 0, 0)
        return Version(parts[0], parts[1], parts[2], False, _LOWEST.prerelease)


def _read_term(text: str, *, plain: bool = False) -> _Term:
    match = _TERM.fullmatch(text)
    identifiers = _read_identifiers(match[5]) if match else None
    if match is None or identifiers is None or (plain and match[1]):
        hint = ": versions have no v in front" if text.lstrip("<>=^~").lower().startswith("v") else ""
        raise MalformedRangeError(f'contains "{text}", which is no condition such as >=1.2, ^1.2, ~1.2 or 1.x{hint}')
    given = [part for part in match.group(2, 3, 4) if part is not None]
    numbers = [int(part) for part in given if part not in "xX*"]
    is_cut = len(numbers) < len(given)
    if numbers != [int(part) for part in given[: len(numbers)] if part not in "xX*"] or (is_cut and match[5]):
        raise MalformedRangeError(f'contains "{text}", in which something follows the x')
    return _Term(match[1] or "=", tuple(numbers), match[5] is None, identifiers)


def _comparators(term: _Term) -> tuple[_Comparator, ...]:
    """Return the conditions that a term stands for."""
    given = len(term.parts)
    if not given:
        return _NOTHING if term.operator in ("<", ">") else ()  # x is no condition: all releases meet it
    match term.operator:
        case "^":
            # The first part that is not 0 stays the same, or else the last one that is given.
            fixed = next((position for position, part in enumerate(term.parts) if part), given - 1)
            return _up_to(term, fixed)
        case "~":
            return _up_to(term, min(given - 1, 1))
        case "=" if given < 3:
            return _up_to(term, given - 1)
        case "<" if given < 3:
            return (_Comparator(_Is.BELOW, Version(*term.lowest.core, False, _LOWEST.prerelease)),)
        case "<=" if given < 3:
            return (_Comparator(_Is.BELOW, term.following(given - 1)),)
        case ">" if given < 3:
            return (_Comparator(_Is.AT_LEAST, Version(*term.following(given - 1).core)),)
    return (_Comparator(_Is(term.operator), term.lowest),)


def _up_to(term: _Term, fixed: int) -> tuple[_Comparator, ...]:
    """Return the conditions of a term's version, and of those above that share parts.

    They share those up to the position `fixed`.
    """
    return _Comparator(_Is.AT_LEAST, term.lowest), _Comparator(_Is.BELOW, term.following(fixed))


def _between(first: _Term, last: _Term) -> tuple[_Comparator, ...]:
    """Return the conditions of `first - last`, both included."""
    lower = (_Comparator(_Is.AT_LEAST, first.lowest),) if first.parts else ()
    if not last.parts:
        return lower
    if len(last.parts) < 3:
        return *lower, _Comparator(_Is.BELOW, last.following(len(last.parts) - 1))
    return *lower, _Comparator(_Is.AT_MOST, last.lowest)


def _read_identifiers(text: str | None) -> _Identifiers | None:
    """Return the identifiers of a pre-release; None if a number begins with 0."""
    if text is None:
        return ()
    parts = text.split(".")
    if any(part.isdigit() and len(part) > 1 and part[0] == "0" for part in parts):
        return None
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts)
