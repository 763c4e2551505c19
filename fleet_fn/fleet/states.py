"""The states of a device's update."""

from enum import StrEnum
from typing import Final


class State(StrEnum):
    """The state of a device, in the order in which an operator looks for them."""

    #: The update was given up, or an error stands in the device's status.
    FAILED = "failed"
    #: The device came back from a swap with another version than its target, and does not run the target yet.
    ROLLED_BACK = "rolled-back"
    #: The update has begun, and the device is silent.
    STALLED = "stalled"
    #: Policy holds the device back.
    HELD = "held"
    #: The update has begun.
    UPDATING = "updating"
    #: The device runs its target.
    IN_SYNC = "in-sync"
    #: The device never reported.
    UNKNOWN = "unknown"


#: States that an operator should look at.
ATTENTION: Final = (State.FAILED, State.ROLLED_BACK, State.STALLED)
