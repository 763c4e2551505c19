"""Pool: what is kept, in which order handles are used, and which ones are closed when."""

import random
from dataclasses import dataclass, field

from fleet_fn.http.pool import MAX_IDLE_SECONDS, Pool
from tests.support.timing import Clock


@dataclass(eq=False)
class Handle:
    is_usable: bool = True
    has_input: bool = False
    idle_since: float = 0.0
    is_closed: bool = False

    def close(self) -> None:
        assert not self.is_closed
        self.is_closed = True


@dataclass
class Handles:
    """Makes handles, and remembers them."""

    made: list[Handle] = field(default_factory=list)

    def make(self) -> Handle:
        self.made.append(Handle())
        return self.made[-1]

    def open(self) -> list[Handle]:
        return [handle for handle in self.made if not handle.is_closed]


def make_pool(max_idle: int = 8) -> tuple[Pool, Handles, Clock]:  # type: ignore[type-arg]
    handles, clock = Handles(), Clock()
    return Pool(handles.make, max_idle, clock), handles, clock


def test_handle_used_last_is_taken_first() -> None:
    pool, _, _ = make_pool()
    first, second = pool.take(), pool.take()
    pool.give_back(first)
    pool.give_back(second)
    assert pool.take() is second
    assert pool.take() is first


def test_handles_below_the_top_are_closed_in_time() -> None:
    pool, handles, clock = make_pool()
    for handle in [pool.take() for _ in range(5)]:
        pool.give_back(handle)
        clock.now += MAX_IDLE_SECONDS / 4
    pool.give_back(pool.take())
    assert handles.open() == handles.made[2:]
    clock.now += MAX_IDLE_SECONDS / 2
    pool.give_back(pool.take())
    assert handles.open() == handles.made[4:]


def test_handle_that_is_not_kept_closes_old_ones_too() -> None:
    pool, handles, clock = make_pool()
    idle, broken = pool.take(), pool.take()
    pool.give_back(idle)
    clock.now += MAX_IDLE_SECONDS
    broken.is_usable = False
    pool.give_back(broken)
    assert not handles.open()


def test_old_handles_make_room() -> None:
    pool, handles, clock = make_pool(max_idle=1)
    idle, other = pool.take(), pool.take()
    pool.give_back(idle)
    clock.now += MAX_IDLE_SECONDS
    pool.give_back(other)
    assert handles.open() == [other]
    assert pool.take() is other


def test_no_idle_handle_outlives_the_next_return() -> None:
    rolls = random.Random(7)
    pool, handles, clock = make_pool()
    taken = [pool.take()]
    for _ in range(2000):
        clock.now += rolls.random() * MAX_IDLE_SECONDS / 4
        if rolls.random() < 0.5:
            taken.append(pool.take())
        if rolls.random() < 0.5 and taken:
            pool.give_back(taken.pop(rolls.randrange(len(taken))))
            idle = [handle for handle in handles.open() if handle not in taken]
            assert all(clock.now - handle.idle_since < MAX_IDLE_SECONDS for handle in idle)
    pool.close()
    assert handles.open() == [handle for handle in handles.made if handle in taken]
