"""The tags of a repository that are semantic versions."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from fleet_fn.version_range import Range

#: Tags in a range that are looked at, the highest first.
MAX_CANDIDATES: Final = 64
#: Ranges whose tags are remembered with a list.
_MAX_RANGES: Final = 16


@dataclass(frozen=True, slots=True)
class TagList:
    """Tags that are semantic versions, the highest first; the others are left out."""

    tags: tuple[str, ...]
    #: Tags by the text of a range: each event of each device asks for them.
    _found: dict[str, tuple[str, ...]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, tags: Iterable[str]) -> Self:
        """Return the list of a repository's tags."""
        from fleet_fn.version_range import Version  # imported when needed: most specs name a tag

        versions = {tag: version for tag in tags if (version := Version.read(tag))}
        return cls(tuple(sorted(versions, key=versions.__getitem__, reverse=True)))

    def within(self, wanted: "Range") -> tuple[str, ...]:
        """Return the highest tags in a range, `MAX_CANDIDATES` at most."""
        found = self._found.get(wanted.text)
        if found is None:
            found = tuple(_first_within(self.tags, wanted))
            if len(self._found) >= _MAX_RANGES:
                self._found.clear()
            self._found[wanted.text] = found
        return found


def _first_within(tags: Iterable[str], wanted: "Range") -> list[str]:
    from fleet_fn.version_range import Version

    found: list[str] = []
    for tag in tags:
        version = Version.read(tag)
        if version is not None and version in wanted:
            found.append(tag)
            if len(found) == MAX_CANDIDATES:
                break
    return found
