"""What a catalogue remembers of references, and for how long."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fleet_fn.deadline import Deadline
from fleet_fn.errors import Failed, Retry, UpstreamError
from fleet_fn.firmware.catalogue import Catalogue
from fleet_fn.firmware.reference import Reference
from fleet_fn.firmware.store import Firmware, Reader

DIGEST = "sha256:" + "0" * 64


@dataclass
class CountedStore:
    """A store whose tags move at each look-up: the version is its number."""

    error: UpstreamError | None = None
    asked: list[Reference] = field(default_factory=list)

    def resolve(self, reference: Reference, deadline: Deadline) -> Firmware:
        assert deadline.remaining
        self.asked.append(reference)
        if self.error:
            raise self.error
        return Firmware(str(len(self.asked)), 1, bytes(32), Path("/nowhere"))

    def open(self, firmware: Firmware, deadline: Deadline) -> AbstractContextManager[Reader]:
        raise AssertionError(f"{firmware} is opened, with {deadline.remaining} s left")


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def store() -> CountedStore:
    return CountedStore()


@pytest.fixture
def clock() -> Clock:
    return Clock()


Resolve = Callable[..., str]


def resolving(store: CountedStore, clock: Clock, prefix: str = "ghcr.io/acme/", remember: bool = True) -> Resolve:
    catalogue = Catalogue(store, prefix, remember=remember, clock=clock)

    def resolve(reference: str = "pump:1", application: str = "fleet", max_age: float = 30.0) -> str:
        return catalogue.resolve(reference, application, max_age, Deadline(10)).version

    return resolve


@pytest.mark.parametrize(
    ("prefix", "below"),
    [
        ("ghcr.io/acme/", "ghcr.io/acme/"),
        ("ghcr.io/acme", "ghcr.io/acme/"),
        ("ghcr.io/{application}", "ghcr.io/fleet/"),
        ("/srv/firmware", "/srv/firmware/"),
        ("/srv/{application}/x/", "/srv/fleet/x/"),
    ],
)
def test_references_begin_with_the_prefix_which_always_ends_in_a_slash(
    store: CountedStore, clock: Clock, prefix: str, below: str
) -> None:
    resolving(store, clock, prefix)()
    assert store.asked == [Reference(below, "pump", "1", None)]


@pytest.mark.parametrize("reference", ["../x", "-evil/x", "/x", "https://evil.example/x", "X", ""])
def test_an_invalid_reference_fails_before_the_store_is_asked(
    store: CountedStore, clock: Clock, reference: str
) -> None:
    with pytest.raises(Failed, match=r"^invalid reference"):
        resolving(store, clock)(reference)
    assert not store.asked


def test_an_application_that_is_no_path_component_fails_only_where_the_prefix_asks_for_it(
    store: CountedStore, clock: Clock
) -> None:
    with pytest.raises(Failed, match=r"^application name '\.\.' is not one valid path component"):
        resolving(store, clock, "ghcr.io/{application}/")(application="..")
    assert not store.asked
    assert resolving(store, clock)(application="..") == "1"


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


def test_a_digest_is_looked_up_once_whatever_age_is_allowed(store: CountedStore, clock: Clock) -> None:
    resolve = resolving(store, clock)
    for reference in (f"pump@{DIGEST}", f"pump:1@{DIGEST}"):
        first = resolve(reference)
        clock.now += 1e6
        assert resolve(reference, max_age=0) == first
    assert len(store.asked) == 2


def test_each_application_has_its_own_where_the_prefix_names_it(store: CountedStore, clock: Clock) -> None:
    resolve = resolving(store, clock, "ghcr.io/{application}/")
    assert [resolve(application="one"), resolve(application="other"), resolve(application="one")] == ["1", "2", "1"]
    resolve = resolving(store, clock)
    assert resolve(application="one") == resolve(application="other")


def test_no_tag_and_latest_are_the_same(store: CountedStore, clock: Clock) -> None:
    resolve = resolving(store, clock)
    assert resolve("pump") == resolve("pump:latest")


@pytest.mark.parametrize(("error", "age"), [(Failed("no tag"), 10.0), (Retry("no answer in time"), 1.0)])
@pytest.mark.parametrize("reference", ["pump:1", f"pump@{DIGEST}"])
def test_what_failed_is_answered_at_once_for_10_s_and_what_timed_out_for_1(
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
    store.error = Failed("no tag")
    for _ in range(2):
        with pytest.raises(Failed):
            resolve()
    assert len(store.asked) == 5


@pytest.mark.parametrize("size", [0, -1, 2**32])
def test_no_firmware_has_a_size_that_cannot_be_sent(size: int) -> None:
    with pytest.raises(ValueError, match=r"from 1 to 4294967295 can be sent$"):
        Firmware("1", size, bytes(32), Path("/nowhere"))
