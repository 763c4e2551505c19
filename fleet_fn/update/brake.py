"""Record the devices on which a version fails, so that its rollout halts in time."""

from fleet_fn.deadline import Deadline
from fleet_fn.drogue.device_registry import DeviceRegistry
from fleet_fn.drogue.events import Event
from fleet_fn.errors import PermanentError
from fleet_fn.update.transitions import Subject, Transition
from fleet_fn.update.warnings import warn

_FAILURES = (Subject.ROLLED_BACK, Subject.GAVE_UP)


class Brake:
    """Counts failures in the application's object, where every process reads them.

    It costs nothing while nothing fails. A failure is recorded before the device's own record forgets the swap. So if
    it cannot be recorded now, the device's next status shows it again, and the device starts nothing before that. Only
    a device whose target has moved may start with the new one first.
    """

    def __init__(self, device_registry: DeviceRegistry) -> None:
        """Record into `device_registry`."""
        self._device_registry = device_registry

    def record(
        self, event: Event, transitions: tuple[Transition, ...], max_failed: int | None, deadline: Deadline
    ) -> tuple[Transition, ...]:
        """Record a failed update, if there is one among a device's transitions.

        Args:
            event: the event of the device's status.
            transitions: what the status shows.
            max_failed: `rollout.maxFailed`; None if there is no limit.
            deadline: the event's.

        Returns:
            The transition to a halt, if this failure halts the rollout.

        Raises:
            TransientError: the failure could not be recorded now.

        """
        failures = [transition for transition in transitions if transition.subject in _FAILURES]
        first = [transition for transition in failures if transition.attempts == 1]
        is_final = any(transition.subject is Subject.GAVE_UP for transition in failures)
        if not first and not is_final:
            return ()
        failure = failures[0]
        names = (event.application, event.device)
        try:
            count = self._device_registry.record_failure(*names, failure.to_version, deadline, is_first=bool(first))
        except PermanentError as error:
            # No retry cures this. The device's own record goes on counting its attempts.
            warn("failed update not recorded", event, error)
            return ()
        if count is None or count != max_failed:
            return ()
        reason = f"{failure.to_version} failed on {count} devices"
        return (
            Transition(
                Subject.HALTED, failure.from_version, failure.to_version, failure.checksum, failure.attempts, reason
            ),
        )
