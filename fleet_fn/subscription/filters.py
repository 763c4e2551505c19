"""Which applications a session has subscribed to, and which it should."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum, auto
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


class _State(Enum):
    ASKED = auto()
    SUBSCRIBED = auto()
    REFUSED = auto()


@dataclass(slots=True)
class _Application:
    """The subscription to one application."""

    state: _State
    prefix: str
    #: When it is late or tried again, in monotonic seconds.
    until: float
    refusals: int = 0
    is_told: bool = False


class Filters:
    """The subscriptions of one session."""

    def __init__(self, group: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._group = group
        self._clock = clock
        self._applications: dict[str, _Application] = {}
        #: The prefix that the broker has taken; None if it has taken none yet.
        self._prefix: str | None = None

    def to_subscribe(self, wanted: Iterable[str]) -> Iterator[tuple[str, str]]:
        """Yield each application to subscribe to now, with its filter."""
        now = self._clock()
        for name in wanted:
            known = self._applications.get(name)
            if known is None:
                known = self._applications[name] = _Application(_State.REFUSED, self._prefix or _SHARE, now)
            if known.state is _State.REFUSED and known.until <= now:
                known.state, known.until = _State.ASKED, now + _ANSWER_SECONDS
                yield name, f"{known.prefix}/{self._group}/app/{name}"

    def to_unsubscribe(self, wanted: Iterable[str]) -> list[str]:
        """Return the filters of applications that are no longer wanted, and forget these.

        Drogue Cloud looks for a shared subscription without its prefix.
        """
        gone = self._applications.keys() - set(wanted)
        subscribed = [name for name in gone if self._applications[name].state is not _State.REFUSED]
        shared = [f"{self._applications[name].prefix}/{self._group}/app/{name}" for name in subscribed]
        for name in gone:
            del self._applications[name]
        return shared + [f"app/{name}" for name in subscribed]

    def is_late(self) -> bool:
        """Return whether the broker does not answer to a SUBSCRIBE."""
        now = self._clock()
        return any(each.state is _State.ASKED and each.until <= now for each in self._applications.values())

    def accept(self, name: str) -> None:
        """Note that the broker accepted a subscription."""
        if known := self._applications.get(name):
            known.state, known.refusals, known.is_told = _State.SUBSCRIBED, 0, False
            self._prefix = known.prefix

    def refuse(self, name: str, reason: int) -> bool:
        """Note that the broker refused a subscription; return whether to log that."""
        known = self._applications.get(name)
        if known is None:
            return False
        known.state, known.until = _State.REFUSED, self._clock()
        if known.prefix == _SHARE and self._prefix is None and reason in _TRY_OLD:
            known.prefix = _OLD_SHARE
            return False
        known.prefix = self._prefix or _SHARE
        known.refusals += 1
        known.until += _PAUSES.seconds(known.refusals)
        is_told, known.is_told = known.is_told, True
        return not is_told
