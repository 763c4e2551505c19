"""A bounded cache of look-ups, in which each caller says how old a value may be."""

import math
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from copy import copy
from functools import partial
from typing import Generic, Protocol, TypeVar

from fleet_fn.concurrency.turns import Turns
from fleet_fn.deadline import Deadline
from fleet_fn.errors import TransientError, UpstreamError
from fleet_fn.observability.side_effects import guard

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Count(Protocol):
    """Counts look-ups."""

    def __call__(self, *, hit: bool) -> None:
        """Count a look-up; `hit` says that the cache had the value."""


class TTLCache(Generic[K, V]):
    """A cache of values by key, and of the errors of failed look-ups.

    Each value has the time at which its look-up began. Callers that ask for the same key at the same time share one
    look-up. Losing the cache changes no answer.
    """

    def __init__(
        self,
        size: int,
        *,
        max_bytes: float = math.inf,
        negative_ttl: Callable[[UpstreamError], float] | None = None,
        count: Count | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Keep at most `size` values, of at most `max_bytes` together by `deep_size`.

        Args:
            size: values; 0 keeps none.
            max_bytes: bytes of all keys and values.
            negative_ttl: seconds for which an error is raised again; without it, errors are not kept.
            count: is called with each `get`.
            clock: seconds.

        """
        self._error_age = negative_ttl
        self._count = guard("count of look-ups", count)
        self._clock = clock
        self._lock = threading.Lock()
        self._values: Bounded[K, V] = Bounded(size, max_bytes)
        self._errors: Bounded[K, UpstreamError] = Bounded(size)
        self._turns: Turns[K] = Turns(partial(TransientError, "an earlier look-up of the same has not ended"))
        #: Keys that are being looked up, and were not invalidated since.
        self._looked_up: set[K] = set()
        #: Keys that changed since each look-up of many keys began.
        self._changed: list[set[K]] = []
        self._remembers = size > 0

    def get(self, key: K, max_age: float, look_up: Callable[[], V], deadline: Deadline) -> V:
        """Return the value of `key`; look it up if it is older than `max_age` seconds.

        Raises:
            TransientError: another thread's look-up of the key took until the deadline.
            UpstreamError: the error of `look_up`, now or within `negative_ttl`.

        """
        if not self._remembers:
            return look_up()
        asked = self._clock()
        if (entry := self._values.get(key)) and entry[0] >= asked - max_age:
            self._count_look_up(hit=True)
            return entry[1]
        return self._get_unknown(key, asked, max_age, look_up, deadline)

    def hit(self, key: K, max_age: float) -> V | None:
        """Return the value of `key` as `get` would, without a look-up; or None."""
        if (value := self.peek(key, max_age)) is not None:
            self._count_look_up(hit=True)
        return value

    def peek(self, key: K, max_age: float = math.inf) -> V | None:
        """Return the value of `key` if it is known and no older than `max_age` seconds."""
        entry = self._values.get(key)
        return entry[1] if entry and entry[0] >= self._clock() - max_age else None

    def now(self) -> float:
        """Return the time to `put` with a value whose look-up begins now."""
        return self._clock()

    def put(self, key: K, since: float, value: V) -> None:
        """Keep a value that the caller looked up itself, beginning at `since`."""
        if self._remembers:
            with self._lock:
                self._note_change(key)
                self._values.put(key, since, value)
                self._errors.pop(key)

    @contextmanager
    def look_up_many(self) -> Iterator[Callable[[K, V], None]]:
        """Yield a function that keeps values of one look-up, which begins now.

        It leaves alone each key that was looked up since, or whose value was put, replaced or invalidated.
        """
        since, changed = self._clock(), set[K]()

        def keep(key: K, value: V) -> None:
            with self._lock:
                if self._remembers and key not in changed and not self._is_newer(key, since):
                    self._values.put(key, since, value)
                    self._errors.pop(key)

        with self._lock:
            self._changed.append(changed)
        try:
            yield keep
        finally:
            with self._lock:
                self._changed = [each for each in self._changed if each is not changed]

    def replace(self, key: K, value: V) -> None:
        """Replace the known value of `key`; the new one counts as equally old.

        The result of a look-up that is under way may be older, and is not kept.
        """
        with self._lock:
            self._note_change(key)
            self._looked_up.discard(key)
            if entry := self._values.get(key):
                self._values.put(key, entry[0], value)

    def invalidate(self, key: K) -> None:
        """Forget `key`, and do not keep the result of a look-up that is under way."""
        with self._lock:
            self._note_change(key)
            self._values.pop(key)
            self._errors.pop(key)
            self._looked_up.discard(key)

    def _note_change(self, key: K) -> None:
        for changed in self._changed:
            changed.add(key)

    def _is_newer(self, key: K, since: float) -> bool:
        """Return whether the known value of `key` is of a look-up that began later."""
        entry = self._values.get(key)
        return entry is not None and entry[0] > since

    def _get_unknown(self, key: K, asked: float, max_age: float, look_up: Callable[[], V], deadline: Deadline) -> V:
        """Return a value that was not known when the caller asked for it."""
        hit = True
        try:
            self._raise_known_error(key, asked)
            with self._turns.take(key, deadline):
                # A value that another thread looked up since `asked` is as fresh as our own look-up.
                if (entry := self._values.get(key)) and entry[0] >= asked - max_age:
                    return entry[1]
                self._raise_known_error(key, asked)
                hit = False
                return self._look_up(key, look_up)
        finally:
            self._count_look_up(hit=hit)

    def _raise_known_error(self, key: K, asked: float) -> None:
        """Raise the error of an earlier look-up if it is young enough."""
        if self._error_age and (failure := self._errors.get(key)) and failure[0] >= asked - self._error_age(failure[1]):
            raise copy(failure[1])

    def _count_look_up(self, *, hit: bool) -> None:
        if self._count:
            self._count(hit=hit)

    def _look_up(self, key: K, look_up: Callable[[], V]) -> V:
        with self._lock:
            self._looked_up.add(key)
        since = self._clock()
        try:
            value = look_up()
        except UpstreamError as error:
            if self._error_age and self._error_age(error) > 0:
                with self._lock:
                    if key in self._looked_up:
                        # Count from now: a look-up that failed at its time-out has failed only now. A copy does not
                        # keep the frames of the look-up alive.
                        self._errors.put(key, self._clock(), copy(error))
            raise
        else:
            with self._lock:
                if key in self._looked_up and not self._is_newer(key, since):
                    self._values.put(key, since, value)
                    self._errors.pop(key)
            return value
        finally:
            with self._lock:
                self._looked_up.discard(key)


class Bounded(Generic[K, V]):
    """Values with their times by key.

    If there are too many, the values that were put first are dropped. Not safe to use from several threads.
    """

    def __init__(self, size: int, max_bytes: float = math.inf) -> None:
        """Keep at most `size` values, which take at most `max_bytes` together.

        A larger value is not kept at all.
        """
        self._size = size
        self._max_bytes = max_bytes
        self._bytes = 0
        self._entries: OrderedDict[K, tuple[float, V, int]] = OrderedDict()

    def get(self, key: K) -> tuple[float, V, int] | None:
        """Return the time, the value and the size of `key`."""
        return self._entries.get(key)

    def put(self, key: K, moment: float, value: V) -> None:
        """Keep a value in the place of an earlier one of the same key."""
        self.pop(key)
        taken = 0 if self._max_bytes == math.inf else deep_size(key) + deep_size(value)
        self._entries[key] = (moment, value, taken)
        self._bytes += taken
        while len(self._entries) > self._size or self._bytes > self._max_bytes:
            _, (_, _, freed) = self._entries.popitem(last=False)
            self._bytes -= freed

    def pop(self, key: K) -> None:
        """Drop the value of `key`, if there is one."""
        if entry := self._entries.pop(key, None):
            self._bytes -= entry[2]


def deep_size(value: object) -> int:
    """Return the bytes of a value and of its parts; shared parts count in each value.

    Look into containers and dataclasses; of other objects only their own bytes count.
    """
    size, left = 0, [value]
    while left:
        part = left.pop()
        if part is None or part is True or part is False:
            continue  # the interpreter has one of each
        size += sys.getsizeof(part)
        if isinstance(part, str):
            continue
        if isinstance(part, dict):
            left.extend(part)
            left.extend(part.values())
        elif isinstance(part, tuple | list | frozenset):
            left.extend(part)
        else:
            left.extend(getattr(part, name) for name in getattr(part, "__dataclass_fields__", ()))
    return size
