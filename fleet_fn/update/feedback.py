"""Tell a DDI server how the update of a device goes, best effort.

Most feedback is sent once, at a turning point. What ends an action is sent again at each later reading of the server's
word, as long as the action is still open there.
"""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from fleet_fn.concurrency.ttl_cache import Bounded
from fleet_fn.ddi.client import ActionClosedError
from fleet_fn.ddi.messages import Execution, Feedback, Finished
from fleet_fn.deadline import Deadline
from fleet_fn.drogue.events import Event
from fleet_fn.errors import PermanentError, RateLimitedError, TransientError, UpstreamError
from fleet_fn.firmware.assignment import Controller, Kind
from fleet_fn.firmware.hawkbit_store import HawkbitStore
from fleet_fn.observability.log import logger
from fleet_fn.protocol.messages import Sync
from fleet_fn.protocol.step import Block
from fleet_fn.update.assessment import View
from fleet_fn.update.assigned import Assigned
from fleet_fn.update.reports import crosses_tenth
from fleet_fn.update.transitions import Subject, Transition
from fleet_fn.update.values import Confirm, Hold
from fleet_fn.update.warnings import fields_of, warn

#: The longest wait of one answer for the server.
_MAX_WAIT_SECONDS: Final = 1.0
#: After a wait in vain the server is left alone for so long: other devices would miss the threads that wait for it.
_PAUSE_SECONDS: Final = 10.0
#: A quicker failure costs no thread. It may be that of one action, or of an event that has no time left.
_SLOW_SECONDS: Final = 0.5
#: Statuses of one action from one process, besides the one that closes it. hawkBit takes 1,000 from all.
_MAX_STATUSES: Final = 100
#: Actions and duties that are remembered.
_MAX_REMEMBERED: Final = 20_000


@dataclass(slots=True)
class _Told:
    """What this process has told of an action."""

    statuses: int = 0
    #: The last one: how far the action was.
    last: tuple[Execution, int | None] | None = None
    #: The server takes no more statuses besides the one that closes it.
    is_full: bool = False


