"""Events that come twice, late, in another order, or all at once: what devices are told, and what is noted of them.

Two processes that know nothing of each other but by the registry stand for worker processes, and for pods.
"""

import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.drogue import Drogue
from tests.support.firmware import publish, random_bytes
from tests.support.function import Answer, Function, event, running
from tests.support.hostile import hang_up
from tests.support.http import Response
from tests.support.statuses import STATUS, begin, blocks, in_sync, midway, told

VERSION, SIZE = "0.1.1", 1300
#: A whole update, status by status, and how each is answered.
UPDATE = [
    (STATUS, 'write; version="0.1.1"; offset=0; size=512'),
    (midway(VERSION, 512), 'write; version="0.1.1"; offset=512; size=512'),
    (midway(VERSION, 1024), 'write; version="0.1.1"; offset=1024; size=276'),
    (midway(VERSION, SIZE), 'swap; version="0.1.1"'),
    (in_sync(VERSION), "sync"),
]

Attributes = dict[str, str | None]


@pytest.fixture(scope="module")
def content(firmware: Path) -> bytes:
    content = random_bytes(SIZE, "delivered")
    publish(firmware, "delivered", VERSION, content)
    return content


@pytest.fixture
def managed(drogue: Drogue, device: str, content: bytes) -> str:
    assert content
    drogue.put_image("example", device, "delivered:0.1.1")
    return device


@pytest.fixture(scope="module")
def other(environment: dict[str, str]) -> Iterator[Function]:
    """Another process than the session's, and one that never thinks an event too old."""
    with running(environment | {"EVENT_MAX_AGE_SECONDS": "0"}) as function:
        yield function


