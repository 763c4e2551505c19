"""The topic filter of an application, and when to ask for it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from fleet_fn.subscription.pauses import Pauses

#: The prefix of shared subscriptions in MQTT, and the only one that older releases of Drogue Cloud know.
_SHARE, _OLD_SHARE = "$share", "$shared"
#: Reasons in a SUBACK for which the older prefix is tried: an unspecified error, an invalid filter, and no shared
#: subscriptions. MQTT 3.1.1 has only the first.
_TRY_OLD: Final = (0x80, 0x8F, 0x9E)
#: Pauses before a refused application is tried again.
_PAUSES: Final = Pauses(2.0, 60.0, floor=0.5)
#: Longest wait for the answer to a SUBSCRIBE.
_ANSWER_SECONDS: Final = 30.0


@dataclass(slots=True)
class Sharing:
    """What sessions have found out about the broker's shared subscriptions."""

    #: The prefix that it has taken; None if it has taken none yet.
    prefix: str | None = None


class Filter:
    """The filter of one session, which subscribes to one application."""

    def __init__(
        self, group: str, application: str, sharing: Sharing, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Make the filter for the application's events.

        Args:
            group: name of the group that shares them.
            application: name of the application.
            sharing: what sessions have found out about the broker, this one included.
            clock: returns monotonic seconds.

        """
        self._topic = f"{group}/app/{application}"
        self._sharing = sharing
        self._clock = clock
        self._prefix = sharing.prefix or _SHARE
        #: When the answer is late; None if none is expected.
        self._late: float | None = None
        #: When to ask; None if that is done.
        self._due: float | None = clock()
        self._refusals = 0

    def ask(self) -> str | None:
        """Return the filter if it is time to ask for it."""
        now = self._clock()
        if self._due is None or now < self._due:
            return None
        self._due, self._late = None, now + _ANSWER_SECONDS
        return f"{self._prefix}/{self._topic}"

    def is_late(self) -> bool:
        """Return whether the broker does not answer."""
        return self._late is not None and self._late <= self._clock()

    def accept(self) -> None:
        """Note that the broker accepted the subscription."""
        self._late, self._sharing.prefix = None, self._prefix

    def refuse(self, reason: int) -> bool:
        """Note that the broker refused the subscription; return whether to log that."""
        self._late, self._due = None, self._clock()
        known = self._sharing.prefix
        if self._prefix == _SHARE and known is None and reason in _TRY_OLD:
            self._prefix = _OLD_SHARE
            return False
        self._prefix = known or _SHARE
        self._refusals += 1
        self._due += _PAUSES.seconds(self._refusals)
        return self._refusals == 1
