"""Hints for the user of a simulated device that does not get on.

A device sees only the answers to its statuses. They do not say why it has to wait, so a hint names the possible causes
and the place that knows.
"""

import shlex
from collections.abc import Callable
from typing import Final

from fleet_fn.protocol.messages import Command, Wait
from fleet_fn.sandbox.device_wire import Dialect

#: A `poll` from which on WAIT is hardly about a download: the function's default is 10 s for that, 300 s for a failure.
LONG_WAIT_SECONDS: Final = 60
#: So many shorter WAITs in a row get the hint, too.
SHORT_WAITS: Final = 3


class Hints:
    """Gives each hint once, as soon as a device's answers call for it.

    Args:
        application: the device's application.
        dialect: the device's dialect.
        on_hint: takes a hint, which does not name the device.

    """

    def __init__(self, application: str, dialect: Dialect, on_hint: Callable[[str], None]) -> None:
        self._fleet = shlex.join(("fleet-fn", "fleet", "--application", application))
        self._dialect = dialect
        self._on_hint = on_hint
        self._given: set[str] = set()
        self._short_waits = 0

    def take(self, command: Command) -> None:
        """Take a command that the device has got."""
        if not isinstance(command, Wait):
            self._short_waits = 0
            return
        self._short_waits += 1
        if (command.poll or 0) >= LONG_WAIT_SECONDS:
            self._give(
                "the function seems to have failed, for instance because no such image or tag exists. "
                f"Its log says why, and so does: {self._fleet}"
            )
        elif self._short_waits >= SHORT_WAITS:
            self._give(f"the function still gets the firmware, or failed. Its log says it, and so does: {self._fleet}")

    def take_silence(self) -> None:
        """Take a wait without a command."""
        text = "no command came. Does the function run, and does it get the events? Its log and the sandbox's say so"
        if self._dialect == "documented":
            text += (
                ". If it failed, for instance because no such image or tag exists, a documented device gets no WAIT. "
                f"The log says why, and so does: {self._fleet}"
            )
        self._give(text)

    def take_refusal(self) -> None:
        """Take the endpoint's refusal of the credentials."""
        self._give("there is no such application or device, or the password is wrong. The sandbox's log says which")

    def take_stay(self) -> None:
        """Take a SYNC for a device that was not updated."""
        self._give(
            "a device is told to stay if it runs its target, is held back, or has no target. "
            f"Which of these it is, says: {self._fleet}"
        )

    def _give(self, hint: str) -> None:
        if hint not in self._given:
            self._given.add(hint)
            self._on_hint(hint)
