"""One look-up of many keys, and all that may happen to some of them meanwhile."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fleet_fn.concurrency.ttl_cache import TTLCache
from fleet_fn.deadline import Deadline
from tests.support.timing import Clock

KEYS = ("a", "b", "c")


@dataclass(frozen=True)
class Step:
    """Something that happens; the upstream answers a look-up between its `before` and its `after`."""

    kind: str
    key: str = "a"
    before: Sequence["Step"] = ()
    after: Sequence["Step"] = ()


@dataclass
class World:
    """An upstream whose values are numbers that grow, a cache of them, and the time, which passes with each step."""

    clock: Clock = field(default_factory=Clock)
    upstream: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KEYS, 0))
    #: Times of changes.
    changes: dict[str, list[float]] = field(default_factory=lambda: {key: [] for key in KEYS})
    #: The least value that the cache may have.
    known: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KEYS, 0))
    #: When the look-ups of the last values began.
    since: dict[str, float] = field(default_factory=lambda: dict.fromkeys(KEYS, 0.0))
    #: Keys that are being looked up one by one: a thread cannot do so twice.
    busy: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.cache: TTLCache[str, int] = TTLCache(10, clock=self.clock)

    def run(self, steps: Sequence[Step]) -> None:
        for step in steps:
            self.clock.now += 1
            getattr(self, f"_{step.kind}")(step)
            self.check()

    def check(self) -> None:
        for key in KEYS:
            value = self.cache.peek(key)
            if value is None:
                continue
            assert value >= self.known[key], "what the process knew is forgotten"
            youngest = next(age for age in range(int(self.clock.now)) if self.cache.peek(key, age) is not None)
            since = self.clock.now - youngest
            assert since >= self.since[key], "an older look-up took the place of a newer one"
            self.since[key] = since
            assert value >= sum(time < since for time in self.changes[key]), "the value is older than it claims"

    def _change(self, step: Step) -> None:
        self.upstream[step.key] += 1
        self.changes[step.key].append(self.clock.now)

    def _hear(self, step: Step) -> None:
        """An event names the key."""
        self.cache.invalidate(step.key)
        self.known[step.key] = self.upstream[step.key]

    def _write(self, step: Step) -> None:
        self._change(step)
        self.cache.replace(step.key, self.upstream[step.key])
        self.known[step.key] = self.upstream[step.key]

    def _read(self, step: Step) -> None:
        if step.key in self.busy:
            return

        def look_up() -> int:
            self.run(step.before)
            value = self.upstream[step.key]
            self.run(step.after)
            return value

        self.busy.add(step.key)
        self.cache.get(step.key, 0, look_up, Deadline(5))
        self.busy.discard(step.key)

    def _page(self, step: Step) -> None:
        with self.cache.look_up_many() as keep:
            self.run(step.before)
            page = dict(self.upstream)
            self.run(step.after)
            for key, value in page.items():
                keep(key, value)


def steps(inner: st.SearchStrategy[list[Step]]) -> st.SearchStrategy[list[Step]]:
    kinds = st.sampled_from(("change", "hear", "write", "read", "page"))
    return st.lists(st.builds(Step, kinds, st.sampled_from(KEYS), inner, inner), max_size=4)


@given(st.recursive(st.just([]), steps, max_leaves=12))
@example([Step("page", before=[Step("read")])])
@example([Step("page", after=[Step("write")])])
@example([Step("read"), Step("page", after=[Step("write")])])
@example([Step("page", after=[Step("change"), Step("hear")])])
@example([Step("page", after=[Step("change"), Step("read")])])
@example([Step("read", before=[Step("page")])])
@example([Step("read", after=[Step("change"), Step("page")])])
@example([Step("read"), Step("read", after=[Step("write")])])
@example([Step("page", after=[Step("page", after=[Step("write")])])])
def test_no_page_takes_the_place_of_what_is_newer(course: list[Step]) -> None:
    World().run(course)


def test_a_page_is_as_old_as_its_request() -> None:
    world = World()
    with world.cache.look_up_many() as keep:
        world.clock.now += 7
        keep("a", 1)
    assert world.cache.peek("a", 7) == 1
    assert world.cache.peek("a", 6) is None


def test_a_page_makes_an_old_value_new() -> None:
    world = World()
    world.run([Step("read"), Step("change"), Step("page")])
    assert world.cache.peek("a", 1) == 1


@pytest.mark.parametrize("end", [lambda: None, lambda: (_ for _ in ()).throw(ValueError)])
def test_changes_are_noted_only_while_a_page_is_looked_up(end: Callable[[], object]) -> None:
    world = World()
    try:
        with world.cache.look_up_many():
            end()
    except ValueError:
        pass
    assert not world.cache._changed


def test_a_cache_that_keeps_nothing_keeps_no_page() -> None:
    cache: TTLCache[str, int] = TTLCache(0)
    with cache.look_up_many() as keep:
        keep("a", 1)
    assert cache.peek("a") is None
