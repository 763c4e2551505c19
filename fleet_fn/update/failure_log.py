"""Log failures of updates, and the halts that follow, as warnings."""

from typing import Final

from fleet_fn.deadline import Deadline
from fleet_fn.drogue.events import Event
from fleet_fn.observability.log import logger
from fleet_fn.update.transitions import Subject, Transition
from fleet_fn.update.warnings import fields_of

#: Other transitions follow from the line of the event.
_MESSAGES: Final = {
    Subject.ROLLED_BACK: "update rolled back",
    Subject.GAVE_UP: "update given up",
    Subject.HALTED: "rollout halted",
}


def log_failures(event: Event, transitions: tuple[Transition, ...], _deadline: Deadline) -> None:
    """Log each transition that shows a bad version or a bad device, as a warning."""
    for transition in transitions:
        if message := _MESSAGES.get(transition.subject):
            told = {
                "from": transition.from_version,
                "version": transition.to_version,
                "checksum": transition.checksum,
                "attempts": transition.attempts,
                "reason": transition.reason,
            }
            known = {name: value for name, value in told.items() if value}
            logger.warning(message, extra={"fields": {**fields_of(event), **known}})
