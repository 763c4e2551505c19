"""The tags of a repository, and the firmware that each of them names."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from fleet_fn.deadline import Deadline
from fleet_fn.errors import PermanentError
from fleet_fn.firmware.store import Firmware, NotReadyError, Store
from fleet_fn.oci.attachment import is_attachment_tag
from fleet_fn.oci.reference import Reference

#: Tags of a repository that are looked at.
MAX_TAGS: Final = 100


@dataclass(frozen=True, slots=True)
class Tagged:
    """A tag, and the firmware that it names."""

    tag: str
    #: None if it names none that can be used; then `problem` says why.
    firmware: Firmware | None
    problem: str = ""


def order_tags(tags: Iterable[str]) -> list[str]:
    """Return the tags that may name firmware: `latest`, then the highest first.

    Tags of signatures and other attachments are left out.
    """
    return sorted((tag for tag in tags if not is_attachment_tag(tag)), key=_latest_last, reverse=True)


def read_tag(store: Store, reference: Reference, tag: str, deadline: Deadline, known: Firmware | None = None) -> Tagged:
    """Return the firmware that a tag of a repository names.

    Args:
        store: has the repository.
        reference: of the repository; its own tag makes no difference.
        tag: the tag.
        deadline: bounds the search.
        known: the firmware that the tag named before, if known.

    Raises:
        TransientError: the store is unavailable.

    """
    try:
        return Tagged(tag, store.resolve(replace(reference, tag=tag, digest=None), deadline, known))
    except (PermanentError, NotReadyError) as error:
        return Tagged(tag, None, error.reason)


def version_order(version: str) -> tuple[list[tuple[int, str]], bool, list[tuple[int, str]]]:
    """Return a key that sorts by numbers, and a pre-release before its release."""
    core, _, suffix = version.partition("-")
    return _parts(core), not suffix, _parts(suffix)


def _latest_last(tag: str) -> tuple[bool, object]:
    return tag == "latest", version_order(tag)


def _parts(text: str) -> list[tuple[int, str]]:
    return [(int(digits or -1), other) for digits, other in re.findall(r"([0-9]+)|([^0-9]+)", text)]
