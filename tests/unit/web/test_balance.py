"""Which worker takes a new connection, and which closes one that it has."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_fn.web import balance
from fleet_fn.web.balance import Board, Share


def shares(*connections: int) -> list[Share]:
    board = Board()
    for slot in range(len(connections)):
        board.enter(slot)
    found = [Share(board, slot) for slot in range(len(connections))]
    for share, count in zip(found, connections, strict=True):
        share.tell(count)
    return found


def waits() -> bool:
    """A connection that nobody takes."""
    return True


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(balance, "_PATIENCE_SECONDS", 60.0)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("connections", [(3,), (3, 3), (3, 4), (0, 9)])
def test_a_worker_with_the_fewest_takes_a_connection_at_once(connections: tuple[int, ...]) -> None:
    shares(*connections)[0].yield_connection(waits)


@pytest.mark.usefixtures("patient")
def test_a_worker_with_more_waits_until_another_has_as_many() -> None:
    first, second = shares(3, 1)
    with ThreadPoolExecutor(1) as pool:
        yields = pool.submit(first.yield_connection, waits)
        second.tell(2)
        with pytest.raises(TimeoutError):
            yields.result(0.05)
        second.tell(3)
        yields.result(20)


@pytest.mark.usefixtures("patient")
def test_a_worker_does_not_wait_for_one_that_has_left() -> None:
    first, second = shares(3, 1)
    second.leave()
    first.yield_connection(waits)
    assert not first.must_close()


@pytest.mark.usefixtures("patient")
def test_a_worker_waits_no_longer_than_the_connection_does() -> None:
    first, _ = shares(9, 1)
    looks = iter([True, True, False])
    first.yield_connection(lambda: next(looks))
    assert next(looks, None) is None


@pytest.mark.usefixtures("patient")
def test_a_worker_does_not_wait_for_one_that_only_starts() -> None:
    board = Board()
    board.enter(0)
    board.enter(1)
    first, _ = Share(board, 0), Share(board, 1)
    first.tell(9)
    first.yield_connection(waits)
    assert not first.must_close()


def test_a_worker_waits_for_one_that_hangs_only_now_and_then() -> None:
    first, _ = shares(3, 1)
    first.yield_connection(waits)
    began = time.process_time()
    for _ in range(1000):
        first.yield_connection(waits)
    # A thousand waits would take 20 s by the clock, and some of it of the CPU.
    assert time.process_time() - began < 0.5


@pytest.mark.parametrize(
    ("own", "other", "closes"),
    [
        (1, 0, False),
        (2, 0, True),
        (1, 1, False),
        (3, 1, True),
        (3, 2, False),
        (9, 7, False),
        (10, 6, True),
        (0, 4, False),
    ],
)
def test_a_worker_with_far_more_closes_one(own: int, other: int, closes: bool) -> None:
    assert shares(own, other)[0].must_close() is closes


def test_a_worker_closes_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(balance, "_CLOSE_SECONDS", 60.0)
    first, _ = shares(20, 1)
    assert [first.must_close() for _ in range(3)] == [True, False, False]


@given(st.lists(st.integers(0, 40), min_size=2, max_size=5))
def test_closing_ends_in_balance(connections: list[int]) -> None:
    found, counts = shares(*connections), list(connections)
    for share in found:
        share._closes_from = 0.0
    for _ in range(sum(counts) + 1):
        for slot, share in enumerate(found):
            share._closes_from = 0.0
            if share.must_close():
                counts[slot] -= 1
                share.tell(counts[slot])
                least = counts.index(min(counts))  # who has more leaves the new connection to that one
                counts[least] += 1
                found[least].tell(counts[least])
    assert sum(counts) == sum(connections)
    assert max(counts) <= min(counts) + 1 + max(counts) // 4


def test_more_workers_than_slots_take_connections_as_they_come() -> None:
    many = shares(*[7] * 300)
    many[0].tell(0)
    assert many[1].must_close()
    assert not many[299].must_close()
    many[299].leave()
