"""The table of a repository's tags, with the firmware that each of them names."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Final

from fleet_fn.deadline import Deadline
from fleet_fn.errors import PermanentError, one_line
from fleet_fn.firmware.store import NotReadyError, Store
from fleet_fn.oci.attachment import is_attachment_tag
from fleet_fn.oci.reference import Reference

#: Rows at most, and the time after which no further row is begun.
MAX_ROWS: Final = 100
_SECONDS: Final = 60.0
#: Time for a row.
_ROW_SECONDS: Final = 15.0
_HEADER: Final = ("TAG", "VERSION", "SIZE", "DIGEST")
_UNKNOWN: Final = "-"


def print_tags(store: Store, reference: Reference, tags: Iterable[str], echo: Callable[[str], object]) -> None:
    """Print a row for each tag: `latest`, then the highest version first.

    Tags of signatures and other attachments are left out.

    Raises:
        TransientError: the store is unavailable.

    """
    ordered = sorted((tag for tag in tags if not is_attachment_tag(tag)), key=_newest_last, reverse=True)
    limit = Deadline(_SECONDS)
    rows = [_HEADER]
    for tag in ordered[:MAX_ROWS]:
        if not limit.remaining:
            break
        rows.append(_row(store, replace(reference, tag=tag)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER) - 1)]
    for row in rows:
        echo(_line(row, widths))
    if missing := len(ordered) - (len(rows) - 1):
        echo(f"and {missing} more")


def _row(store: Store, reference: Reference) -> tuple[str, str, str, str]:
    """Return the cells of a tag; the last one has the reason if it names no firmware."""
    tag = reference.tag or ""
    try:
        firmware = store.resolve(reference, Deadline(_ROW_SECONDS))
    except (PermanentError, NotReadyError) as error:
        return tag, _UNKNOWN, _UNKNOWN, error.reason
    return tag, one_line(firmware.version), str(firmware.size), firmware.manifest or _UNKNOWN


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
    return "  ".join([*cells, row[-1]])


def _newest_last(tag: str) -> tuple[bool, list[tuple[int, str]], bool, list[tuple[int, str]]]:
    """Return a key that sorts by numbers, and a pre-release before its release."""
    core, _, suffix = tag.partition("-")
    return tag == "latest", _parts(core), not suffix, _parts(suffix)


def _parts(text: str) -> list[tuple[int, str]]:
    return [(int(digits or -1), other) for digits, other in re.findall(r"([0-9]+)|([^0-9]+)", text)]
