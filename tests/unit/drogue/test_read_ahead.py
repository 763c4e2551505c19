"""Devices that are read ahead: when that is worth it, what comes between, and what goes wrong."""

import json
import os
import threading
from collections.abc import Callable, Iterator

import pytest

from fleet_fn.deadline import Deadline
from fleet_fn.drogue import read_ahead
from fleet_fn.drogue.device_registry import DeviceNotFoundError, DeviceRegistry
from fleet_fn.drogue.read_ahead import Background
from fleet_fn.http.authorization import Fixed
from fleet_fn.http.client import HttpClient
from tests.support.drogue import TOKEN, Drogue
from tests.support.http import Answer, Request, Response
from tests.support.timing import Clock

TTL = 1800.0
DEVICES = 250
IN_SYNC = {"firmware": {"current": "1", "target": "1", "conditions": [{"type": "InSync", "status": "True"}]}}


def name_of(number: int) -> str:
    return f"device-{number:05}"


class Later(Background):
    """Runs listings when a test says so; their pauses take the test's time."""

    def __init__(self, clock: Clock) -> None:
        self.works: list[Callable[[], None]] = []
        self._clock = clock
        #: The same for each page.
        self.between: Callable[[], object] = lambda: None

    def begin(self, work: Callable[[], None]) -> None:
        self.works.append(work)

    def pause(self, seconds: float) -> None:
        self._clock.now += seconds
        self.between()


