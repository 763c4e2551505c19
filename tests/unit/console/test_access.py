"""Who may see which application: Drogue Cloud's answer holds for a while, and an outage for a while longer."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest

from fleet_fn.console.access import MAX_WAITING, Access
from fleet_fn.console.users import User
from fleet_fn.errors import PermanentError, TransientError
from fleet_fn.http.authorization import Fixed, basic
from fleet_fn.http.client import HttpClient
from tests.support.drogue import TOKEN, USER, Drogue


@dataclass
class World:
    cloud: Drogue
    access: Access
    user: User
    now: float = field(default=0.0)

    @property
    def asked(self) -> int:
        return self.cloud.reads_of("shop")


@pytest.fixture
def world() -> Iterator[World]:
    with Drogue() as cloud:
        cloud.put("shop")
        cloud.put("other")
        client = HttpClient("device registry", cloud.url, authorization=Fixed(basic(USER, TOKEN)))
        found = World(cloud, Access(lambda: found.now), User("1", "alice", client))
        yield found
        client.close()


def test_an_answer_holds_for_a_while(world: World) -> None:
    world.access.check(world.user, "shop")
    world.now = 29
    world.access.check(world.user, "shop")
    assert world.asked == 1
    world.now = 31
    world.access.check(world.user, "shop")
    assert world.asked == 2


def test_a_user_who_is_no_member_any_more_is_locked_out(world: World) -> None:
    world.access.check(world.user, "shop")
    world.cloud.roles["shop"] = None
    world.now = 31
    with pytest.raises(PermanentError):
        world.access.check(world.user, "shop")
    world.now = 32
    with pytest.raises(PermanentError):
        world.access.check(world.user, "shop")


def test_what_one_user_may_see_says_nothing_about_another(world: World) -> None:
    world.access.check(world.user, "shop")
    stranger = User("2", "mallory", world.user.upstream.with_authorization(Fixed(basic("mallory", "x"))))
    with pytest.raises(PermanentError):
        world.access.check(stranger, "shop")


def test_an_outage_locks_nobody_out_at_once(world: World) -> None:
    world.access.check(world.user, "shop")
    world.cloud.stop_listening()
    world.user.upstream.close()
    world.now = 60
    world.access.check(world.user, "shop")
    with pytest.raises(TransientError):
        world.access.check(world.user, "other")
    world.now = 16 * 60
    with pytest.raises(TransientError):
        world.access.check(world.user, "shop")
    world.cloud.listen_again()


def test_the_list_has_what_the_user_may_see(world: World) -> None:
    assert world.access.applications(world.user).names == ("other", "shop")
    world.access.check(world.user, "shop")
    assert world.asked == 0  # the list told
    world.cloud.roles["shop"] = None
    world.now = 31
    assert world.access.applications(world.user).names == ("other",)


def test_in_an_outage_the_list_is_the_last_one_with_the_reason(world: World) -> None:
    world.access.applications(world.user)
    world.cloud.stop_listening()
    world.user.upstream.close()
    world.now = 60
    found = world.access.applications(world.user)
    assert found.names == ("other", "shop")
    assert "device registry" in found.problem
    world.cloud.listen_again()


def test_pages_do_not_queue_up_behind_a_cloud_that_fails(world: World) -> None:
    asked = 0

    def fail(_: object) -> None:
        nonlocal asked
        asked += 1

    world.cloud.registry_answers[("shop",)] = fail
    for _ in range(5):
        with pytest.raises(TransientError):
            world.access.check(world.user, "shop")
    assert asked <= 2  # a GET on a connection that broke is sent once more


def test_a_cloud_that_hangs_leaves_threads_for_others(world: World) -> None:
    release, asked = threading.Event(), threading.Semaphore(0)

    def hang(_: object) -> None:
        asked.release()
        release.wait(20)

    world.access.check(world.user, "other")
    world.cloud.registry_answers[("shop",)] = hang
    users = [User(f"user{number}", "bob", world.user.upstream) for number in range(MAX_WAITING)]
    with ThreadPoolExecutor(MAX_WAITING) as pool:
        try:
            waiting = [pool.submit(world.access.check, user, "shop") for user in users]
            for _ in users:
                assert asked.acquire(timeout=20)
            world.now = 60
            world.access.check(world.user, "other")  # admitted a minute ago
            with pytest.raises(TransientError, match="too many pages wait"):
                world.access.check(world.user, "shop")
        finally:
            release.set()
    assert len(waiting) == MAX_WAITING
    del world.cloud.registry_answers[("shop",)]
    world.access.check(world.user, "shop")
