"""Label selectors of listings."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Self

_Requirement = Callable[[Mapping[str, str]], bool]

_RAW: Final = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
_KEY: Final = rf"(?:[A-Za-z][A-Za-z0-9.]*/)?{_RAW}"
_SPACE: Final = r"[ \t]*"
_VALUE: Final = rf"{_SPACE}{_RAW}{_SPACE}"
#: Spaces are allowed before a key, after it if an operator follows, and around values; nowhere else.
_REQUIREMENT: Final = re.compile(
    rf"{_SPACE}(?P<set>{_KEY})[ \t]+(?P<operator>in|notin){_SPACE}\((?P<values>{_VALUE}(?:,{_VALUE})*|)\)"
    rf"|{_SPACE}(?P<key>{_KEY}){_SPACE}(?P<comparison>!?=){_SPACE}(?P<value>{_RAW}){_SPACE}"
    rf"|{_SPACE}(?P<present>{_KEY})"
    rf"|!{_SPACE}(?P<absent>{_KEY})"
)


@dataclass(frozen=True, slots=True)
class Selector:
    """Requirements on labels, all of which have to hold.

    They read like `a=b,c!=d,e in (f, g),h notin (i),j,!k`.
    """

    requirements: tuple[_Requirement, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a selector as Drogue Cloud does; an empty one selects everything.

        Raises:
            ValueError: the text is not a selector.

        """
        requirements = []
        position = 0
        match = _REQUIREMENT.match(text)
        while match:
            requirements.append(_requirement(match))
            position = match.end()
            match = _REQUIREMENT.match(text, position + 1) if text.startswith(",", position) else None
        if position < len(text):
            raise ValueError(f"ParserError: Unparsable remaining content: '{text[position:]}'")
        return cls(tuple(requirements))

    def selects(self, labels: Mapping[str, str]) -> bool:
        """Return whether an object with these labels is selected."""
        return all(requirement(labels) for requirement in self.requirements)


def _requirement(match: re.Match[str]) -> _Requirement:
    """Return a requirement, evaluated like SQL does.

    A comparison with an absent label is unknown, and selects nothing: neither `=` nor `!=`, neither `in` nor `notin`.
    Kubernetes would select such objects with `!=` and `notin`. Only an empty `notin ()` selects everything.
    """
    if key := match["set"]:
        values = re.findall(_RAW, match["values"])
        if match["operator"] == "in":
            return lambda labels: labels.get(key) in values
        return lambda labels: not values or (key in labels and labels[key] not in values)
    if key := match["key"]:
        value = match["value"]
        if match["comparison"] == "=":
            return lambda labels: labels.get(key) == value
        return lambda labels: key in labels and labels[key] != value
    if key := match["present"]:
        return lambda labels: key in labels
    key = match["absent"]
    return lambda labels: key not in labels
