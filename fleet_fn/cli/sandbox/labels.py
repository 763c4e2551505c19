"""Label selectors: which objects a listing shows."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Self

_Requirement = Callable[[Mapping[str, str]], bool]

_VALUE: Final = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
_KEY: Final = rf"(?:[A-Za-z][A-Za-z0-9.]*/)?{_VALUE}"
_REQUIREMENT: Final = re.compile(
    rf"\s*(?:(?P<set>{_KEY})\s+(?P<operator>in|notin)\s*\(\s*(?P<values>{_VALUE}(?:\s*,\s*{_VALUE})*)\s*\)"
    rf"|(?P<key>{_KEY})\s*(?P<comparison>!?=)\s*(?P<value>{_VALUE})"
    rf"|(?P<absent>!)?(?P<existing>{_KEY}))\s*(?:,|$)"
)


@dataclass(frozen=True, slots=True)
class Selector:
    """Requirements on labels, all of which have to hold: `a=b,c!=d,e in (f, g),h notin (i),j,!k`."""

    requirements: tuple[_Requirement, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """The selector that `text` writes; an empty one selects everything.

        Raises:
            ValueError: it is none.

        """
        requirements = []
        position = 0
        while position < len(text):
            match = _REQUIREMENT.match(text, position)
            if not match:
                raise ValueError(f"not a label selector: {text[position:]!r}")
            requirements.append(_requirement(match))
            position = match.end()
        return cls(tuple(requirements))

    def selects(self, labels: Mapping[str, str]) -> bool:
        """Whether an object with these labels is selected."""
        return all(requirement(labels) for requirement in self.requirements)


def _requirement(match: re.Match[str]) -> _Requirement:
    """As Kubernetes means them: a label that is absent is unequal to every value, and in no set."""
    if key := match["set"]:
        values = re.findall(_VALUE, match["values"])
        if match["operator"] == "in":
            return lambda labels: labels.get(key) in values
        return lambda labels: labels.get(key) not in values
    if key := match["key"]:
        value = match["value"]
        if match["comparison"] == "=":
            return lambda labels: labels.get(key) == value
        return lambda labels: labels.get(key) != value
    key, absent = match["existing"], bool(match["absent"])
    return lambda labels: (key in labels) is not absent
