"""The resolver caches references for their time to live, and serves stale firmware if the store is unavailable."""

import logging
import math
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

import pytest

from fleet_fn.concurrency.single_flight import SingleFlight
from fleet_fn.deadline import Deadline
from fleet_fn.errors import PermanentError, RateLimitedError, TransientError, UpstreamError
from fleet_fn.firmware.resolver import ImageResolver, Resolver
from fleet_fn.firmware.store import Firmware, Reader
from fleet_fn.oci.reference import Reference, parse_reference
from tests.support.timing import Clock

DIGEST = "sha256:" + "0" * 64


@dataclass
class CountedStore:
    """A store whose tags move at each look-up: the version is its number."""

    error: UpstreamError | None = None
    asked: list[Reference] = field(default_factory=list)
    known: list[str | None] = field(default_factory=list)

    def resolve(self, reference: Reference, deadline: Deadline, known: Firmware | None = None) -> Firmware:
        assert deadline.remaining
        self.asked.append(reference)
        self.known.append(known.version if known else None)
        if self.error:
            raise self.error
        return Firmware(str(len(self.asked)), 1, bytes(32), "artifact", unopened)

    def close(self) -> None:
        raise AssertionError("a resolver closes no store")


def unopened(deadline: Deadline) -> AbstractContextManager[Reader]:
    raise AssertionError(f"it is opened, with {deadline.remaining} s left")


@pytest.fixture
def store() -> CountedStore:
    return CountedStore()


@pytest.fixture
def clock() -> Clock:
    return Clock()


Resolve = Callable[..., str]


def resolving(store: CountedStore, clock: Clock, remember: bool = True) -> Resolve:
    resolver = Resolver(store, SingleFlight(), remember=remember, clock=clock)

    def resolve(reference: str = "pump:1", max_age: float = 30.0, stale_age: float = 0.0, **of: str) -> str:
        parsed = replace(parse_reference(reference, "ghcr.io/acme/"), **of)
        return resolver.resolve(parsed, max_age, Deadline(10), stale_age=stale_age).version

    return resolve


def test_a_tag_is_looked_up_again_when_it_is_older_than_allowed(store: CountedStore, clock: Clock) -> None:
    resolve = resolving(store, clock)
    assert resolve() == "1"
    clock.now += 30
    assert resolve() == "1"
    assert resolve(max_age=29) == "2"
    clock.now += 31
    assert resolve() == "3"


def test_with_no_age_allowed_it_is_looked_up_each_time(store: CountedStore, clock: Clock) -> None:
    resolve = resolving(store, clock)
    for number in "123":
        clock.now += 0.001
        assert resolve(max_age=0) == number


def test_digest_is_looked_up_once_for_any_max_age(store: CountedStore, clock: Clock) -> None:
    resolve = resolving(store, clock)
    for reference in (f"pump@{DIGEST}", f"pump:1@{DIGEST}"):
        first = resolve(reference)
        clock.now += 1e6
        assert resolve(reference, max_age=0) == first
    assert len(store.asked) == 2


def test_each_prefix_and_each_platform_has_its_own(store: CountedStore, clock: Clock) -> None:
    resolve = resolving(store, clock)
    mine, yours = {"prefix": "ghcr.io/mine/"}, {"prefix": "ghcr.io/yours/"}
    assert [resolve(**mine), resolve(**yours), resolve(**mine)] == ["1", "2", "1"]
    assert [resolve(platform="a"), resolve(platform="b"), resolve(platform="a"), resolve()] == ["3", "4", "3", "5"]


def test_no_tag_and_latest_are_the_same(store: CountedStore, clock: Clock) -> None:
    resolve = resolving(store, clock)
    assert resolve("pump") == resolve("pump:latest")


@pytest.mark.parametrize(
    ("error", "age"), [(PermanentError("no tag"), 10.0), (TransientError("no answer in time"), 1.0)]
)
@pytest.mark.parametrize("reference", ["pump:1", f"pump@{DIGEST}"])
def test_failures_are_remembered_for_10_s_and_timeouts_for_1(
    store: CountedStore, clock: Clock, error: UpstreamError, age: float, reference: str
) -> None:
    resolve = resolving(store, clock)
    store.error = error
    for later in (0, age / 2, age / 2):
        clock.now += later
        with pytest.raises(type(error)) as caught:
            resolve(reference, max_age=0)
        assert (type(caught.value), caught.value.reason) == (type(error), error.reason)
    assert len(store.asked) == 1
    store.error = None
    clock.now += 0.01
    assert resolve(reference, max_age=math.inf) == "2"


def test_one_that_is_to_remember_nothing_remembers_nothing(store: CountedStore, clock: Clock) -> None:
    resolve = resolving(store, clock, remember=False)
    assert [resolve(f"pump@{DIGEST}", max_age=math.inf) for _ in range(3)] == ["1", "2", "3"]
    store.error = PermanentError("no tag")
    for _ in range(2):
        with pytest.raises(PermanentError):
            resolve()
    assert len(store.asked) == 5


