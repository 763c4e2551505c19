"""Events on their way to groups of subscribers."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_fn.sandbox.events import Event
from fleet_fn.sandbox.mqtt.topics import Member, Topics

PATIENCE = 10.0


def event(number: int, device: str = "till", size: int = 0) -> Event:
    attributes = {"id": str(number), "application": "shop", "device": device, "subject": "dfu"}
    return Event({**attributes, "partitionkey": f"shop/{device}"}, bytes(size))


def number_of(found: Event | None) -> int | None:
    return None if found is None else int(found.attributes["id"])


def take(member: Member) -> int | None:
    found = number_of(member.next())
    member.acknowledge()
    return found


def within(call: Callable[[], int | None]) -> int | None:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result(PATIENCE)


@pytest.fixture
def lines() -> list[str]:
    return []


def test_a_member_waits_for_events_until_it_leaves(lines: list[str]) -> None:
    topics = Topics(1, lines.append)
    member = topics.join("shop", "g")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(take, member)
        topics.publish(event(1))
        assert waiting.result(PATIENCE) == 1
        waiting = pool.submit(take, member)
        member.leave()
        assert waiting.result(PATIENCE) is None
        member.leave()


def test_an_event_in_progress_comes_again_when_its_member_leaves(lines: list[str]) -> None:
    topics = Topics(1, lines.append)
    first, second = topics.join("shop", "g"), topics.join("shop", "g")
    topics.publish(event(1))
    assert number_of(first.next()) == 1
    assert not topics.wait("shop", 0)
    first.leave()
    assert within(lambda: take(second)) == 1
    assert topics.wait("shop", 0)


def test_a_group_with_a_name_keeps_its_place_and_one_without_does_not(lines: list[str]) -> None:
    topics = Topics(1, lines.append)
    for name in ("g", None):
        topics.join("shop", name).leave()
    topics.publish(event(1))
    assert topics.wait("shop", 0)  # no member waits for it
    alone = topics.join("shop", None)
    assert within(lambda: take(topics.join("shop", "g"))) == 1
    topics.publish(event(2))
    assert within(lambda: take(alone)) == 2


def test_the_oldest_events_are_forgotten_and_that_is_logged(lines: list[str]) -> None:
    topics = Topics(1, lines.append, retained_bytes=3 * 1024)
    member = topics.join("shop", "g")
    for number in range(5):
        topics.publish(event(number))
    assert [within(lambda: take(member)) for _ in range(3)] == [2, 3, 4]
    assert lines == ["shop/till dfu: forgotten before group g acknowledged it"] * 2
    topics.publish(event(5))
    assert within(lambda: take(member)) == 5
    assert len(lines) == 2


def test_an_event_may_be_forgotten_while_it_is_in_progress(lines: list[str]) -> None:
    topics = Topics(1, lines.append, retained_bytes=2 * 1024)
    member = topics.join("shop", "g")
    topics.publish(event(0))
    assert number_of(member.next()) == 0
    for number in (1, 2, 3):
        topics.publish(event(number))
    member.acknowledge()
    assert [within(lambda: take(member)) for _ in range(2)] == [2, 3]


def test_topics_need_a_partition(lines: list[str]) -> None:
    with pytest.raises(ValueError, match="1 partition"):
        Topics(0, lines.append)


@given(
    st.integers(1, 4),
    st.lists(st.one_of(st.sampled_from("abcdef"), st.sampled_from(("join", "leave", "take"))), max_size=60),
)
def test_whatever_members_do_each_event_is_acknowledged_once_and_in_order(partitions: int, steps: list[str]) -> None:
    topics = Topics(partitions, lambda _: None)
    members = [topics.join("shop", "g")]
    sent: dict[str, list[int]] = {}
    got: dict[str, list[int]] = {}

    def take_one(member: Member) -> bool:
        if member._find() is None:  # next() would wait
            return False
        found = member.next()
        assert found is not None
        member.acknowledge()
        got.setdefault(found.attributes["device"], []).append(int(found.attributes["id"]))
        return True

    for number, step in enumerate(steps):
        if step == "join":
            members.append(topics.join("shop", "g"))
        elif step == "leave" and len(members) > 1:
            members.pop(number % len(members)).leave()
        elif step == "take":
            take_one(members[number % len(members)])
        elif len(step) == 1:
            topics.publish(event(number, step))
            sent.setdefault(step, []).append(number)
    while any(take_one(member) for member in members):
        pass
    assert got == sent
    assert topics.wait("shop", 0)
