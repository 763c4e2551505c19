"""The subscription of a process: connections, dispatcher, and their end."""

from collections.abc import Callable, Collection
from dataclasses import replace
from threading import Lock
from typing import Final

from fleet_fn.deadline import Deadline
from fleet_fn.observability import metrics
from fleet_fn.observability.log import logger
from fleet_fn.setting_values import ALL
from fleet_fn.settings import Settings
from fleet_fn.subscription.applications import AllApplications
from fleet_fn.subscription.broker import Broker
from fleet_fn.subscription.connection import Connection, Failures
from fleet_fn.subscription.dispatcher import Dispatcher
from fleet_fn.subscription.filter import Sharing
from fleet_fn.subscription.messages import Deliver, Message, Request, to_request
from fleet_fn.subscription.session import Plan
from fleet_fn.upstreams import make_authorization, make_drogue

#: Messages of a connection that are not done, per thread. Those of other devices can then be answered while one waits.
_PER_THREAD: Final = 8
#: Events that are remembered, to count those that come again.
_RECENT_EVENTS: Final = 1000
#: Seconds at the end for acknowledgements and goodbyes.
_GOODBYE_SECONDS: Final = 1.0


class Subscription:
    """Takes events from the MQTT integration, and has them delivered."""

    def __init__(self, settings: Settings, deliver: Deliver, max_body_bytes: int) -> None:
        """Take the events that the settings name.

        Args:
            settings: with `mqtt_url` and `mqtt_applications`.
            deliver: delivers an event, and returns the receiver's answer.
            max_body_bytes: size of a larger body is of no interest, because it is refused.

        """
        self._max_body_bytes = max_body_bytes
        self._is_ending = self._has_ended = False
        self._lock = Lock()
        self._count = metrics.subscription()
        self._recent = _Recent()
        self._dispatcher = Dispatcher(deliver, settings.threads, settings.event_max_age_seconds)
        self._all: AllApplications | None = None
        self._named = frozenset(settings.mqtt_applications) - set(settings.mqtt_exclude)
        #: The function ignores events of others. None if it serves all.
        self._served = frozenset(settings.applications) or None
        if ALL in settings.mqtt_applications:
            self._all = AllApplications(make_drogue(settings), settings.mqtt_exclude, self._renew)
        self._plan = Plan(
            Broker.of(settings.mqtt_url or "", settings.drogue_ca_file),
            settings.mqtt_group,
            "",
            Sharing(),
            self._take,
            lambda: self._is_ending,
            lambda: self._has_ended,
        )
        self._authorization = make_authorization(settings)
        self._failures = Failures()
        self._size = _PER_THREAD * settings.threads
        self._per_application = settings.mqtt_connections
        self._connections: dict[str, list[Connection]] = {}

    def start(self) -> None:
        """Begin to take events, in threads."""
        if self._all:
            self._all.start()
        else:
            self._renew()

    def stop(self, seconds: float) -> None:
        """Take no more events, let those that have come be answered, and disconnect.

        Args:
            seconds: longest time for all of it; events that are not done by then stay unacknowledged.

        """
        deadline = Deadline(seconds)
        with self._lock:
            self._is_ending = True
            if self._all:
                self._all.end()
            self._wake()
            self._dispatcher.end(max(0.0, seconds - _GOODBYE_SECONDS))
            self._has_ended = True
            self._wake()
            for connection in self._all_connections():
                connection.join(deadline)

    def _renew(self) -> None:
        """Connect for each application that is wanted, and end the connections for others."""
        with self._lock:
            if self._is_ending:
                return
            wanted = set(self._applications())
            if not wanted:
                logger.warning("there is no application to take events of")
            for name in self._connections.keys() - wanted:
                for connection in self._connections.pop(name):
                    connection.end()
            for name in wanted - self._connections.keys():
                plan = replace(self._plan, application=name)
                self._connections[name] = [
                    Connection(plan, self._authorization, self._size, self._failures)
                    for _ in range(self._per_application)
                ]
                for connection in self._connections[name]:
                    connection.start()

    def _all_connections(self) -> list[Connection]:
        return [connection for connections in self._connections.values() for connection in connections]

    def _wake(self) -> None:
        for connection in self._all_connections():
            connection.wake()

    def _applications(self) -> Collection[str]:
        names = self._all.names() if self._all else self._named
        return names if self._served is None else names & self._served

    def _take(self, message: Message, is_repeated: bool, done: Callable[[], None]) -> None:
        request = to_request(message, self._max_body_bytes)
        self._count.received(is_repeated or self._recent.has(request))
        self._dispatcher.submit(request, done)


class _Recent:
    """The events that came last.

    Drogue Cloud does not mark messages that it sends again.
    """

    def __init__(self) -> None:
        self._keys: dict[tuple[str, str], None] = {}
        self._lock = Lock()

    def has(self, request: Request) -> bool:
        """Return whether an event came before, and note it."""
        if request.id is None or request.source is None:
            return False
        key = (request.source, request.id)
        with self._lock:
            found = key in self._keys
            self._keys[key] = None
            if len(self._keys) > _RECENT_EVENTS:
                del self._keys[next(iter(self._keys))]
        return found
