"""The tags of a repository that are semantic versions."""

import random
import time

from fleet_fn.firmware.tag_list import MAX_CANDIDATES, TagList
from fleet_fn.version_range import parse_range


def test_only_semantic_versions_are_kept_the_highest_first() -> None:
    tags = ["1.10.0", "latest", "1.9.0", "v3.0.0", "2", "1.10.0-rc.1", "sha256-" + "0" * 64 + ".sig", "01.0.0", "2.0"]
    assert TagList.of(tags).tags == ("1.10.0", "1.10.0-rc.1", "1.9.0")


def test_tags_in_a_range() -> None:
    tags = TagList.of(["1.0.0", "1.2.0", "1.9.0", "2.0.0", "2.0.0-rc.1"])
    assert tags.within(parse_range(">=1.2 <2")) == ("1.9.0", "1.2.0")
    assert tags.within(parse_range(">=2.0.0-0")) == ("2.0.0", "2.0.0-rc.1")
    assert tags.within(parse_range(">=3")) == ()


def test_many_ranges_have_their_own_tags() -> None:
    tags = TagList.of(f"{major}.0.0" for major in range(40))
    for _ in range(2):
        assert [tags.within(parse_range(f"{major}.x")) for major in range(40)] == [
            (f"{major}.0.0",) for major in range(40)
        ]


def test_of_ten_thousand_tags_the_highest_are_found_at_once() -> None:
    numbers = [10**50 + number for number in range(10_000)]
    random.Random(1).shuffle(numbers)
    began = time.perf_counter()
    tags = TagList.of(f"1.0.{number}" for number in numbers)
    found = tags.within(parse_range("*"))
    assert tags.within(parse_range(">=2")) == ()
    assert time.perf_counter() - began < 1
    assert found == tuple(f"1.0.{10**50 + 9_999 - number}" for number in range(MAX_CANDIDATES))
    began = time.perf_counter()
    for _ in range(1000):
        tags.within(parse_range(">=2"))
    assert time.perf_counter() - began < 0.1
