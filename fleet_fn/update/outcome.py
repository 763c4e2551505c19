"""Outcomes of events, and replies to devices."""

from collections.abc import Callable
from enum import StrEnum
from typing import Final, NamedTuple

from fleet_fn.deadline import Deadline
from fleet_fn.drogue.status_report import Report, Reported
from fleet_fn.protocol.dialects import AnswerForm
from fleet_fn.protocol.messages import Command, Wait
from fleet_fn.update.transitions import Transition


class OutcomeName(StrEnum):
    """The ends that an event can come to. `docs/outcomes.md` says what each means."""

    SYNC = "sync"
    WRITE = "write"
    SWAP = "swap"
    WITHHELD = "withheld"
    WAIT = "wait"
    IGNORED = "ignored"
    STALE = "stale"
    DUPLICATE = "duplicate"
    INVALID = "invalid"
    DENIED = "denied"
    FAILED = "failed"
    RETRY = "retry"


#: Outcomes after which a second delivery of the event needs nothing more.
_ANSWERS: Final = frozenset(
    {OutcomeName.SYNC, OutcomeName.WRITE, OutcomeName.SWAP, OutcomeName.WITHHELD, OutcomeName.WAIT}
)


class Outcome(NamedTuple):
    """The end of an event, with its particulars."""

    name: OutcomeName
    reason: str | None = None
    #: Particulars of a failure whose reason is a word, for people; empty if the reason has them.
    message: str = ""
    #: Of a block or a swap.
    version: str | None = None
    offset: int | None = None
    size: int | None = None
    #: SHA-256 of its firmware, in hex, and the digest of the manifest that named it.
    checksum: str | None = None
    manifest: str | None = None
    #: Seconds after which an upstream wants to be asked again.
    retry_after: int | None = None

    @property
    def is_answer(self) -> bool:
        """A second delivery of the event needs nothing more."""
        return self.name in _ANSWERS


class Reply(NamedTuple):
    """A command for a device, if there is one, and its reason."""

    outcome: Outcome
    command: Command | None = None
    form: AnswerForm | None = None
    #: Goes into the device's object, if it is news.
    report: Report | None = None
    #: The report is written before the command is sent, which is not sent without it.
    records_first: bool = False
    #: The report that was written before the command.
    recorded: Report | None = None
    #: What the device's object said when the reply was made.
    reported: Reported = Reported()
    #: Returns what is new about the device's update, by what its object said before.
    transitions: Callable[[Reported], tuple[Transition, ...]] = lambda _: ()
    #: `rollout.maxFailed` of the device's policy.
    max_failed: int | None = None
    #: Tells the source of the firmware how the update goes, after the command; None if it wants to hear nothing.
    tell: Callable[[tuple[Transition, ...], Deadline], None] | None = None


def wait_in(form: AnswerForm, seconds: int) -> Wait | None:
    """Return WAIT for so many seconds; None if the device's dialect has none."""
    return Wait(seconds) if form.has_wait else None