@pytest.mark.parametrize("size", [0, -1, 2**32])
def test_no_firmware_has_a_size_that_cannot_be_sent(size: int) -> None:
    with pytest.raises(PermanentError, match=r"from 1 to 4294967295 can be sent$"):
        Firmware("1", size, bytes(32), "artifact", unopened)


def test_store_gets_the_firmware_that_the_reference_named_before(store: CountedStore, clock: Clock) -> None:
    resolve = resolving(store, clock)
    for _ in range(3):
        clock.now += 0.001
        resolve(max_age=0)
    assert store.known == [None, "1", "2"]


# --- Away -------------------------------------------------------------------------------------------------------------


def test_with_the_store_away_updates_go_on_for_as_long_as_they_may_and_the_log_says_so_once(
    store: CountedStore, clock: Clock, records: list[logging.LogRecord]
) -> None:
    resolve = resolving(store, clock)
    assert resolve(stale_age=300) == "1"
    store.error = TransientError("registry: connection refused")
    for _ in range(3):
        clock.now += 99.9
        assert resolve(max_age=30, stale_age=300) == "1"
    assert len(records) == 1
    clock.now += 99.9
    with pytest.raises(TransientError, match="connection refused"):
        resolve(max_age=30, stale_age=300)
    store.error = None
    clock.now += 2
    assert resolve(stale_age=300) == "6"
    store.error = TransientError("registry: connection refused")
    clock.now += 31
    assert resolve(stale_age=300) == "6"
    assert len(records) == 2


def test_stale_age_of_0_serves_nothing_stale(store: CountedStore, clock: Clock) -> None:
    resolve = resolving(store, clock)
    resolve()
    store.error = TransientError("registry: no answer in time")
    clock.now += 5
    with pytest.raises(TransientError, match="no answer"):
        resolve(max_age=1, stale_age=0)


def test_a_reference_that_is_known_to_be_gone_is_not_gone_on_with(store: CountedStore, clock: Clock) -> None:
    resolve = resolving(store, clock)
    resolve()
    clock.now += 31
    store.error = PermanentError("no tag 1")
    with pytest.raises(PermanentError, match="no tag 1"):
        resolve(stale_age=300)
    clock.now += 11
    store.error = TransientError("registry: connection refused")
    with pytest.raises(TransientError):
        resolve(stale_age=300)
    clock.now += 2
    store.error = None
    resolve(stale_age=300)
    clock.now += 31
    store.error = TransientError("registry: connection refused")
    assert resolve(stale_age=300) == "4"


class Slow(CountedStore):
    """Does not answer before it may."""

    def __init__(self) -> None:
        super().__init__()
        self.is_asked = threading.Event()
        self.may_answer = threading.Event()
        self.times: list[float] = []

    def resolve(self, reference: Reference, deadline: Deadline, known: Firmware | None = None) -> Firmware:
        self.times.append(deadline.total)
        self.is_asked.set()
        if not self.may_answer.wait(deadline.remaining):
            raise TransientError("registry: no answer in time")
        return super().resolve(reference, deadline, known)


def test_a_store_is_waited_for_only_so_long_that_going_on_is_possible_and_its_answer_counts_when_it_comes(
    clock: Clock,
) -> None:
    store = Slow()
    resolver, reference = Resolver(store, SingleFlight(), clock=clock), parse_reference("pump:1", "ghcr.io/acme/")
    store.may_answer.set()
    resolver.resolve(reference, 0, Deadline(10), stale_age=300)
    store.may_answer.clear()
    clock.now += 100
    deadline = Deadline(2)
    assert resolver.resolve(reference, 0, deadline, stale_age=300).version == "1"
    assert 0.9 < deadline.elapsed < 1.9
    # Whoever needs to know more gets it from the same look-up, with all the time that there is.
    store.may_answer.set()
    assert resolver.resolve(reference, 50, Deadline(5)).version == "2"
    assert store.times == [10, pytest.approx(2)]


def test_who_goes_on_while_others_wait_for_the_store_already_does_not_wait_with_them(clock: Clock) -> None:
    store = Slow()
    resolver, reference = Resolver(store, SingleFlight(clock)), parse_reference("pump:1", "ghcr.io/acme/")
    store.may_answer.set()
    resolver.resolve(reference, 0, Deadline(10), stale_age=300)
    store.may_answer.clear()
    store.is_asked.clear()
    others = threading.Thread(target=lambda: resolver.resolve(reference, 0, Deadline(60), stale_age=300))
    others.start()
    assert store.is_asked.wait(10)
    clock.now += 31
    deadline = Deadline(60)
    assert resolver.resolve(reference, 0, deadline, stale_age=300).version == "1"
    assert deadline.elapsed < 10
    store.may_answer.set()
    others.join(10)
    assert len(store.times) == 2


