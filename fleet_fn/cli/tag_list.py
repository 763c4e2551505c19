"""The table of a repository's tags, with the firmware that each of them names."""

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from fleet_fn.deadline import Deadline
from fleet_fn.errors import one_line
from fleet_fn.firmware.store import Store
from fleet_fn.fleet.repository import MAX_TAGS, Tagged, order_tags, read_tag
from fleet_fn.oci.reference import Reference

#: The time after which no further row is begun, and the time for a row.
_SECONDS: Final = 60.0
_ROW_SECONDS: Final = 15.0
_HEADER: Final = ("TAG", "VERSION", "SIZE", "DIGEST")
_UNKNOWN: Final = "-"


def print_tags(store: Store, reference: Reference, tags: Iterable[str], echo: Callable[[str], object]) -> None:
    """Print a row for each tag: `latest`, then the highest version first.

    Tags of signatures and other attachments are left out.

    Raises:
        TransientError: the store is unavailable.

    """
    ordered = order_tags(tags)
    limit = Deadline(_SECONDS)
    rows = [_HEADER]
    for tag in ordered[:MAX_TAGS]:
        if not limit.remaining:
            break
        rows.append(_row(read_tag(store, reference, tag, Deadline(_ROW_SECONDS))))
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER) - 1)]
    for row in rows:
        echo(_line(row, widths))
    if missing := len(ordered) - (len(rows) - 1):
        echo(f"and {missing} more")


def _row(tagged: Tagged) -> tuple[str, str, str, str]:
    """Return the cells of a tag; the last one has the reason if it names no firmware."""
    firmware = tagged.firmware
    if firmware is None:
        return tagged.tag, _UNKNOWN, _UNKNOWN, tagged.problem
    return tagged.tag, one_line(firmware.version), str(firmware.size), firmware.manifest or _UNKNOWN


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
    return "  ".join([*cells, row[-1]])