class FeedbackSender:
    """Sends feedback. Safe to use from several threads."""

    def __init__(self, store: HawkbitStore, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._client = store.client
        self._clock = clock
        self._lock = threading.Lock()
        self._told: Bounded[tuple[Controller, str], _Told] = Bounded(_MAX_REMEMBERED)
        #: The last reading for which a duty was done, by controller and duty.
        self._done: Bounded[tuple[Controller, str], int] = Bounded(_MAX_REMEMBERED)
        self._paused_until = 0.0

    def send(
        self, event: Event, current: str, view: View, transitions: tuple[Transition, ...], deadline: Deadline
    ) -> None:
        """Tell the server what an answered event shows; no error is raised.

        Args:
            event: the device's event.
            current: the version that the device runs.
            view: the decision, and what it rests on.
            transitions: the turning points of the update.
            deadline: the event's.

        """
        assigned = view.assigned
        if assigned is None or self._clock() < self._paused_until:
            return
        limit = deadline.within(_MAX_WAIT_SECONDS)
        controller, assignment = assigned.controller, assigned.assignment
        try:
            if assignment.kind is Kind.CANCELLATION and self._claim(view, "cancel"):
                self._answer_cancellation(event, view, limit)
            self._tell_progress(event, view, transitions, limit)
            if (end := end_of(event, view, current)) and self._claim(view, "close"):
                self._close(event, view, end, limit)
            if assignment.attributes and self._claim(view, "attributes"):
                attributes = {"application": event.application, "device": event.device, "version": current}
                self._client.put_attributes(assignment.attributes, attributes, limit)
        except UpstreamError as error:
            if isinstance(error, TransientError) and limit.elapsed >= _SLOW_SECONDS:
                self._paused_until = self._clock() + _PAUSE_SECONDS
            warn("DDI server not told", event, error, controller=controller.name, action=assignment.action)

    def _answer_cancellation(self, event: Event, view: View, deadline: Deadline) -> None:
        """Accept a cancellation, unless the device may come up with the version."""
        assert view.assigned is not None  # noqa: S101 - the caller's condition
        controller, assignment = view.assigned.controller, view.assigned.assignment
        is_late = view.assigned.firmware is not None and not isinstance(view.decision and view.decision.step, Hold)
        if is_late:
            detail = f"{event.device} was told to boot the new version before the cancellation came"
            answer = Feedback(Execution.REJECTED, details=(detail,))
        else:
            answer = Feedback(Execution.CLOSED, Finished.SUCCESS, (f"{event.device} gets no more of it",))
        try:
            self._client.answer_cancellation(controller.name, assignment.cancellation, answer, deadline)
        except PermanentError:
            self._store.forget(controller)
            raise
        self._store.forget(controller)

    def _tell_progress(self, event: Event, view: View, transitions: tuple[Transition, ...], deadline: Deadline) -> None:
        assert view.assigned is not None  # noqa: S101 - the caller's condition
        controller, action = view.assigned.controller, view.assigned.action
        if view.assigned.assignment.kind is not Kind.DEPLOYMENT or not action or view.served is not view.target:
            return
        for feedback in progress_of(event, view, transitions):
            told = self._told_of(controller, action)
            progress = (feedback.execution, feedback.tenths)
            if told.is_full or (progress == told.last and feedback.execution is not Execution.SCHEDULED):
                continue
            told.statuses, told.last = told.statuses + 1, progress
            told.is_full = told.statuses >= _MAX_STATUSES
            try:
                self._client.tell(controller.name, action, feedback, deadline)
            except (RateLimitedError, PermanentError) as error:
                told.is_full = True  # old versions answer 403 to the one status too many
                warn("DDI server takes no more feedback", event, error, controller=controller.name, action=action)
                if isinstance(error, ActionClosedError):
                    self._store.forget(controller)
                return

    def _close(self, event: Event, view: View, end: tuple[str, Feedback], deadline: Deadline) -> None:
        """Close an action. The server then has another word, or a new one."""
        assert view.assigned is not None  # noqa: S101 - the caller's condition
        assigned, (action, feedback) = view.assigned, end
        try:
            self._client.tell(assigned.controller.name, action, feedback, deadline)
        except ActionClosedError as error:
            self._store.forget(assigned.controller)
            # No fault: another process has closed it since this one read it.
            fields = {"controller": assigned.controller.name, "action": action, "reason": error.reason}
            logger.info("DDI action is closed already", extra={"fields": {**fields_of(event), **fields}})
            return
        is_installed = feedback.finished is Finished.SUCCESS and assigned.action == action
        if is_installed and assigned.assignment.kind is Kind.DEPLOYMENT:
            self._store.close_action(assigned.controller, assigned.assignment)
        else:
            self._store.forget(assigned.controller)

    def _claim(self, view: View, duty: str) -> bool:
        """Return whether a duty is to be done now.

        It is done once for each reading of the server's word.
        """
        assert view.assigned is not None  # noqa: S101 - the caller's condition
        key, number = (view.assigned.controller, duty), view.assigned.assignment.number
        with self._lock:
            if (done := self._done.get(key)) and done[1] == number:
                return False
            self._done.put(key, 0.0, number)
            return True

    def _told_of(self, controller: Controller, action: str) -> _Told:
        with self._lock:
            known = self._told.get((controller, action))
            told = known[1] if known else _Told()
            self._told.put((controller, action), 0.0, told)
            return told


def progress_of(event: Event, view: View, transitions: tuple[Transition, ...]) -> Iterator[Feedback]:
    """Yield the statuses of an action that goes on."""
    assert view.decision is not None  # noqa: S101 - there is an action
    step, firmware = view.decision.step, view.served
    version = firmware.version if firmware else ""
    subjects = {transition.subject: transition for transition in transitions}
    if Subject.ROLLED_BACK in subjects and not (isinstance(step, Hold) and step.given_up):
        failed = subjects[Subject.ROLLED_BACK]
        told = f"{event.device} did not come up with {failed.to_version}, attempts: {failed.attempts}"
        yield Feedback(Execution.PROCEEDING, details=(told,))
    if isinstance(step, Block) and step.offset == 0:
        yield Feedback(Execution.DOWNLOAD, details=(f"{event.device} gets {version}",))
    elif isinstance(step, Block) and firmware and crosses_tenth(step, firmware.size):
        tenths = min(10 * (step.offset + step.size) // firmware.size, 10)
        yield Feedback(
            Execution.PROCEEDING, details=(f"{event.device} has got {10 * tenths} % of {version}",), tenths=tenths
        )
    if Subject.SWAPPED in subjects:
        told = f"{event.device} has all of {version}, and is told to boot it"
        yield Feedback(Execution.DOWNLOADED, details=(told,))
    if Subject.HELD in subjects and isinstance(step, Hold) and end_of(event, view, "") is None:
        yield _held(event, view, step)


def end_of(event: Event, view: View, current: str) -> tuple[str, Feedback] | None:
    """Return the action that has ended, and the status that closes it, or None."""
    if view.assigned is None or view.decision is None:
        return None
    step, record = view.decision.step, view.decision.record
    kind, action = view.assigned.assignment.kind, view.assigned.action
    if isinstance(step, Sync):
        if not action or kind is Kind.CONFIRMATION:
            return None
        return action, Feedback(Execution.CLOSED, Finished.SUCCESS, (f"{event.device} runs {current}",))
    if isinstance(step, Confirm) and record and record.version == current and record.origin and record.origin.hawkbit:
        # It came up with a version, and another one is assigned already.
        if record.syncs != 1 or record.origin.hawkbit.action == action:
            return None
        closed = record.origin.hawkbit.action
        return closed, Feedback(Execution.CLOSED, Finished.SUCCESS, (f"{event.device} runs {current}",))
    if not isinstance(step, Hold) or not action or kind is not Kind.DEPLOYMENT:
        return None
    if step.given_up:
        return action, Feedback(Execution.CLOSED, Finished.FAILURE, (f"{event.device}: {step.given_up}",))
    if view.assigned.assignment.ends_with_download and _has_all_blocks(view.assigned, step):
        return action, _downloaded(event, view)
    return None


def _held(event: Event, view: View, hold: Hold) -> Feedback:
    """Return the status of an action that does not go on for now."""
    assert view.assigned is not None  # noqa: S101 - there is an action
    if _has_all_blocks(view.assigned, hold):
        return _downloaded(event, view)
    return Feedback(Execution.SCHEDULED, details=(f"{event.device} waits: {hold.message}",))


def _has_all_blocks(assigned: Assigned, hold: Hold) -> bool:
    """Return whether a device waits for nothing but the leave to boot."""
    is_servers = assigned.hold is not None and hold.message == assigned.hold.message
    return is_servers and assigned.assignment.may_write


def _downloaded(event: Event, view: View) -> Feedback:
    version = view.served.version if view.served else ""
    return Feedback(Execution.DOWNLOADED, details=(f"{event.device} has all of {version}",))
