"""The table of devices: which of them it shows, in which order, page by page."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any, Final, Self

from fleet_fn.console.command_line import command_line, quote
from fleet_fn.console.snapshot import Entry
from fleet_fn.fleet.states import ATTENTION, State
from fleet_fn.fleet.totals import MAX_CHARS, version_key

#: Devices of a page.
PAGE_DEVICES: Final = 50
#: The value of `state` that stands for all states that an operator should look at.
NEEDS_ATTENTION: Final = "attention"
#: Characters of a text in the query that count; names have 255 bytes at most.
_MAX_TEXT: Final = 1000
_MAX_DIGITS: Final = 9
#: A label that a selector of `fleet-fn fleet --labels` can name.
_PLAIN_LABEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*(=[A-Za-z0-9][A-Za-z0-9._-]*)?")
#: The columns that can sort the devices, and their values; None if a device has none.
COLUMNS: Final[Mapping[str, Callable[[Entry], Any]]] = {
    "name": attrgetter("row.device"),
    "state": attrgetter("row.state"),
    "current": attrgetter("row.current"),
    "target": attrgetter("row.target"),
    "since": attrgetter("row.since"),
    "seen": attrgetter("row.seen"),
}
#: How the few values of some columns rank; those of the others are compared themselves.
_RANKED: Final[Mapping[str, Callable[[Any], Any]]] = {
    "state": list(State).index,
    "current": version_key,
    "target": version_key,
}
_SETS_OF_STATES: Final[Mapping[str, tuple[State, ...]]] = {
    **{state.value: (state,) for state in State},
    NEEDS_ATTENTION: ATTENTION,
}


@dataclass(frozen=True, slots=True)
class TableQuery:
    """What a user wants to see of the devices. Empty texts ask for nothing."""

    #: Part of the name, in any case.
    text: str = ""
    #: A state, or `NEEDS_ATTENTION`.
    state: str = ""
    #: The version that devices run.
    version: str = ""
    #: `key=value`, or `key` for devices that have the label at all.
    label: str = ""
    #: A column of `COLUMNS`, after `-` from the last to the first.
    sort: str = "name"
    #: From 1.
    page: int = 1

    @classmethod
    def read(cls, arguments: Mapping[str, str]) -> Self:
        """Read a query string; what makes no sense counts as missing."""
        state, sort = arguments.get("state", ""), arguments.get("sort", "")
        page = arguments.get("page", "")
        return cls(
            arguments.get("q", "").strip()[:_MAX_TEXT],
            state if state in _SETS_OF_STATES else "",
            arguments.get("version", "")[:_MAX_TEXT],
            arguments.get("label", "").strip()[:_MAX_TEXT],
            sort if sort.removeprefix("-") in COLUMNS else "name",
            max(int(page), 1) if page.isascii() and page.isdigit() and len(page) <= _MAX_DIGITS else 1,
        )

    def arguments(self, **changes: Any) -> dict[str, Any]:
        """Return the values for a query string, after changes.

        Another filter or order begins at the first page.
        """
        changed = replace(self, **{"page": 1, **changes})
        return {
            "q": changed.text,
            "state": changed.state,
            "version": changed.version,
            "label": changed.label,
            "sort": changed.sort if changed.sort != "name" else "",
            "page": changed.page if changed.page > 1 else "",
        }

    @property
    def is_filtered(self) -> bool:
        """Whether it may leave out devices."""
        return bool(self.text or self.state or self.version or self.label)

    @property
    def column(self) -> str:
        """The column that sorts the devices."""
        return self.sort.removeprefix("-")

    @property
    def descends(self) -> bool:
        """Whether the last comes first."""
        return self.sort.startswith("-")

    def command(self, application: str) -> str:
        """Return the command line that shows these devices; empty if none can."""
        if self.label and not _PLAIN_LABEL.fullmatch(self.label):
            return ""
        states = list(_SETS_OF_STATES.get(self.state, ()))
        command = command_line("fleet", application=application, labels=self.label, state=states, version=self.version)
        return f"{command} | grep -iF -- {quote(self.text)}" if self.text else command


@dataclass(frozen=True, slots=True)
class TablePage:
    """A page of the table."""

    entries: Sequence[Entry]
    #: Devices on all pages.
    total: int
    #: From 1.
    number: int
    pages: int

    @property
    def first(self) -> int:
        """Number of its first device, from 1; 0 if there is none."""
        return (self.number - 1) * PAGE_DEVICES + 1 if self.entries else 0

    @property
    def last(self) -> int:
        """Number of its last device."""
        return self.first + len(self.entries) - 1 if self.entries else 0


def read_page(entries: Sequence[Entry], query: TableQuery) -> TablePage:
    """Return the page that a user wants to see, or the last one if there are fewer."""
    found = order(select(entries, query), query)
    pages = max(-(-len(found) // PAGE_DEVICES), 1)
    number = min(query.page, pages)
    start = (number - 1) * PAGE_DEVICES
    return TablePage(found[start : start + PAGE_DEVICES], len(found), number, pages)


def select(entries: Sequence[Entry], query: TableQuery) -> Sequence[Entry]:
    """Return the devices that a filter leaves."""
    found = entries
    if query.state:
        states = _SETS_OF_STATES[query.state]
        found = [entry for entry in found if entry.row.state in states]
    if query.version:
        found = [entry for entry in found if (entry.row.current or "")[:MAX_CHARS] == query.version]
    if query.label:
        key, separator, value = query.label.partition("=")
        found = [entry for entry in found if (entry.labels.get(key) == value if separator else key in entry.labels)]
    if query.text:
        text = query.text.casefold()
        found = [entry for entry in found if text in entry.row.device.casefold()]
    return found


def order(entries: Sequence[Entry], query: TableQuery) -> Sequence[Entry]:
    """Return devices in a column's order.

    Those without a value come last in either direction. Equal ones are in the order of their names.
    """
    by_name = sorted(entries, key=COLUMNS["name"])
    if query.column == "name":
        return by_name[::-1] if query.descends else by_name
    value = COLUMNS[query.column]
    known = [entry for entry in by_name if value(entry) is not None]
    unknown = [entry for entry in by_name if value(entry) is None]
    if rank := _RANKED.get(query.column):
        found = sorted({value(entry) for entry in known}, key=lambda each: (rank(each), each))
        ranks = {each: position for position, each in enumerate(found)}
        known.sort(key=lambda entry: ranks[value(entry)], reverse=query.descends)
    else:
        known.sort(key=value, reverse=query.descends)
    return known + unknown
