"""Commands on their way to devices.

A command reaches the devices that wait; it is not kept for others.
"""

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


class Subscription:
    """A device's wait for commands."""

    def __init__(self) -> None:
        self._commands: SimpleQueue[Command | None] = SimpleQueue()

    def wait(self, seconds: float) -> Command | None:
        """Return the first command since the subscription.

        Return None after `seconds`, or at once if none can come.
        """
        try:
            return self._commands.get(timeout=min(seconds, threading.TIMEOUT_MAX))
        except Empty:
            return None

    def put(self, command: Command | None) -> None:
        """Hand over a command; None ends the wait."""
        self._commands.put(command)


class Commands:
    """Passes commands on to subscriptions. Safe to use from several threads."""

    def __init__(self) -> None:
        #: By application, gateway and device. A device that waits for itself has the key of a gateway for any device.
        self._subscriptions: defaultdict[tuple[str, str, str | None], set[Subscription]] = defaultdict(set)
        self._lock = threading.Lock()
        self._closed = False

    @property
    def waiting(self) -> int:
        """Number of subscriptions."""
        with self._lock:
            return sum(map(len, self._subscriptions.values()))

    @contextmanager
    def subscribe(self, application: str, sender: str, device: str) -> Iterator[Subscription]:
        """Subscribe for as long as the context lasts.

        Args:
            application: the application of both.
            sender: the device that waits.
            device: the device whose commands it waits for. If that is the sender, it also gets the commands for the
                devices behind it.

        """
        subscription = Subscription()
        key = application, sender, None if device == sender else device
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

    def send(self, application: str, gateway: str, device: str, command: Command) -> bool:
        """Hand a command to all subscriptions for it at a gateway.

        Return whether there was any.
        """
        with self._lock:
            keys = (application, gateway, device), (application, gateway, None)
            reached = [subscription for key in keys for subscription in self._subscriptions.get(key, ())]
            for subscription in reached:
                subscription.put(command)
            return bool(reached)

    def close(self) -> None:
        """End every wait, now and later."""
        with self._lock:
            self._closed = True
            for subscriptions in self._subscriptions.values():
                for subscription in subscriptions:
                    subscription.put(None)