class Fleet:
    """Devices in sync in a cloud, and a registry's client that may read them ahead."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.background = Later(self.clock)
        #: What lists are answered with instead; called before and after.
        self.instead: Callable[[Request], Response | None] = lambda _: None
        self.during: Callable[[], object] = lambda: None
        self.pages: list[str] = []
        self.drogue = Drogue(through=self._through)
        self.drogue.put("fleet", spec={})
        for number in range(DEVICES):
            self.drogue.put("fleet", name_of(number), spec={}, status=IN_SYNC)

    def __enter__(self) -> "Fleet":
        self.drogue.__enter__()
        self.upstream = HttpClient("cloud", self.drogue.url, authorization=Fixed(f"Bearer {TOKEN}"))
        self.registry = DeviceRegistry(self.upstream, clock=self.clock)
        self.registry.remember_in_sync(TTL, self.background)
        return self

    def __exit__(self, *_: object) -> None:
        self.upstream.close()
        self.drogue.__exit__()

    def _through(self, answer: Answer) -> Answer:
        def answer_instead(request: Request) -> Response | None:
            if "/devices?" not in request.path:
                return answer(request)
            self.pages.append(request.path)
            response = self.instead(request) or answer(request)
            self.during()
            return response

        return answer_instead

    def remembers(self, number: int) -> bool:
        """Whether a device needs no read; a miss is counted."""
        return self.registry.remembers_in_sync("fleet", name_of(number), "1", "", TTL)

    def miss(self, times: int = 20, seconds: float = 1.0) -> None:
        """Ask for devices that are not known, one after another."""
        for _ in range(times):
            self.registry.remembers_in_sync("fleet", "unknown", "1", "", TTL)
            self.clock.now += seconds

    def list(self) -> None:
        """Run the listing that has begun."""
        (work,) = self.background.works
        self.background.works.clear()
        work()

    @property
    def has_begun(self) -> bool:
        return bool(self.background.works)


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    with Fleet() as fleet:
        yield fleet


# --- When -------------------------------------------------------------------------------------------------------------


def test_some_misses_begin_a_listing_of_all_devices(fleet: Fleet) -> None:
    fleet.miss(19)
    assert not fleet.has_begun
    fleet.miss(1)
    fleet.list()
    assert len(fleet.pages) == 3
    assert all(map(fleet.remembers, range(DEVICES)))
    assert not fleet.drogue.reads


def test_listed_devices_are_of_use_until_they_are_old(fleet: Fleet) -> None:
    fleet.miss()
    began = fleet.clock.now
    fleet.list()
    fleet.clock.now = began + TTL
    assert fleet.remembers(0)
    fleet.clock.now += 0.1
    assert not fleet.remembers(0)


def test_no_listing_follows_while_the_last_one_is_of_use(fleet: Fleet) -> None:
    fleet.miss()
    fleet.list()
    fleet.miss(1000)
    assert not fleet.has_begun
    fleet.clock.now += TTL
    fleet.miss()
    assert fleet.has_begun


@pytest.mark.parametrize(("seconds", "is_worth_it"), [(45, True), (60, False)])
def test_few_misses_do_not_pay_for_the_pages(fleet: Fleet, seconds: float, is_worth_it: bool) -> None:
    """A listing of three pages has to spare 36 reads within 1800 s: it does if one is missed in 50 s."""
    fleet.miss()
    fleet.list()
    fleet.clock.now += TTL
    fleet.miss(21, seconds)
    assert fleet.has_begun is is_worth_it


def test_a_listing_that_has_begun_is_the_only_one(fleet: Fleet) -> None:
    ended = threading.Event()

    def begin(_: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=ended.wait)
        thread.start()
        begun.append(thread)
        return thread

    begun: list[threading.Thread] = []
    fleet.background.begin = begin  # type: ignore[assignment,method-assign]
    fleet.miss()
    for _ in range(20):
        fleet.registry.remembers_in_sync("another", "unknown", "1", "", TTL)
    assert len(begun) == 1
    ended.set()
    begun[0].join()
    for _ in range(20):
        fleet.registry.remembers_in_sync("another", "unknown", "1", "", TTL)
    assert len(begun) == 2


def test_a_process_that_forked_during_a_listing_can_list(fleet: Fleet) -> None:
    ended = threading.Event()

    def begin(work: Callable[[], None]) -> threading.Thread:
        fleet.background.works.append(work)
        thread = threading.Thread(target=ended.wait, daemon=True)
        thread.start()
        return thread

    fleet.background.begin = begin  # type: ignore[assignment,method-assign]
    fleet.miss()
    fleet.background.works.clear()
    child = os.fork()
    if not child:
        fleet.clock.now += TTL
        fleet.miss()
        os._exit(0 if fleet.has_begun else 1)
    assert os.waitpid(child, 0)[1] == 0
    ended.set()


def test_an_application_too_large_for_the_cache_is_not_listed_again(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_ahead, "_MAX_DEVICES", 150)
    fleet.miss()
    fleet.list()
    assert len(fleet.pages) == 2
    fleet.clock.now += 23 * 3600
    fleet.miss(100)
    assert not fleet.has_begun


def test_applications_share_the_cache(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_ahead, "_MAX_DEVICES", 400)
    fleet.miss()
    fleet.list()
    fleet.drogue.put("another", spec={})
    for number in range(200):
        fleet.drogue.put("another", name_of(number), spec={}, status=IN_SYNC)
    for _ in range(20):
        fleet.registry.remembers_in_sync("another", "unknown", "1", "", TTL)
    fleet.list()
    fleet.clock.now += TTL + 1
    for _ in range(20):
        fleet.registry.remembers_in_sync("another", "unknown", "1", "", TTL)
    assert not fleet.has_begun


def test_names_of_applications_are_not_remembered_without_end(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_ahead, "_MAX_APPLICATIONS", 10)
    for number in range(100):
        fleet.registry.remembers_in_sync(f"hostile-{number}", "unknown", "1", "", TTL)
    ahead = fleet.registry._read_ahead
    assert ahead
    assert len(ahead._applications) == 10


# --- What comes between -----------------------------------------------------------------------------------------------


def test_a_page_is_as_old_as_its_request(fleet: Fleet) -> None:
    def take_long() -> None:
        fleet.clock.now += 10

    fleet.during = take_long
    fleet.miss()
    began = fleet.clock.now
    fleet.list()
    fleet.clock.now = began + TTL + 1
    assert not fleet.remembers(0)


def test_a_device_that_an_event_names_meanwhile_is_read_again(fleet: Fleet) -> None:
    fleet.during = lambda: fleet.registry.forget("fleet", name_of(7))
    fleet.miss()
    fleet.list()
    assert not fleet.remembers(7)
    assert fleet.remembers(8)


def test_what_was_read_meanwhile_stays(fleet: Fleet) -> None:
    def read() -> None:
        fleet.during = lambda: None
        fleet.clock.now += 1
        fleet.drogue.put("fleet", name_of(7), spec={}, status={"firmware": {"current": "2"}})
        fleet.registry.read_desired("fleet", name_of(7), 0, Deadline(5))

    fleet.during = read
    fleet.miss()
    fleet.list()
    known = fleet.registry.peek_reported("fleet", name_of(7))
    assert known
    assert known.current == "2"


def test_a_device_that_is_deleted_meanwhile_hides_one_other(fleet: Fleet) -> None:
    def delete() -> None:
        fleet.background.between = lambda: None
        del fleet.drogue._objects["fleet", name_of(0)]

    fleet.background.between = delete
    fleet.miss()
    fleet.list()
    assert [number for number in range(1, DEVICES) if not fleet.remembers(number)] == [100]


# --- What goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "pause"),
    [
        (Response(403), 3600),
        (Response(404), 3600),
        (Response(200, b"{}"), 3600),
        (Response(200, b"[1"), 3600),
        (Response(200, b"[1]"), 3600),
        (Response(200, b'[{"metadata": {"application": "other", "name": "x"}}]'), 3600),
        (Response(500), 60),
        (Response(429, headers={"Retry-After": "300"}), 300),
    ],
    ids=["403", "404", "no list", "no JSON", "no device", "another's", "500", "429"],
)
def test_a_listing_that_fails_waits(fleet: Fleet, response: Response, pause: float) -> None:
    fleet.instead = lambda _: response
    fleet.miss()
    fleet.list()
    failed = fleet.clock.now
    assert not fleet.remembers(0)
    fleet.miss(20, 0.01)
    fleet.clock.now = failed + pause - 1
    fleet.miss(20, 0.01)
    assert not fleet.has_begun
    fleet.clock.now = failed + pause + 1
    fleet.miss(20, 0.01)
    assert fleet.has_begun


def test_failures_in_a_row_wait_longer_up_to_an_hour(fleet: Fleet) -> None:
    fleet.instead = lambda _: Response(500)
    for pause in (60, 120, 240, 480, 960, 1920, 3600, 3600):
        fleet.miss(20, 0.01)
        fleet.list()
        fleet.clock.now += pause - 1
        fleet.miss(20, 0.01)
        assert not fleet.has_begun
        fleet.clock.now += 1


def test_devices_of_the_pages_before_a_failure_are_known(fleet: Fleet) -> None:
    fleet.instead = lambda request: Response(500) if "offset=200" in request.path else None
    fleet.miss()
    fleet.list()
    assert [fleet.remembers(number) for number in (0, 199, 200)] == [True, True, False]


def test_a_device_found_gone_during_a_listing_is_not_remembered(fleet: Fleet) -> None:
    """Its page was made before."""

    def delete() -> None:
        if len(fleet.pages) == 1:
            fleet.drogue.registry_answers["fleet", name_of(7)] = lambda _: Response(404)
            with pytest.raises(DeviceNotFoundError):
                fleet.registry.read_desired("fleet", name_of(7), TTL, Deadline(10))

    fleet.during = delete
    fleet.miss()
    fleet.list()
    assert not fleet.remembers(7)
    assert fleet.remembers(8)


def test_a_registry_that_lists_slowly_is_left_alone(fleet: Fleet) -> None:
    def take_long() -> None:
        fleet.clock.now += TTL / 4

    fleet.during = take_long
    fleet.miss()
    fleet.list()
    assert len(fleet.pages) == 2
    fleet.miss()
    assert not fleet.has_begun


def test_an_odd_object_hides_no_other(fleet: Fleet) -> None:
    fleet.miss()
    fleet.list()
    fleet.drogue.put("fleet", name_of(7), spec=[], status=IN_SYNC)
    fleet.clock.now += TTL
    fleet.miss()
    fleet.list()
    assert not fleet.remembers(7)
    assert fleet.remembers(8)


def test_pages_too_large_for_the_client_are_halved(fleet: Fleet) -> None:
    def answer(request: Request) -> Response | None:
        return Response(200, bytes(5 * 2**20)) if "limit=100" in request.path else None

    fleet.instead = answer
    fleet.miss()
    fleet.list()
    assert all(map(fleet.remembers, range(DEVICES)))


def test_without_threads_events_go_on(fleet: Fleet) -> None:
    def begin(_: Callable[[], None]) -> None:
        raise RuntimeError("can't start new thread")

    fleet.background.begin = begin  # type: ignore[assignment,method-assign]
    fleet.miss()
    fleet.clock.now += 61
    del fleet.background.begin
    fleet.miss()
    assert fleet.has_begun


def test_by_default_a_listing_has_a_thread(fleet: Fleet) -> None:
    fleet.registry.remember_in_sync(TTL)
    ahead = fleet.registry._read_ahead
    assert ahead
    fleet.miss(20, 0.01)
    assert ahead._thread
    ahead._thread.join(30)
    assert not ahead._thread.is_alive()
    assert all(map(fleet.remembers, range(DEVICES)))
    assert json.dumps(fleet.pages).count("offset") == 3
