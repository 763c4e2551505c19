"""Snapshots: one reading for all who look, never a page that waits, and news of failures."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from fleet_fn.console.snapshot import Snapshot
from fleet_fn.console.snapshots import Snapshots
from fleet_fn.console.users import User
from fleet_fn.fleet.rollout.target import find_target
from fleet_fn.http.authorization import Fixed, basic
from fleet_fn.http.client import HttpClient
from tests.support.drogue import TOKEN, USER, Drogue
from tests.support.http import Request, Response

PATIENCE = 20.0


@dataclass
class World:
    cloud: Drogue
    user: User
    snapshots: Snapshots
    now: float = 0.0
    requests: list[str] = field(default_factory=list)

    def look(self, application: str = "shop") -> Snapshot:
        return self.snapshots.look(self.user, application)

    def wait(self, condition: Callable[[Snapshot], bool], application: str = "shop") -> Snapshot:
        end = time.monotonic() + PATIENCE
        while True:
            found = self.look(application)
            if condition(found):
                return found
            assert time.monotonic() < end, found
            time.sleep(0.005)

    @property
    def listings(self) -> int:
        return sum("/devices?" in path for path in self.requests)


def make_world(max_devices: int = 1000) -> Iterator[World]:
    def note(answer: Callable[[Request], Response | None]) -> Callable[[Request], Response | None]:
        def noting(request: Request) -> Response | None:
            found.requests.append(request.path)
            return answer(request)

        return noting

    with Drogue(through=note) as cloud:
        client = HttpClient("device registry", cloud.url, authorization=Fixed(basic(USER, TOKEN)))
        began = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)
        snapshots = Snapshots(
            lambda application: find_target(application, None),
            clock=lambda: found.now,
            now=lambda: began + timedelta(seconds=found.now),
            max_devices=max_devices,
        )
        found = World(cloud, User("1", "alice", client), snapshots)
        cloud.put("shop", spec={"firmware": {"container": {"image": "pump:1.0.0"}}})
        for number in range(3):
            cloud.put("shop", f"device{number}")
        yield found
        snapshots.close()
        client.close()


@pytest.fixture
def world() -> Iterator[World]:
    yield from make_world()


def devices_of(snapshot: Snapshot) -> list[str]:
    assert snapshot.devices
    assert snapshot.devices.entries is not None
    return [entry.row.device for entry in snapshot.devices.entries]


def is_read(snapshot: Snapshot) -> bool:
    return snapshot.devices is not None and not snapshot.is_reading


def test_a_first_look_does_not_wait(world: World) -> None:
    release = threading.Event()

    def hang(_: object) -> None:
        release.wait(PATIENCE)

    world.cloud.registry_answers[("shop",)] = hang
    first = world.look()
    assert (first.devices, first.overview, first.is_reading) == (None, None, True)
    del world.cloud.registry_answers[("shop",)]
    release.set()
    assert devices_of(world.wait(is_read)) == ["device0", "device1", "device2"]


def test_looks_share_one_reading(world: World) -> None:
    world.wait(is_read)
    for _ in range(20):
        world.look()
    assert world.listings == 1


def test_only_the_object_is_read_before_the_devices_are_due(world: World) -> None:
    world.wait(is_read)
    world.cloud.put("shop", spec={"firmware": {"container": {"image": "pump:1.0.0"}, "rollout": {"paused": True}}})
    world.now = 6
    found = world.wait(lambda each: bool(each.overview and each.overview.application.policy.paused))
    assert world.listings == 1
    assert found.at == datetime(2026, 11, 29, 12, 0, tzinfo=UTC)
    world.now = 11
    world.wait(lambda each: each.at == datetime(2026, 11, 29, 12, 0, 11, tzinfo=UTC))
    assert world.listings == 2


def test_nobody_looks_and_nothing_is_read(world: World) -> None:
    world.wait(is_read)
    count = len(world.requests)
    world.now = 3600
    time.sleep(0.05)
    assert len(world.requests) == count


def test_an_outage_leaves_the_last_snapshot_with_the_reason(world: World) -> None:
    world.wait(is_read)
    world.cloud.stop_listening()
    world.user.upstream.close()
    world.now = 60
    found = world.wait(lambda each: bool(each.problem))
    assert devices_of(found) == ["device0", "device1", "device2"]
    assert found.problem.startswith("device registry: ")
    assert found.problem_at == datetime(2026, 11, 29, 12, 1, tzinfo=UTC)
    world.now = 120
    found = world.wait(lambda each: not each.is_reading)
    assert found.problem_at == datetime(2026, 11, 29, 12, 1, tzinfo=UTC)  # since when, not when last seen
    world.cloud.listen_again()
    world.now = 180
    assert world.wait(lambda each: not each.problem and not each.is_reading).problem_at is None


def test_a_listing_that_breaks_off_leaves_the_last_snapshot(world: World) -> None:
    for number in range(150):
        world.cloud.put("shop", f"x{number:03}")
    world.wait(is_read)
    answer = world.cloud._server.answer
    world.cloud._server.answer = lambda request: None if "offset=100" in request.path else answer(request)
    world.now = 60
    found = world.wait(lambda each: bool(each.problem))
    assert len(devices_of(found)) == 153


def test_another_user_is_asked_for_if_one_may_not_see_it_any_more(world: World) -> None:
    stranger = User("2", "mallory", world.user.upstream.with_authorization(Fixed(basic("mallory", "x"))))
    world.wait(is_read)
    world.now = 60
    world.snapshots.look(stranger, "shop")  # the caller has not checked, as it has to
    found = world.wait(lambda each: not each.is_reading)
    assert (found.problem, found.at) == ("", datetime(2026, 11, 29, 12, 1, tzinfo=UTC))


def test_an_unknown_application_has_a_problem(world: World) -> None:
    found = world.wait(lambda each: bool(each.problem), "nope")
    assert found.devices is None


def test_a_change_is_shown_at_once(world: World) -> None:
    world.wait(is_read)
    found = world.cloud.object("shop")
    found["spec"]["firmware"]["rollout"] = {"paused": True}
    world.snapshots.put("shop", found)
    overview = world.look().overview
    assert overview
    assert overview.application.policy.paused


def test_devices_of_applications_looked_at_longest_ago_are_given_up() -> None:
    for world in make_world(max_devices=4):
        world.cloud.put("other", spec={})
        for number in range(3):
            world.cloud.put("other", f"other{number}")
        world.wait(is_read)
        world.wait(is_read, "other")
        world.look("other")
        kept = world.snapshots._kept["shop"].snapshot.devices
        assert kept
        assert (kept.entries, kept.totals.devices) == (None, 3)
        assert len(devices_of(world.wait(lambda each: bool(each.devices and each.devices.entries)))) == 3


def test_an_error_of_ours_is_a_problem_and_not_the_end(world: World, monkeypatch: Any) -> None:
    def fail(_: object) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(world.snapshots, "_find_target", fail)
    found = world.wait(lambda each: bool(each.problem))
    assert found.problem == "internal error; the console's log has it"
    monkeypatch.setattr(world.snapshots, "_find_target", lambda application: find_target(application, None))
    world.now = 60
    world.wait(lambda each: not each.problem and not each.is_reading)


def pages_of(world: World, answers: dict[str, Callable[[], object]]) -> None:
    """Give the application 253 devices, and call a function before the page at an offset is answered."""
    for number in range(250):
        world.cloud.put("shop", f"x{number:03}")
    answer = world.cloud._server.answer

    def answer_after(request: Request) -> Response | None:
        for offset, before in answers.items():
            if offset in request.path:
                before()
        return answer(request)

    world.cloud._server.answer = answer_after


def is_paused(snapshot: Snapshot) -> bool:
    return bool(snapshot.overview and snapshot.overview.application.policy.paused)


PAUSED: dict[str, Any] = {"firmware": {"container": {"image": "pump:1.0.0"}, "rollout": {"paused": True}}}


def test_news_of_the_rollout_are_shown_while_a_large_fleet_is_read(world: World) -> None:
    release = threading.Event()

    def halt() -> None:
        world.cloud.put("shop", spec=PAUSED)
        world.now = 6

    pages_of(world, {"offset=100": halt, "offset=200": lambda: release.wait(PATIENCE)})
    found = world.wait(is_paused)
    assert (found.is_reading, found.devices) == (True, None)
    release.set()
    assert len(devices_of(world.wait(is_read))) == 253


def test_a_change_stays_shown_after_a_reading_that_began_before_it(world: World) -> None:
    asked, release = threading.Event(), threading.Event()

    def hang() -> None:
        asked.set()
        release.wait(PATIENCE)

    pages_of(world, {"offset=100": hang})
    world.look()
    assert asked.wait(PATIENCE)
    found = world.cloud.object("shop")
    found["spec"] = PAUSED
    world.cloud.put("shop", spec=PAUSED)
    world.snapshots.put("shop", found)
    assert is_paused(world.look())
    release.set()
    assert is_paused(world.wait(is_read))


def test_devices_of_an_application_that_had_the_name_before_are_not_shown(world: World) -> None:
    world.wait(is_read)
    world.now = 3600
    with world.cloud._lock:
        world.cloud._objects.clear()
        world.cloud._store(("shop",), {"metadata": {"name": "shop", "uid": "another's"}, "spec": {}})
    world.cloud.put("shop", "new")
    stranger = User("2", "bob", world.user.upstream)
    end = time.monotonic() + PATIENCE
    while True:
        found = world.snapshots.look(stranger, "shop")
        assert found.devices is None or devices_of(found) == ["new"]
        assert found.overview is None or not found.overview.application.firmware
        if found.devices:
            break
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_user_who_comes_later_sees_the_last_devices_at_once(world: World) -> None:
    world.wait(is_read)
    release = threading.Event()
    pages_of(world, {"/devices?": lambda: release.wait(PATIENCE)})
    world.now = 3600
    late = User("2", "bob", world.user.upstream)
    world.snapshots.look(late, "shop")
    end = time.monotonic() + PATIENCE
    while not (found := world.snapshots.look(late, "shop")).devices:
        assert time.monotonic() < end
        time.sleep(0.005)
    assert found.is_reading
    assert len(devices_of(found)) == 3
    release.set()


def test_a_fleet_that_is_too_large_is_counted_in_full_and_kept_in_part() -> None:
    for world in make_world(max_devices=2):
        devices = world.wait(is_read).devices
        assert devices
        assert ([entry.row.device for entry in devices.entries or ()], devices.left_out) == (["device0", "device1"], 1)
        assert devices.totals.devices == 3