def ago(seconds: float) -> str:
    return (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat()


def sent(device: str, seconds_ago: float = 0, **attributes: str | None) -> Attributes:
    """The attributes of a status that came to the cloud a while ago."""
    return event(device, datacontenttype="application/cbor", time=ago(seconds_ago), **attributes)


def deliver(function: Function, attributes: Attributes, status: dict[int, Any]) -> Answer:
    return function.post(attributes, cbor2.dumps(status))


def noted(drogue: Drogue, device: str) -> dict[str, Any]:
    """What is noted of a device's update, but for when, and for whom."""
    update = drogue.reported(device)["update"]
    return {name: update[name] for name in ("attempts", "restart") if name in update}


# --- Twice


def test_deliveries_of_one_event_at_the_same_moment_send_one_command(
    function: Function, drogue: Drogue, managed: str
) -> None:
    start, barrier = sent(managed), threading.Barrier(6)

    def post(_: int) -> str:
        barrier.wait(10)
        return deliver(function, start, STATUS).outcome

    with ThreadPoolExecutor(6) as pool:
        outcomes = sorted(pool.map(post, range(6)))
    assert outcomes == ["duplicate"] * 5 + [UPDATE[0][1]]
    assert len(drogue.commands_for(managed)) == 1


@pytest.mark.parametrize("step", [0, 3, 4])
def test_what_starts_or_ends_an_update_is_answered_once_by_whichever_process_it_comes_to_again(
    function: Function, other: Function, drogue: Drogue, managed: str, step: int
) -> None:
    for status, outcome in UPDATE[:step]:
        assert deliver(function, sent(managed), status).outcome == outcome
    status, outcome = UPDATE[step]
    again = sent(managed)
    assert deliver(function, again, status).outcome == outcome
    commands = len(drogue.commands_for(managed))
    assert (deliver(other, again, status).status, deliver(other, again, status).outcome) == (204, "duplicate")
    assert len(drogue.commands_for(managed)) == commands


def test_a_start_that_comes_again_does_not_have_a_device_erase_what_it_wrote_meanwhile(
    function: Function, other: Function, drogue: Drogue, managed: str
) -> None:
    """Most devices of the field erase the update partition at a block at 0, and go on from where they were."""
    first, second = sent(managed, 22), sent(managed, 20)
    deliver(function, first, STATUS)
    deliver(function, second, STATUS)  # its power was cycled
    deliver(function, sent(managed, 10), midway(VERSION, 512))
    for late in (second, first):
        assert deliver(other, late, STATUS).outcome == "duplicate"
    assert [offset for offset, _ in blocks(drogue, managed)] == [0, 0, 512]


def test_a_block_in_between_that_comes_again_at_another_process_is_sent_again_to_the_byte(
    function: Function, other: Function, drogue: Drogue, managed: str
) -> None:
    """Nothing is noted of it. A careful device knows that it did not ask, and others expect another offset by now."""
    start, again = sent(managed), sent(managed)
    deliver(function, start, STATUS)
    outcomes = [deliver(process, again, midway(VERSION, 512)).outcome for process in (function, other, function)]
    assert outcomes == [UPDATE[1][1], UPDATE[1][1], "duplicate"]
    _, first, second = drogue.commands_for(managed)
    assert first.payload == second.payload
    assert noted(drogue, managed) == {"attempts": 0}


def test_an_event_whose_command_was_refused_is_no_duplicate_at_another_process(
    function: Function, other: Function, drogue: Drogue, managed: str
) -> None:
    start = sent(managed)
    drogue.command_answers[managed] = lambda _: Response(429)
    assert deliver(function, start, STATUS).status == 503
    del drogue.command_answers[managed]
    assert deliver(other, start, STATUS).outcome == UPDATE[0][1]


@pytest.mark.parametrize("step", [0, 3])
@pytest.mark.parametrize("answer", [hang_up, lambda _: Response(502)])
def test_a_command_that_may_have_been_accepted_is_sent_again_with_the_next_status_only(
    function: Function, other: Function, drogue: Drogue, managed: str, step: int, answer: Any
) -> None:
    for number, (status, outcome) in enumerate(UPDATE[:step]):
        assert deliver(function, sent(managed, 20 - number), status).outcome == outcome
    (status, outcome), unknown = UPDATE[step], sent(managed, 10)
    drogue.command_answers[managed] = answer
    assert deliver(function, unknown, status).status == 503
    del drogue.command_answers[managed]
    assert {deliver(process, unknown, status).outcome for process in (other, function)} == {"duplicate"}
    assert len(told(drogue, managed)) == step
    assert deliver(other, sent(managed), status).outcome == outcome


def test_a_restart_whose_command_was_not_taken_is_ordered_when_its_status_comes_again(
    function: Function, other: Function, drogue: Drogue, managed: str
) -> None:
    restart = sent(managed)
    drogue.command_answers[managed] = lambda _: Response(429)
    assert deliver(function, restart, midway("0.1.0-rc", 1024)).status == 503
    assert "update" not in drogue.reported(managed)
    del drogue.command_answers[managed]
    assert deliver(other, restart, midway("0.1.0-rc", 1024)).outcome == UPDATE[0][1]
    assert noted(drogue, managed)["restart"] == {"sent": 512, "midway": 1024}
    assert len(drogue.reported(managed)["update"]["answered"]["events"]) == 1


def test_a_start_that_comes_late_does_not_have_an_update_go_on_with_other_bytes_than_it_began_with(
    function: Function, drogue: Drogue, firmware: Path, device: str
) -> None:
    publish(firmware, device, "1", random_bytes(SIZE, f"{device} old"))
    drogue.put_image("example", device, f"{device}:1")
    late = sent(device, 10)
    assert deliver(function, sent(device), STATUS).outcome == 'write; version="1"; offset=0; size=512'
    publish(firmware, device, "1", random_bytes(SIZE, f"{device} new"))
    time.sleep(1.05)  # what the protocol calls fresh is younger
    assert deliver(function, late, STATUS).outcome == "duplicate"  # the device does not listen for it any more
    assert deliver(function, sent(device), midway("1", 512)).outcome == 'write; version="1"; offset=0; size=512'
    assert noted(drogue, device)["restart"]["midway"] == 512


@pytest.mark.parametrize("identity", ["ü☃", " x ", '"', "%20", "\x00", "x" * 60_000])
def test_an_id_may_be_anything_and_is_not_confused_with_another_sources(
    function: Function, drogue: Drogue, device: str, identity: str
) -> None:
    def post(source: str) -> str:
        attributes = {**event(device, id=identity, source=source), "data": {"version": "1"}}
        return function.post_structured({**attributes, "datacontenttype": "application/json"}).outcome

    assert [post(f"/{source}") for source in (device, device, f"{device}x")] == [
        'withheld; reason="unmanaged"',
        "duplicate",
        'withheld; reason="unmanaged"',
    ]
    assert len(drogue.commands_for(device)) == 2


# --- In another order


@settings(max_examples=25)
@given(order=st.permutations(UPDATE), processes=st.lists(st.booleans(), min_size=5, max_size=5))
def test_in_whichever_order_statuses_come_each_gets_its_own_answer_or_none_if_it_comes_too_late(
    function: Function,
    other: Function,
    drogue: Drogue,
    content: bytes,
    order: Sequence[tuple[dict[int, Any], str]],
    processes: Sequence[bool],
) -> None:
    assert content
    name = f"shuffled-{next(_shuffled)}"
    drogue.put("example", spec={})
    drogue.put_image("example", name, "delivered:0.1.1")
    assert deliver(function, sent(name, 20), STATUS).outcome == UPDATE[0][1]  # its power was cycled then
    events = [sent(name, 10 - number) for number in range(len(UPDATE))]
    latest = -1
    for step, one in zip(order, processes, strict=True):
        (status, outcome), number = step, UPDATE.index(step)
        answer, allowed = deliver(function if one else other, events[number], status), {outcome}
        if number < latest:
            # One from before the update that comes after its SWAP looks as if that had come to nothing.
            allowed |= {"duplicate", 'withheld; reason="backoff"'} if number == 0 else {"duplicate"}
        assert answer.status == 204
        assert answer.outcome in allowed
        latest = max(latest, number)
    assert noted(drogue, name) == {"attempts": 0}


_shuffled = itertools.count()


@pytest.mark.parametrize(
    "time",
    [ago(-3600), None, "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59.999999999-23:59"],
    ids=["an hour ahead", "missing", "first", "last"],
)
def test_a_clock_that_was_wrong_for_once_and_a_time_that_is_missing_keep_nobody_waiting(
    other: Function, drogue: Drogue, managed: str, time: str | None
) -> None:
    assert deliver(other, {**sent(managed), "time": time}, STATUS).outcome == UPDATE[0][1]
    for status, outcome in UPDATE[1:]:
        assert deliver(other, sent(managed), status).outcome == outcome
    assert drogue.reported(managed)["update"]["attempts"] == 0


def test_times_to_the_second_confuse_no_status_with_the_next(function: Function, managed: str) -> None:
    second = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    for status, outcome in UPDATE:
        assert deliver(function, {**sent(managed), "time": second}, status).outcome == outcome


# --- By two gateways


def test_a_status_that_two_gateways_pass_on_at_once_is_counted_once_and_tells_the_device_the_same(
    function: Function, other: Function, drogue: Drogue, managed: str
) -> None:
    for status, outcome in UPDATE[:4]:
        barrier = threading.Barrier(2)

        def post(gateway: str, process: Function, status: dict[int, Any] = status, barrier: Any = barrier) -> Answer:
            attributes = sent(managed, sender=gateway, partitionkey=f"example/{gateway}")
            barrier.wait(10)
            return deliver(process, attributes, status)

        with ThreadPoolExecutor(2) as pool:
            answers = list(pool.map(post, ("left", "right"), (function, other)))
        assert {(answer.status, answer.outcome) for answer in answers} <= {(204, outcome), (204, "duplicate")}
        assert outcome in {answer.outcome for answer in answers}
    commands = [(kind, fields.get(2)) for kind, fields in told(drogue, managed)]
    assert [kind for kind, _ in itertools.groupby(commands)] == [
        ("write", 0),
        ("write", 512),
        ("write", 1024),
        ("swap", told(drogue, managed)[-1][1][2]),
    ]
    assert noted(drogue, managed) == {"attempts": 0}


# --- Old ones


def test_a_topic_of_old_events_costs_nothing_and_keeps_no_live_event_waiting(
    function: Function, drogue: Drogue, managed: str
) -> None:
    old = [f"replayed-{number}" for number in range(300)]
    begin(function, managed)
    before = len(drogue.commands), len(drogue.reads), len(drogue.writes)
    over = threading.Event()

    def replay(devices: list[str]) -> set[str]:
        return {deliver(function, sent(device, 3600), STATUS).outcome for device in devices for _ in range(3)}

    def live() -> list[float]:
        durations = []
        while not over.is_set():
            started = time.monotonic()
            assert deliver(function, sent(managed), midway(VERSION, 512)).outcome == UPDATE[1][1]
            durations.append(time.monotonic() - started)
        return durations

    with ThreadPoolExecutor(4) as pool:
        answered = pool.submit(live)
        replays = [pool.submit(replay, old[part::3]) for part in range(3)]
        assert set().union(*(future.result() for future in replays)) == {"stale"}
        over.set()
        durations = answered.result()
    assert len(durations) > 10
    assert sorted(durations)[len(durations) // 2] < 0.5
    assert max(durations) < 4
    assert not {command.device for command in drogue.commands[before[0] :]} - {managed}
    assert not {names for names in drogue.reads[before[1] :] if names[-1] in old}
    assert not {names for names in drogue.writes[before[2] :] if names[-1] in old}


def test_where_no_event_is_too_old_an_update_that_is_replayed_starts_and_swaps_nothing(
    function: Function, other: Function, drogue: Drogue, managed: str
) -> None:
    events = [sent(managed, 20 - number) for number in range(len(UPDATE))]
    for attributes, (status, _) in zip(events, UPDATE, strict=True):
        assert deliver(function, attributes, status).status == 204
    outcomes = [
        deliver(other, attributes, status).outcome for attributes, (status, _) in zip(events, UPDATE, strict=True)
    ]
    assert outcomes == ["duplicate"] * len(UPDATE)
    assert len(told(drogue, managed)) == len(UPDATE)
    assert noted(drogue, managed) == {"attempts": 0}


@pytest.mark.parametrize("structured", [False, True])
@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("2026-01-01T00:00:00.123456789Z", "stale"),
        ("2026-01-01t00:00:00z", "stale"),
        ("2026-01-01T00:00:00-00:00", "stale"),
        ("0001-01-01T00:00:00+23:59", "stale"),
        ("9999-12-31T23:59:59.999999999-23:59", 'withheld; reason="unmanaged"'),
        # Python's calendar has neither; a device whose event is refused asks again.
        ("2016-12-31T23:59:60Z", "invalid"),
        ("0000-01-01T00:00:00Z", "invalid"),
    ],
)
def test_a_time_of_whichever_form_is_that_moment_or_invalid(
    function: Function, drogue: Drogue, device: str, text: str, outcome: str, structured: bool
) -> None:
    attributes = {**event(device, time=text), "datacontenttype": "application/json"}
    if structured:
        answer = function.post_structured({**attributes, "data": {"version": "1"}})
    else:
        answer = function.post(attributes, b'{"version": "1"}')
    assert answer.outcome == outcome
    assert len(drogue.commands_for(device)) == outcome.startswith("withheld")