def test_cache_hits_reset_neither_stale_nor_gone_references(
    store: CountedStore, clock: Clock, records: list[logging.LogRecord]
) -> None:
    resolve = resolving(store, clock)
    resolve()
    store.error = TransientError("registry: connection refused")
    for _ in range(5):
        clock.now += 2
        assert resolve(max_age=0, stale_age=300) == "1"
        assert resolve(max_age=30, stale_age=300) == "1"
    assert len(records) == 1
    store.error = PermanentError("no tag 1")
    clock.now += 2
    with pytest.raises(PermanentError):
        resolve(max_age=0, stale_age=300)
    assert resolve(max_age=300, stale_age=300) == "1"
    store.error = TransientError("registry: connection refused")
    clock.now += 11
    with pytest.raises(TransientError):
        resolve(max_age=0, stale_age=300)


@pytest.mark.parametrize(("after", "age"), [(None, 1.0), (0, 1.0), (5, 5.0), (3600, 10.0)])
def test_a_store_that_is_asked_too_much_is_left_alone_as_long_as_it_wants(
    store: CountedStore, clock: Clock, after: int | None, age: float
) -> None:
    resolve = resolving(store, clock)
    store.error = RateLimitedError("registry: answered 429", after)
    for later in (0, age):
        clock.now += later
        with pytest.raises(RateLimitedError) as caught:
            resolve()
        assert caught.value.retry_after == after
    assert len(store.asked) == 1
    clock.now += 0.01
    with pytest.raises(RateLimitedError):
        resolve()
    assert len(store.asked) == 2


# --- Tags -------------------------------------------------------------------------------------------------------------


class CountedLists(CountedStore):
    """A store with one more tag at each look-up."""

    def tags(self, reference: Reference, deadline: Deadline, *, whole: bool = False) -> list[str]:
        assert deadline.remaining
        assert whole, "a range needs all tags"
        self.asked.append(reference)
        if self.error:
            raise self.error
        return [*(f"1.{number}.0" for number in range(len(self.asked))), "latest", "v1.9.0", "2"]


def listing(store: CountedLists, clock: Clock, hits: list[bool] | None = None) -> Callable[..., list[str]]:
    def count(*, hit: bool) -> None:
        if hits is not None:
            hits.append(hit)

    resolver = ImageResolver(store, SingleFlight(), count=count, clock=clock)

    def versions(reference: str = "pump:1", max_age: float = 30.0, stale_age: float = 0.0, **of: str) -> list[str]:
        parsed = replace(parse_reference(reference, "ghcr.io/acme/"), **of)
        return list(resolver.versions(parsed, max_age, Deadline(10), stale_age=stale_age).tags)

    return versions


def test_tags_that_are_semantic_versions_are_listed_the_highest_first(clock: Clock) -> None:
    versions = listing(CountedLists(), clock)
    assert versions() == ["1.0.0"]
    clock.now += 0.001
    assert versions(max_age=0) == ["1.1.0", "1.0.0"]


def test_a_list_is_remembered_for_each_repository(clock: Clock) -> None:
    store, hits = CountedLists(), list[bool]()
    versions = listing(store, clock, hits)
    for reference, of in (("pump:1", {}), ("pump", {}), (f"pump@{DIGEST}", {}), ("pump:2", {"platform": "linux/arm"})):
        assert versions(reference, **of) == ["1.0.0"]
    assert len(versions("valve:1")) == 2
    assert len(versions("pump:1", prefix="ghcr.io/other/")) == 3
    assert hits == [False, True, True, True, False, False]
    clock.now += 31
    assert len(versions()) == 4
    assert len(store.asked) == 4


def test_a_list_outlives_its_registry_for_as_long_as_a_manifest(clock: Clock, records: list[logging.LogRecord]) -> None:
    store = CountedLists()
    versions = listing(store, clock)
    assert len(versions()) == 1
    store.error = TransientError("registry: connection refused")
    for _ in range(2):
        clock.now += 100
        assert versions(stale_age=300) == ["1.0.0"]
    assert [record.getMessage() for record in records] == ["OCI registry unavailable; serving stale list of tags"]
    with pytest.raises(TransientError, match="refused"):
        versions(max_age=1)
    clock.now += 200
    with pytest.raises(TransientError, match="refused"):
        versions(stale_age=300)


@pytest.mark.parametrize(("error", "age"), [(PermanentError("no list"), 10.0), (TransientError("no answer"), 1.0)])
def test_a_list_that_failed_is_not_asked_for_again_at_once(clock: Clock, error: UpstreamError, age: float) -> None:
    store = CountedLists()
    versions = listing(store, clock)
    store.error = error
    for later in (0, age / 2, age / 2):
        clock.now += later
        with pytest.raises(type(error)):
            versions(max_age=0)
    assert len(store.asked) == 1
