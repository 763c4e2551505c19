"""Events on their way to subscribers, as Kafka keeps them for Drogue Cloud.

Each application has a topic, whose partitions keep the order of their events; a device's events are all in one. Each
group of subscribers has an offset in each partition: the first event that no member has acknowledged.
"""

import threading
import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from fleet_fn.sandbox.events import Event

#: What a topic keeps; it forgets its oldest events beyond. An event's attributes count as 1 KiB.
RETAINED_BYTES: Final = 64 * 1024 * 1024
_ATTRIBUTES_BYTES: Final = 1024


@dataclass(slots=True)
class _Partition:
    events: deque[Event] = field(default_factory=deque)
    #: Offset of the first event that is kept.
    start: int = 0

    @property
    def end(self) -> int:
        """Offset of the next event to come."""
        return self.start + len(self.events)


@dataclass(eq=False, slots=True)
class _Group:
    name: str | None
    #: The first unacknowledged offset of each partition.
    offsets: list[int]
    #: In the order of their arrival.
    members: list["Member"] = field(default_factory=list)
    #: Partitions of which a member has an event in progress: no other member gets the next one.
    busy: set[int] = field(default_factory=set)


@dataclass(slots=True)
class _Topic:
    partitions: list[_Partition]
    #: Those with a name stay when their last member leaves.
    groups: list[_Group] = field(default_factory=list)
    kept_bytes: int = 0


class Topics:
    """The topics of all applications. Safe to use from several threads."""

    def __init__(self, partitions: int, log: Callable[[str], None], retained_bytes: int = RETAINED_BYTES) -> None:
        """Keep events.

        Args:
            partitions: how many each topic has.
            log: takes a line when a group loses events.
            retained_bytes: what each topic keeps.

        Raises:
            ValueError: there is no partition.

        """
        if partitions < 1:
            raise ValueError("topics need 1 partition or more")
        self._count = partitions
        self._log = log
        self._retained_bytes = retained_bytes
        self._topics: dict[str, _Topic] = {}
        self._changed = threading.Condition()

    def publish(self, event: Event) -> None:
        """Append an event to the topic of its application."""
        key = event.attributes["partitionkey"]
        with self._changed:
            topic = self._topic(event.attributes["application"])
            topic.partitions[zlib.crc32(key.encode()) % self._count].events.append(event)
            topic.kept_bytes += _size(event)
            while topic.kept_bytes > self._retained_bytes:
                self._forget(topic)
            self._changed.notify_all()

    def join(self, application: str, group: str | None) -> "Member":
        """Return a new member of a group, or of one of its own for None.

        A new group gets the events from now on. Members share the partitions, whose number bounds how many of them get
        events.
        """
        with self._changed:
            topic = self._topic(application)
            found = next((other for other in topic.groups if group is not None and other.name == group), None)
            if found is None:
                found = _Group(group, [partition.end for partition in topic.partitions])
                topic.groups.append(found)
            member = Member(self._changed, topic, found)
            found.members.append(member)
            self._changed.notify_all()
            return member

    def has_member(self, application: str) -> bool:
        """Return whether any group has a member that gets an application's events."""
        with self._changed:
            return any(group.members for group in self._topic(application).groups)

    def wait(self, application: str, seconds: float) -> bool:
        """Wait until each group with members has acknowledged all events.

        Return whether it has, for the events of one application.
        """
        with self._changed:
            topic = self._topic(application)
            return self._changed.wait_for(lambda: all(_is_done(topic, group) for group in topic.groups), seconds)

    def _topic(self, application: str) -> _Topic:
        if application not in self._topics:
            self._topics[application] = _Topic([_Partition() for _ in range(self._count)])
        return self._topics[application]

    def _forget(self, topic: _Topic) -> None:
        """Forget the oldest event of the fullest partition."""
        number, partition = max(enumerate(topic.partitions), key=lambda each: len(each[1].events))
        event = partition.events.popleft()
        topic.kept_bytes -= _size(event)
        partition.start += 1
        for group in topic.groups:
            if group.offsets[number] < partition.start:
                group.offsets[number] = partition.start
                self._log(f"{event}: forgotten before group {group.name} acknowledged it")


class Member:
    """A subscriber's part of a group."""

    def __init__(self, changed: threading.Condition, topic: _Topic, group: _Group) -> None:
        self._changed = changed
        self._topic = topic
        self._group = group
        #: Partition and offset of the event in progress.
        self._taken: tuple[int, int] | None = None
        #: Partition of the last event.
        self._last = 0
        self._has_left = False

    def next(self) -> Event | None:
        """Wait for the next event, which is in progress then.

        Return None once the member has left.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._has_left or self._find() is not None)
            place = None if self._has_left else self._find()
            if place is None:
                return None
            number, offset = self._taken = place
            self._last = number
            self._group.busy.add(number)
            partition = self._topic.partitions[number]
            return partition.events[offset - partition.start]

    def acknowledge(self) -> None:
        """Note that the event in progress is over."""
        with self._changed:
            if self._taken is not None:
                number, offset = self._taken
                self._group.offsets[number] = max(self._group.offsets[number], offset + 1)
                self._release()

    def leave(self) -> None:
        """Leave the group. Another member gets the event in progress again."""
        with self._changed:
            if not self._has_left:
                self._has_left = True
                self._group.members.remove(self)
                if self._group.name is None:
                    self._topic.groups.remove(self._group)
                self._release()

    def _release(self) -> None:
        if self._taken is not None:
            self._group.busy.discard(self._taken[0])
            self._taken = None
        self._changed.notify_all()

    def _find(self) -> tuple[int, int] | None:
        """Return the partition and the offset of the next event; None if there is none."""
        members, count = self._group.members, len(self._topic.partitions)
        place = members.index(self)
        # Take turns, so that a full partition does not hold up the others.
        for number in ((self._last + step) % count for step in range(1, count + 1)):
            offset, partition = self._group.offsets[number], self._topic.partitions[number]
            is_ours = number % len(members) == place and number not in self._group.busy
            if is_ours and offset < partition.end:
                return number, offset
        return None


def _is_done(topic: _Topic, group: _Group) -> bool:
    ends = [partition.end for partition in topic.partitions]
    return not group.members or group.offsets == ends


def _size(event: Event) -> int:
    return _ATTRIBUTES_BYTES + len(event.data or b"")
