"""The facts that decisions rest on, and the steps that they lead to."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from types import MappingProxyType
from typing import NamedTuple

from fleet_fn.drogue.events import Event
from fleet_fn.drogue.rollout_status import NO_ROLLOUT, RolloutStatus
from fleet_fn.drogue.spec_policy import NONE, Policy
from fleet_fn.drogue.update_record import LastAnswered, Record
from fleet_fn.protocol.dialects import AnswerForm
from fleet_fn.protocol.messages import Status, Swap, Sync
from fleet_fn.protocol.step import Block


class DeviceStatus(NamedTuple):
    """An event with its status, and the form in which the device wants its answer."""

    event: Event
    status: Status
    form: AnswerForm


class Freshness(Enum):
    """Freshness of the facts behind a decision."""

    #: As fresh as caches keep them.
    MEMORY = 0
    #: Read within the last second: the specs, and the tag's manifest.
    EVERYTHING = 1
    #: The same, and the device's object read since this status came.
    NOW = 2


class Hold(NamedTuple):
    """Policy holds back a device that is not on its target."""

    reason: str
    #: Why, for people.
    message: str
    #: Seconds until the device should ask again.
    poll: int
    #: Why the version was given up, for people; empty if it was not.
    given_up: str = ""
    #: When the hold ends; None if unknown.
    until: datetime | None = None


class SourceHold(NamedTuple):
    """The source of a firmware holds a device back, whatever our own policy is."""

    #: `approval` or `window`.
    reason: str
    #: Why, for people.
    message: str
    #: Blocks may be sent all the same.
    of_swap_only: bool


class Confirm(NamedTuple):
    """SYNC for the version that the device came up with, before any other command.

    Until a device hears it, its bootloader goes back to the old image at the next reset, and the first block of the
    next update would erase that image.
    """

    version: bytes
    poll: int


class Settle(NamedTuple):
    """The device waits while a process may take other bytes for the target's.

    Such bytes are of the same version.
    """

    seconds: int


@dataclass(frozen=True, slots=True)
class Stuck:
    """The device gets no block, because its bytes are unknown."""

    message: str = (
        "power-cycle it: it was told to begin anew, but reports another offset than that of the block sent, "
        "so its progress is unknown"
    )


@dataclass(frozen=True, slots=True)
class Again:
    """The status was answered already, or is older than one that was.

    The device would take an answer for the one to its next status. Some devices erase what they have written then.
    """


class DecisionContext(NamedTuple):
    """Everything that a decision rests on, besides the status and the target."""

    now: datetime
    #: The largest block, in bytes.
    mtu: int
    #: Seconds after which a device in sync asks again.
    poll: int
    #: The record in the device's object.
    record: Record | None = None
    policy: Policy = NONE
    #: The state of the application's rollout.
    rollout: RolloutStatus = NO_ROLLOUT
    #: The version that the rollout is of, which a device may have to reach by way of others; empty: the target's.
    rollout_version: str = ""
    uid: str = ""
    labels: Mapping[str, str] = MappingProxyType({})
    #: The record of this event's answer; None if the answer is only shown.
    answered: LastAnswered | None = None
    #: How old the device's object may be that another process acts on.
    spec_ttl: timedelta = timedelta()
    #: False if nothing may be written into the device's object. Then there is no record, and devices are believed.
    keeps_records: bool = True
    #: Accepted SYNCs after which a device counts as having heard one, if it reports before it was asked to.
    enough_syncs: int = 3
    #: Why the source of the target holds the device back; None if it does not.
    source_hold: SourceHold | None = None
    #: The action of a DDI server that assigns the target; empty without one. Another one starts afresh.
    action: str = ""
    #: A gateway of the device that is being updated, and would take the device's blocks for its own; empty if none.
    busy_gateway: str = ""
    #: The UID of the device that the status is of, as its event has it; empty if it has none.
    device_uid: str = ""
    #: The device numbers its statuses.
    correlates: bool = False
    #: Progress at 0 for the target's version shows that the device heard a start and refused it.
    tells_refusals: bool = False

    @property
    def retry(self) -> str | None:
        """The token under which failed swaps are counted."""
        return f"{self.policy.retry or ''}@{self.action}" if self.action else self.policy.retry

    @property
    def reported_at(self) -> datetime:
        """Time at which the status came to the cloud; a time ahead of our clock is now."""
        time = self.answered and self.answered.time
        return min(time, self.now) if time else self.now


class Decision(NamedTuple):
    """A step for a device, and the record that it leaves behind."""

    step: Sync | Swap | Block | Hold | Confirm | Settle | Stuck | Again
    record: Record | None
    #: The record is written before the command is sent, which is not sent without it.
    records_first: bool = False
    rests_on: Freshness = Freshness.MEMORY


def starts_or_ends(step: object) -> bool:
    """Return whether a step starts or ends an update."""
    return isinstance(step, Swap) or (isinstance(step, Block) and step.offset == 0)
