"""Feedback on an action, in the API's words."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from fleet_fn.errors import one_line

#: hawkBit stores at most so many characters of a detail, and cuts the rest.
_MAX_DETAIL_CHARACTERS: Final = 500
#: Characters that hawkBit takes in an attribute, and their number.
_MAX_ATTRIBUTE_CHARACTERS: Final = 128


class Execution(StrEnum):
    """How far an action is."""

    #: It is known, and does not go on for now.
    SCHEDULED = "scheduled"
    DOWNLOAD = "download"
    PROCEEDING = "proceeding"
    DOWNLOADED = "downloaded"
    #: The device does not take it; the action stays open.
    REJECTED = "rejected"
    #: It has come to its end.
    CLOSED = "closed"


class Finished(StrEnum):
    """The result of an action."""

    NONE = "none"
    SUCCESS = "success"
    FAILURE = "failure"


@dataclass(frozen=True, slots=True)
class Feedback:
    """A status of an action.

    It has no time: an old one would keep hawkBit from noticing the installation.
    """

    execution: Execution
    finished: Finished = Finished.NONE
    #: For people, each in one line.
    details: tuple[str, ...] = ()
    #: Tenths of the download.
    tenths: int | None = None

    def to_json(self, action: str) -> bytes:
        """Return the body of the request. hawkBit before 1.0 wants the action in it, too."""
        result: dict[str, Any] = {"finished": self.finished.value}
        if self.tenths is not None:
            result["progress"] = {"cnt": self.tenths, "of": 10}
        details = [one_line(detail[:_MAX_DETAIL_CHARACTERS]) for detail in self.details]
        status = {"execution": self.execution.value, "result": result, "details": details}
        return json.dumps({"id": action, "status": status}).encode()


def attributes_json(attributes: Mapping[str, str]) -> bytes:
    """Return the body of a request that merges attributes into those of a target.

    Values that hawkBit would refuse are left out: it would refuse the others with them.
    """
    fit = {name: value for name, value in attributes.items() if _is_attribute(value)}
    return json.dumps({"mode": "merge", "data": fit}).encode()


def _is_attribute(value: str) -> bool:
    fits = 0 < len(value) <= _MAX_ATTRIBUTE_CHARACTERS
    return fits and value.isascii() and value.isprintable() and not set(value) & set("~`")
