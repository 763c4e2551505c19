"""Commands on their way to devices: handed to whoever waits, kept for nobody."""

import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Empty, SimpleQueue


@dataclass(frozen=True, slots=True)
class Command:
    """A command for a device."""

    name: str
    payload: bytes
    content_type: str | None


class Subscription:
    """What somebody who waits for commands of a device holds."""

    def __init__(self) -> None:
        self._commands: SimpleQueue[Command | None] = SimpleQueue()

    def wait(self, seconds: float) -> Command | None:
        """The first command since the subscription, or None after `seconds`, or at once when nothing can come."""
        try:
            return self._commands.get(timeout=min(seconds, threading.TIMEOUT_MAX))
        except Empty:
            return None

    def put(self, command: Command | None) -> None:
        """Hands over a command; None says that no more will come."""
        self._commands.put(command)


class Commands:
    """Passes commands on to subscriptions. Safe to use from several threads."""

    def __init__(self) -> None:
        self._subscriptions: defaultdict[tuple[str, str], set[Subscription]] = defaultdict(set)
        self._lock = threading.Lock()
        self._closed = False

    @contextmanager
    def subscribed(self, application: str, device: str) -> Iterator[Subscription]:
        """A subscription to a device's commands, for as long as the context lasts."""
        subscription = Subscription()
        key = application, device
        with self._lock:
            self._subscriptions[key].add(subscription)
            if self._closed:
                subscription.put(None)
        try:
            yield subscription
        finally:
            with self._lock:
                self._subscriptions[key].discard(subscription)
                if not self._subscriptions[key]:
                    del self._subscriptions[key]

    def send(self, application: str, device: str, command: Command) -> bool:
        """Hands a command to everybody who waits for the device's; returns whether there was anybody."""
        with self._lock:
            subscriptions = self._subscriptions.get((application, device), set())
            for subscription in subscriptions:
                subscription.put(command)
            return bool(subscriptions)

    def close(self) -> None:
        """Ends every wait, those to come included."""
        with self._lock:
            self._closed = True
            for subscriptions in self._subscriptions.values():
                for subscription in subscriptions:
                    subscription.put(None)
