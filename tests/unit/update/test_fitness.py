"""Which firmware fits a device: hardware, requirements and order, checked one by one and as whole journeys."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_fn.deadline import Deadline
from fleet_fn.errors import PermanentError, TransientError
from fleet_fn.firmware.store import Firmware, Reader
from fleet_fn.firmware.tag_list import TagList
from fleet_fn.update.choice import Repository, choose_in_range
from fleet_fn.update.fitness import Fitting, UnfitError, check, choose
from fleet_fn.version_range import Version, parse_range


def unopened(_: Deadline) -> AbstractContextManager[Reader]:
    raise AssertionError("it is opened")


def firmware(version: str, hardware: str = "", requires: str = "", **others: Any) -> Firmware:
    names = tuple(hardware.split(",")) if hardware else ()
    return Firmware(version, 1, bytes(32), "artifact", unopened, hardware=names, requires=requires, **others)


def device(version: str = "1.0.0", hardware: str | None = None, *, refuses: bool = False) -> Fitting:
    return Fitting(version, hardware, refuses_downgrades=refuses)


# --- One firmware -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offered", "to"),
    [
        (firmware("1.1.0"), device()),
        (firmware("1.1.0"), device(hardware="rev-a")),
        (firmware("1.1.0", "rev-a"), device(hardware="rev-a")),
        (firmware("1.1.0", "rev-a,rev-b"), device(hardware="rev-b")),
        (firmware("1.1.0", requires=">=1.0"), device("1.0.0")),
        (firmware("1.1.0", requires=">=1.0.0-rc"), device("1.0.0-rc.2")),
        (firmware("0.9.0"), device("1.0.0")),
        (firmware("blue"), device("red")),
        (firmware("1.0.0"), device("1.0.0", refuses=True)),
        (firmware("1.0.1-rc"), device("1.0.0", refuses=True)),
        (firmware("1.0.0+two"), device("1.0.0+one", refuses=True)),
        (firmware("2.0.0", has_own_version=False), device("1.0.0", refuses=True)),
        (firmware("2.0.0", has_own_version=False), Fitting("1.0.0", trusts_no_tag=True)),
    ],
)
def test_a_firmware_that_fits(offered: Firmware, to: Fitting) -> None:
    check(offered, to)


@pytest.mark.parametrize(
    ("offered", "to", "reason", "message"),
    [
        (
            firmware("1.1.0", "rev-a,rev-b"),
            device(hardware="rev-c"),
            "hardware",
            "1.1.0 is built for rev-a or rev-b, and the device's hardware is rev-c",
        ),
        (
            firmware("1.1.0", "rev-a"),
            device(),
            "hardware",
            "1.1.0 is built for rev-a, and the device's hardware is unknown (spec.firmware.hardware is not set)",
        ),
        (firmware("1.1.0", "rev-a"), device(hardware="REV-A"), "hardware", "1.1.0 is built for rev-a, and the"),
        (firmware("1.1.0", "rev-a", ">=1.5"), device(hardware="rev-b"), "hardware", "1.1.0 is built for rev-a, and"),
        (
            firmware("1.6.0", requires=">=1.5"),
            device("1.4.0"),
            "requires",
            "1.6.0 requires >=1.5, and the device runs 1.4.0",
        ),
        (firmware("1.6.0", requires=">=1.5"), device("1.6.0-rc.1"), "requires", "1.6.0 requires >=1.5, and"),
        (firmware("0.6.0", requires=">=1.5"), device("1.4.0", refuses=True), "requires", "0.6.0 requires >=1.5, and"),
        (
            firmware("1.0.0"),
            device("1.1.0", refuses=True),
            "downgrade",
            "1.0.0 is below 1.1.0, which the device runs, and downgrades is refuse",
        ),
        (firmware("1.1.0-rc.9"), device("1.1.0", refuses=True), "downgrade", "1.1.0-rc.9 is below 1.1.0"),
        (firmware("1.9.0"), device("1.10.0", refuses=True), "downgrade", "1.9.0 is below 1.10.0"),
    ],
)
def test_a_firmware_that_does_not_fit(offered: Firmware, to: Fitting, reason: str, message: str) -> None:
    with pytest.raises(UnfitError) as caught:
        check(offered, to)
    assert caught.value.reason == reason
    assert caught.value.message.startswith(message)


@pytest.mark.parametrize(
    ("offered", "to", "reason"),
    [
        (
            firmware("1.6.0", requires=">=1.5"),
            device("blue"),
            "1.6.0 requires >=1.5, but the device's version is no semantic version: blue",
        ),
        (
            firmware("1.6.0", requires="new"),
            device(),
            '1.6.0: annotation io.drogue.firmware.requires contains "new", which is no condition',
        ),
        (
            firmware("blue"),
            device("1.0.0", refuses=True),
            "downgrades is refuse, but the firmware's version is no semantic version: blue",
        ),
        (
            firmware("1.0.0"),
            device("v0.9", refuses=True),
            "downgrades is refuse, but the device's version is no semantic version: v0.9",
        ),
        (
            firmware("2.0.0", has_own_version=False),
            Fitting("1.0.0", refuses_downgrades=True, trusts_no_tag=True),
            "downgrades is refuse, but only its tag gives 2.0.0 a version, and no signature covers a tag",
        ),
    ],
)
def test_what_cannot_be_told_is_an_error_and_no_guess(offered: Firmware, to: Fitting, reason: str) -> None:
    with pytest.raises(PermanentError) as caught:
        check(offered, to)
    assert not isinstance(caught.value, UnfitError)
    assert caught.value.reason.startswith(reason)


# --- The highest of several -------------------------------------------------------------------------------------------

_MIXED: Final = [firmware("1.9.0", "rev-a"), firmware("1.8.0", requires=">=1.5"), firmware("1.5.0"), firmware("1.2.0")]


@pytest.mark.parametrize(
    ("to", "version"),
    [
        (device("1.5.0", "rev-a"), "1.9.0"),
        (device("1.5.0", "rev-b"), "1.8.0"),
        (device("1.6.0"), "1.8.0"),
        (device("1.0.0"), "1.5.0"),
        (device("1.4.9", "rev-b"), "1.5.0"),
        (device("1.9.0"), "1.9.0"),  # it runs it already, whatever it is built for
        (device("1.8.0"), "1.8.0"),
        (device("2.0.0", "rev-a"), "1.9.0"),  # nothing is skipped, so it is a downgrade like any other
    ],
)
def test_the_highest_that_fits_is_chosen(to: Fitting, version: str) -> None:
    assert choose(_MIXED, to, "1.x").version == version


def test_none_below_the_devices_takes_the_place_of_one_that_does_not_fit() -> None:
    with pytest.raises(UnfitError) as caught:
        choose(_MIXED, device("1.8.1", "rev-b"), "1.x")
    assert caught.value.reason == "hardware"
    assert caught.value.message == (
        "1.9.0 is built for rev-a, and the device's hardware is rev-b; the next lower, 1.8.0, is below 1.8.1"
    )
    with pytest.raises(UnfitError) as caught:
        choose([firmware("3.0.0", requires="2.x"), firmware("1.0.0")], device("1.5.0"), ">=1")
    assert caught.value.reason == "requires"
    assert caught.value.message.endswith("the next lower, 1.0.0, is below 1.5.0")


def test_without_any_that_fits_the_highest_is_named() -> None:
    with pytest.raises(UnfitError) as caught:
        choose([firmware("1.9.0", "rev-a"), firmware("1.8.0", requires=">=1.5")], device("1.0.0"), "1.x")
    assert (caught.value.reason, caught.value.message) == (
        "hardware",
        "1.9.0 is built for rev-a, and the device's hardware is unknown (spec.firmware.hardware is not set); "
        "no other version in 1.x may be sent",
    )
    with pytest.raises(PermanentError, match=r"^no tag is a semantic version in >=5$"):
        choose([], device(), ">=5")


def test_the_place_of_another_order_among_versions_is_not_guessed() -> None:
    assert choose([firmware("1.9.0")], device("factory"), "1.x").version == "1.9.0"
    for highest in (firmware("1.9.0", requires=">=1"), firmware("1.9.0", "rev-a")):
        with pytest.raises(PermanentError, match="the device's version is no semantic version: factory"):
            choose([highest, firmware("1.8.0")], device("factory"), "1.x")


def test_no_more_candidates_are_looked_at_than_are_needed() -> None:
    def candidates() -> Iterator[Firmware]:
        yield firmware("1.9.0", "rev-a")
        yield firmware("1.8.0")
        raise AssertionError("it looks further")

    assert choose(candidates(), device("1.7.0"), "1.x").version == "1.8.0"


# --- Properties -------------------------------------------------------------------------------------------------------

_VERSIONS: Final = [f"{a}.{b}.{c}{suffix}" for a in (0, 1, 2) for b in (0, 1) for c in (0, 1) for suffix in ("-rc", "")]
_hardware = st.sampled_from(["", "", "a", "b", "a,b"])
_requires = st.sampled_from(["", "", ">=1", "<1", "^1.0.1", ">=1.1 <2", ">=2", "*", ">=1.0.0-0", "1.1.0 || 2.x"])
_candidates = st.dictionaries(st.sampled_from(_VERSIONS), st.tuples(_hardware, _requires), min_size=1)
_devices = st.builds(Fitting, st.sampled_from(_VERSIONS), st.sampled_from([None, "a", "b", "c"]), st.booleans())


def place(version: str) -> int:
    return _VERSIONS.index(version)


def read(version: str) -> Version:
    found = Version.read(version)
    assert found
    return found


def fits(candidate: Firmware, to: Fitting) -> bool:
    is_hardware = not candidate.hardware or to.hardware in candidate.hardware
    return is_hardware and (not candidate.requires or read(to.version) in parse_range(candidate.requires))


@given(_candidates, _devices)
def test_a_choice_keeps_all_rules(published: dict[str, tuple[str, str]], to: Fitting) -> None:
    highest_first = sorted((firmware(version, *told) for version, told in published.items()), key=_place, reverse=True)
    takeable = [each for each in highest_first if each.version == to.version or fits(each, to)]
    try:
        chosen = choose(highest_first, to, "*")
        if chosen.version != to.version:
            check(chosen, to)
    except UnfitError as error:
        best = takeable[0] if takeable else None
        skipped = best is None or highest_first[0] is not best
        is_below = best is None or place(best.version) < place(to.version)
        assert is_below
        assert skipped or to.refuses_downgrades
        assert error.message
        return
    assert chosen is takeable[0]
    if to.refuses_downgrades or chosen is not highest_first[0]:
        assert place(chosen.version) >= place(to.version)


def _place(candidate: Firmware) -> int:
    return place(candidate.version)


class World:
    """A repository of firmwares as a function sees it, with tags of other software."""

    def __init__(self, firmwares: Sequence[Firmware]) -> None:
        self.firmwares = {each.version: each for each in firmwares}
        self.looked_at: list[str] = []

    def update(self, to: Fitting, wanted: str = "*") -> str:
        """Return the version that a device gets next."""
        repository = Repository(
            lambda _: TagList.of([*self.firmwares, "latest", "v9", "sha256-" + "0" * 64]),
            lambda tag, _: self._firmware(tag),
        )
        choice = choose_in_range(repository, parse_range(wanted), to, lambda: 30.0, 30.0)
        if choice.firmware.version != to.version:
            check(choice.firmware, to)
        return choice.firmware.version

    def _firmware(self, tag: str) -> Firmware:
        self.looked_at.append(tag)
        return self.firmwares[tag]


_stops = st.lists(st.integers(0, 59), unique=True, max_size=8).map(sorted)


@given(_stops, st.integers(0, 59), st.sampled_from(["refuse", "allow"]))
def test_a_device_is_led_through_each_version_that_it_must_pass(stops: list[int], start: int, downgrades: str) -> None:
    """Each release requires the last one before it that all have to pass."""
    releases = []
    for number in range(60):
        passed = [stop for stop in stops if stop < number]
        releases.append(firmware(f"1.{number}.0", requires=f">=1.{passed[-1]}" if passed else ""))
    world, current, course = World(releases), f"1.{start}.0", []
    while (following := world.update(device(current, refuses=downgrades == "refuse"))) != current:
        assert read(following) > read(current)
        assert not releases[int(following.split(".")[1])].requires or read(current) in parse_range(
            releases[int(following.split(".")[1])].requires
        )
        course.append(int(following.split(".")[1]))
        current = following
    assert current == "1.59.0"
    assert course == [stop for stop in stops if start < stop < 59] + [59] * (start != 59)


@given(_candidates, _devices)
def test_a_device_that_follows_a_range_never_runs_in_circles(
    published: dict[str, tuple[str, str]], to: Fitting
) -> None:
    world, seen = World([firmware(version, *told) for version, told in published.items()]), [to.version]
    try:
        while (following := world.update(to._replace(version=seen[-1]))) != seen[-1]:
            assert following not in seen
            seen.append(following)
            assert len(world.firmwares[following].hardware) == 0 or to.hardware in world.firmwares[following].hardware
    except PermanentError:
        pass
    assert [place(version) for version in seen[1:]] == sorted(place(version) for version in seen[1:])


# --- Choosing in a repository -----------------------------------------------------------------------------------------


class Moving:
    """A repository whose tags and lists change while they are read."""

    def __init__(self, *lists: list[str], versions: dict[str, list[Firmware]]) -> None:
        self.lists, self.found = list(lists), versions
        self.ages: list[float] = []

    def versions(self, age: float) -> TagList:
        self.ages.append(age)
        return TagList.of(self.lists.pop(0) if len(self.lists) > 1 else self.lists[0])

    def firmware(self, tag: str, age: float) -> Firmware:
        self.ages.append(age)
        found = self.found.get(tag)
        if not found:
            raise PermanentError(f"no tag {tag}")
        return found.pop(0) if len(found) > 1 else found[0]

    def choose(self, to: Fitting, max_age: float = 30.0) -> str:
        repository = Repository(self.versions, self.firmware)
        return choose_in_range(repository, parse_range("1.x"), to, lambda: max_age, 30.0).firmware.version


def test_only_what_is_taken_is_read_afresh() -> None:
    moving = Moving(["1.1.0", "1.0.1"], versions={"1.1.0": [firmware("1.1.0", "a")], "1.0.1": [firmware("1.0.1")]})
    assert moving.choose(device(), max_age=1.0) == "1.0.1"
    assert moving.ages == [1.0, 30.0, 30.0, 1.0]
    moving.ages.clear()
    assert moving.choose(device()) == "1.0.1"
    assert moving.ages == [30.0, 30.0, 30.0]


def test_a_tag_that_has_moved_since_it_was_glanced_at_is_chosen_anew() -> None:
    moving = Moving(
        ["1.1.0", "1.0.1"],
        versions={"1.1.0": [firmware("1.1.0"), firmware("1.1.0", "a")], "1.0.1": [firmware("1.0.1")]},
    )
    assert moving.choose(device(), max_age=1.0) == "1.0.1"


def test_tags_that_keep_moving_are_no_endless_loop() -> None:
    endless = [firmware("1.1.0", authors=str(number), manifest=str(number)) for number in range(100)]
    with pytest.raises(TransientError, match=r"the tags in 1\.x keep moving"):
        Moving(["1.1.0"], versions={"1.1.0": endless}).choose(device(), max_age=1.0)


def test_a_tag_that_is_gone_since_it_was_listed_is_passed_over() -> None:
    moving = Moving(["1.1.0", "1.0.1"], ["1.0.1"], versions={"1.0.1": [firmware("1.0.1")]})
    assert moving.choose(device()) == "1.0.1"
    assert moving.ages[:3] == [30.0, 30.0, 10.0]
    with pytest.raises(PermanentError, match=r"no tag 1\.1\.0"):
        Moving(["1.1.0", "1.0.1"], versions={"1.0.1": [firmware("1.0.1")]}).choose(device())


def test_a_firmware_of_another_version_than_its_tag_is_refused() -> None:
    moving = Moving(["1.1.0"], versions={"1.1.0": [firmware("0.9.0")]})
    with pytest.raises(PermanentError, match=r"^tag 1\.1\.0 names a firmware of version 0\.9\.0: to choose in a range"):
        moving.choose(device())


def test_with_signatures_a_tag_gives_no_version() -> None:
    moving = Moving(["1.1.0"], versions={"1.1.0": [firmware("1.1.0", has_own_version=False)]})
    assert moving.choose(device()) == "1.1.0"
    with pytest.raises(PermanentError, match=r"only its tag gives 1\.1\.0 a version, and no signature covers a tag"):
        moving.choose(Fitting("1.0.0", trusts_no_tag=True))
