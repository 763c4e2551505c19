"""Who may be updated when: what is read of a policy, who is drawn, and when a window is open."""

import math
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import pairwise
from random import Random
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fleet_fn.drogue.spec_policy import NONE, Policy, Window, read_policy
from fleet_fn.drogue.spec_values import MalformedSpecError
from fleet_fn.update.policy import Candidate, Hold, draw, hold_start, hold_swap
from fleet_fn.update.window import opens_in

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)  # a Monday
MINUTE = timedelta(minutes=1)
EVERY_DAY = frozenset(range(7))


def rollout(**keys: Any) -> Policy:
    return read_policy({"rollout": keys})


def window(start: str, end: str, timezone: str = "UTC", days: list[str] | None = None) -> Window:
    read = rollout(window={"from": start, "to": end, "timezone": timezone, "days": days}).window
    assert read
    return read


def told(section: Mapping[str, Any]) -> str:
    """The one line about a section that is not accepted."""
    with pytest.raises(MalformedSpecError) as caught:
        read_policy(section)
    line = str(caught.value)
    assert line.isprintable()
    assert len(line) < 400
    return line


def is_in(policy: Policy, uid: str, version: str = "1.0.0") -> bool:
    return hold_start(policy, Candidate(uid, {}), version, NOW) is None


def uids(seed: int, count: int) -> list[str]:
    random = Random(seed)
    return [str(UUID(int=random.getrandbits(128), version=4)) for _ in range(count)]


# --- What a section says ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("section", [{}, {"container": {"image": "firmware:1"}}, {"file": {"name": "x"}, "percnt": 5}])
def test_a_section_without_policy_says_nothing(section: dict[str, Any]) -> None:
    assert read_policy(section) is NONE


@pytest.mark.parametrize(
    "section",
    [
        {"rollout": None, "maxAttempts": None, "retry": None},
        {"rollout": {}},
        {"rollout": {"paused": None, "percent": None, "salt": None, "labels": None, "window": None}},
    ],
)
def test_null_is_not_said(section: dict[str, Any]) -> None:
    assert read_policy(section) == NONE


def test_a_section_with_every_key_is_read() -> None:
    said = {
        "container": {"image": "firmware:2"},
        "rollout": {
            "paused": True,
            "percent": 0.5,
            "salt": "canaries",
            "labels": {"ring": "canary", "site": "oslo"},
            "window": {"from": "22:00", "to": "04:30", "timezone": "Europe/Oslo", "days": ["Sat", "SUN", "sat"]},
            "midway": "restart",
        },
        "maxAttempts": 3,
        "retry": "after the hardware was fixed",
        "mtu": 2016,
    }
    assert read_policy(said) == Policy(
        paused=True,
        percent=0.5,
        salt="canaries",
        labels={"ring": "canary", "site": "oslo"},
        window=Window(22 * 60, 4 * 60 + 30, ZoneInfo("Europe/Oslo"), frozenset({5, 6})),
        max_attempts=3,
        retry="after the hardware was fixed",
        mtu=2016,
        midway="restart",
    )


@pytest.mark.parametrize(
    ("key", "value", "policy"),
    [
        ("paused", False, Policy(paused=False)),
        ("percent", 0, Policy(percent=0.0)),
        ("percent", 100, Policy(percent=100.0)),
        ("percent", 1e-9, Policy(percent=1e-9)),
        ("salt", "", Policy(salt="")),
        ("labels", {}, Policy(labels={})),
        ("labels", {"": ""}, Policy(labels={"": ""})),
        ("midway", "finish", Policy(midway="finish")),
        ("midway", "restart", Policy(midway="restart")),
    ],
)
def test_a_key_says_what_stands_there(key: str, value: object, policy: Policy) -> None:
    assert rollout(**{key: value}) == policy


@pytest.mark.parametrize(
    ("key", "value"),
    [("maxAttempts", 1), ("maxAttempts", 10**30), ("retry", ""), ("mtu", 1), ("mtu", 2**32 - 1)],
)
def test_a_key_beside_rollout_says_what_stands_there(key: str, value: object) -> None:
    policy = read_policy({key: value})
    assert {"maxAttempts": policy.max_attempts, "retry": policy.retry, "mtu": policy.mtu}[key] == value


def test_a_window_is_daily_and_in_utc_where_nothing_else_is_said() -> None:
    assert rollout(window={"from": "01:00", "to": "05:00"}).window == Window(60, 300, UTC, EVERY_DAY)


@pytest.mark.parametrize(
    ("start", "end", "minutes"),
    [
        ("00:00", "24:00", (0, 1440)),
        ("00:00", "00:01", (0, 1)),
        ("23:59", "24:00", (1439, 1440)),
        ("22:00", "00:00", (1320, 1440)),
        ("09:59", "09:58", (599, 598)),
    ],
)
def test_a_window_is_given_in_hours_and_minutes(start: str, end: str, minutes: tuple[int, int]) -> None:
    read = window(start, end)
    assert (read.start, read.end) == minutes


def test_numbers_of_days_begin_on_monday() -> None:
    days = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
    assert [window("00:00", "24:00", days=[day]).days for day in days] == [frozenset({n}) for n in range(7)]


# --- What cannot be understood ----------------------------------------------------------------------------------------

BYTES = "it must be a whole number of bytes from 1 to 4294967295"
NUMBER = "it must be a number from 0 to 100"
KEYS = "it must be a map with paused, percent, stages, maxFailed, salt, labels, window and midway"
ONLY = "it may contain paused, percent, stages, maxFailed, salt, labels, window and midway"
FEW = "it must be a whole number from 1 to 1000"
STAGES = "it must be a list of 1 to 100 maps with percent, approval, after, success and over"
TIME = "it must be a number and a unit, such as 24h; the units are s, m, h and d"
WINDOW_KEYS = "it must be a map with from, to, timezone and days"
DAYS = "mon, tue, wed, thu, fri, sat and sun"
QUOTES = 'it must be "HH:MM" in quotes'
HINT = f"{QUOTES}: YAML makes a number of 22:00 without quotes"
ZONE = "it must be the IANA name of a time zone, such as Europe/Oslo"

MALFORMED = [
    ({"rollout": []}, f"rollout is an empty list; {KEYS}"),
    ({"rollout": True}, f"rollout is true; {KEYS}"),
    ({"rollout": "paused"}, f'rollout is "paused"; {KEYS}'),
    ({"rollout": {"precent": 5}}, f"rollout contains precent (did you mean percent?); {ONLY}"),
    ({"rollout": {"precent": None}}, f"rollout contains precent (did you mean percent?); {ONLY}"),
    (
        {"rollout": {"Paused": True, "percent": 5, "max_failed": 1, "else": 1}},
        f"rollout contains Paused (did you mean paused?), max_failed (did you mean maxFailed?), else; {ONLY}",
    ),
    (
        {"rollout": {"a\nb\x1b[0m": 5}},
        f"rollout contains a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}[0m; {ONLY}",
    ),
    (
        {"rollout": {"stages": [{"percent": 1}], "percent": 1}},
        "rollout.stages is set beside percent; only one of them may be set",
    ),
    ({"rollout": {"x" * 5000: 5}}, f"rollout contains {'x' * 100}…; {ONLY}"),
    ({"maxAttempts": 0}, "maxAttempts is 0; it must be a whole number above 0"),
    ({"maxAttempts": -1}, "maxAttempts is -1; it must be a whole number above 0"),
    ({"maxAttempts": True}, "maxAttempts is true; it must be a whole number above 0"),
    ({"maxAttempts": 3.0}, "maxAttempts is 3.0; it must be a whole number above 0"),
    ({"maxAttempts": "3"}, 'maxAttempts is "3"; it must be a whole number above 0'),
    ({"maxAttempts": -(10**200)}, f"maxAttempts is -1{'0' * 98}…; it must be a whole number above 0"),
    ({"retry": 2}, "retry is 2; it must be a text"),
    ({"retry": ["again"]}, "retry is a list; it must be a text"),
    ({"retry": False}, "retry is false; it must be a text"),
    ({"mtu": 0}, f"mtu is 0; {BYTES}"),
    ({"mtu": -32}, f"mtu is -32; {BYTES}"),
    ({"mtu": 2**32}, f"mtu is 4294967296; {BYTES}"),
    ({"mtu": True}, f"mtu is true; {BYTES}"),
    ({"mtu": 2016.0}, f"mtu is 2016.0; {BYTES}"),
    ({"mtu": "2016"}, f'mtu is "2016"; {BYTES}'),
]
MALFORMED_ROLLOUTS = [
    ({"paused": "true"}, 'paused is "true"; it must be true or false'),
    ({"paused": 1}, "paused is 1; it must be true or false"),
    ({"paused": 0}, "paused is 0; it must be true or false"),
    ({"percent": -0.1}, f"percent is -0.1; {NUMBER}"),
    ({"percent": 100.1}, f"percent is 100.1; {NUMBER}"),
    ({"percent": 101}, f"percent is 101; {NUMBER}"),
    ({"percent": 10**400}, f"percent is 1{'0' * 99}…; {NUMBER}"),
    ({"percent": math.nan}, f"percent is NaN; {NUMBER}"),
    ({"percent": True}, f"percent is true; {NUMBER}"),
    ({"percent": False}, f"percent is false; {NUMBER}"),
    ({"percent": "25"}, f'percent is "25"; {NUMBER}'),
    ({"percent": "25 %"}, f'percent is "25 %"; {NUMBER}'),
    ({"percent": {}}, f"percent is an empty map; {NUMBER}"),
    ({"maxFailed": 0}, f"maxFailed is 0; {FEW}"),
    ({"maxFailed": 1001}, f"maxFailed is 1001; {FEW}"),
    ({"maxFailed": True}, f"maxFailed is true; {FEW}"),
    ({"maxFailed": "5"}, f'maxFailed is "5"; {FEW}'),
    ({"stages": {}}, f"stages is an empty map; {STAGES}"),
    ({"stages": []}, f"stages is an empty list; {STAGES}"),
    ({"stages": [{"percent": 1}] * 101}, f"stages is a list of 101; {STAGES}"),
    ({"stages": [None]}, "stages[0] is null; it must be a map with percent, approval, after, success and over"),
    ({"stages": [5]}, "stages[0] is 5; it must be a map with percent, approval, after, success and over"),
    ({"stages": [{}]}, f"stages[0].percent is missing; {NUMBER}"),
    (
        {"stages": [{"percent": 1, "aprove": True}]},
        "stages[0] contains aprove (did you mean approval?); it may contain percent, approval, after, success and over",
    ),
    (
        {"stages": [{"percent": 10}, {"percent": 5}]},
        "stages[1].percent is 5; it must be a number from 10 to 100",
    ),
    (
        {"stages": [{"percent": 0, "success": 99}]},
        "stages[0].success is 99; it must be left out beside percent 0: no device has a result",
    ),
    ({"stages": [{"percent": 1, "success": 101}]}, f"stages[0].success is 101; {NUMBER}"),
    ({"stages": [{"percent": 1, "approval": "yes"}]}, 'stages[0].approval is "yes"; it must be true or false'),
    ({"stages": [{"percent": 1, "after": "24"}]}, f'stages[0].after is "24"; {TIME}'),
    ({"stages": [{"percent": 1, "after": 24}]}, f"stages[0].after is 24; {TIME}"),
    ({"stages": [{"percent": 1, "after": "1 week"}]}, f'stages[0].after is "1 week"; {TIME}'),
    ({"stages": [{"percent": 1, "over": "2w"}]}, f'stages[0].over is "2w"; {TIME}'),
    ({"stages": [{"percent": 1, "over": "-1h"}]}, f'stages[0].over is "-1h"; {TIME}'),
    ({"stages": [{"percent": 1, "over": "9999d"}]}, 'stages[0].over is "9999d"; it must be 3650d at most'),
    ({"midway": "Finish"}, 'midway is "Finish"; it must be finish or restart'),
    ({"midway": True}, "midway is true; it must be finish or restart"),
    ({"midway": ["finish"]}, "midway is a list; it must be finish or restart"),
    ({"salt": 1}, "salt is 1; it must be a text"),
    ({"salt": {"a": 1}}, "salt is a map; it must be a text"),
    ({"labels": "ring=canary"}, 'labels is "ring=canary"; it must be a map of texts'),
    ({"labels": ["canary"]}, "labels is a list; it must be a map of texts"),
    ({"labels": {"ring": 1}}, "labels.ring is 1; it must be a text"),
    ({"labels": {"ring": True}}, "labels.ring is true; it must be a text"),
    ({"labels": {"ring": None}}, "labels.ring is null; it must be a text"),
    ({"labels": {"x" * 200 + "\n": 1}}, f"labels.{'x' * 100}… is 1; it must be a text"),
]
MALFORMED_WINDOWS = [
    ([1], f" is a list; {WINDOW_KEYS}"),
    ("01:00-05:00", f' is "01:00-05:00"; {WINDOW_KEYS}'),
    ({"from": "01:00", "to": "05:00", "tz": "UTC"}, " contains tz; it may contain from, to, timezone and days"),
    ({}, f".from is missing; {QUOTES}"),
    ({"to": "05:00"}, f".from is missing; {QUOTES}"),
    ({"from": "01:00"}, f".to is missing; {QUOTES}"),
    ({"from": "01:00", "to": None}, f".to is missing; {QUOTES}"),
    ({"from": 60, "to": "05:00"}, f".from is 60; {HINT}"),
    ({"from": "01:00", "to": 300.5}, f".to is 300.5; {HINT}"),
    ({"from": ["01:00"], "to": "05:00"}, f".from is a list; {QUOTES}"),
    ({"from": "1:00", "to": "05:00"}, '.from is "1:00"; it must be "00:00" to "23:59"'),
    ({"from": "24:00", "to": "05:00"}, '.from is "24:00"; it must be "00:00" to "23:59"'),
    ({"from": "01:00", "to": "24:01"}, '.to is "24:01"; it must be "00:00" to "24:00"'),
    ({"from": "01:60", "to": "05:00"}, '.from is "01:60"; it must be "00:00" to "23:59"'),
    ({"from": "01:00:00", "to": "05:00"}, '.from is "01:00:00"; it must be "00:00" to "23:59"'),
    ({"from": "01:00\n", "to": "05:00"}, '.from is "01:00\N{REPLACEMENT CHARACTER}"; it must be "00:00" to "23:59"'),
    ({"from": "0\u0661:00", "to": "05:00"}, '.from is "0\u0661:00"; it must be "00:00" to "23:59"'),
    ({"from": "", "to": "05:00"}, '.from is ""; it must be "00:00" to "23:59"'),
    ({"from": "x" * 200, "to": "05:00"}, f'.from is "{"x" * 100}…"; it must be "00:00" to "23:59"'),
    (
        {"from": "01:00", "to": "01:00"},
        '.to is "01:00"; it must be another time than from ("00:00" to "24:00" is the whole day)',
    ),
    (
        {"from": "00:00", "to": "00:00"},
        '.to is "00:00"; it must be another time than from ("00:00" to "24:00" is the whole day)',
    ),
]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        *MALFORMED,
        *(({"rollout": section}, f"rollout.{message}") for section, message in MALFORMED_ROLLOUTS),
        *(({"rollout": {"window": section}}, f"rollout.window{message}") for section, message in MALFORMED_WINDOWS),
    ],
)
def test_what_cannot_be_understood_is_told_in_one_line(section: dict[str, Any], message: str) -> None:
    assert told(section) == message


@pytest.mark.parametrize(
    ("days", "problem"),
    [
        ([], "is an empty list; it must be a list of"),
        ({}, "is an empty map; it must be a list of"),
        ("sat", 'is "sat"; it must be a list of'),
        (["saturday"], 'contains "saturday"; it may contain'),
        (["mon", ""], 'contains ""; it may contain'),
        ([5], "contains 5; it may contain"),
        ([None], "contains null; it may contain"),
        ([["mon"]], "contains a list; it may contain"),
    ],
)
def test_what_are_no_days_is_refused(days: object, problem: str) -> None:
    section = {"from": "01:00", "to": "05:00", "days": days}
    assert told({"rollout": {"window": section}}) == f"rollout.window.days {problem} {DAYS}"


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../x",
        "/etc/localtime",
        "/usr/share/zoneinfo/Europe/Oslo",
        "Europe",
        "Europe/",
        "Europe//Oslo",
        "Europe/Oslo/..",
        "Europe/Oslo/x",
        "Europe/./Oslo",
        "posix/America/Argentina/Salta",
        "Europe/Oslo ",
        "Europe/Atlantis",
        "CEST",
        "+01:00",
        "leapseconds",
        "tzdata.zi",
        "__init__.py",
        "a\0b",
        "\n",
        "Asia/Ürümqi",
        "\ud800",
        "x" * 5000,
        "x/" * 100 + "x",
        "x/" * 5000 + "x",
    ],
)
def test_what_names_no_time_zone_is_refused(name: str) -> None:
    line = told({"rollout": {"window": {"from": "01:00", "to": "05:00", "timezone": name}}})
    assert line.startswith('rollout.window.timezone is "')
    assert line.endswith(f'"; {ZONE}')


@pytest.mark.parametrize(("zone", "got"), [(1, "1"), (True, "true"), (["UTC"], "a list"), ({}, "an empty map")])
def test_what_is_no_text_names_no_time_zone(zone: object, got: str) -> None:
    section = {"from": "01:00", "to": "05:00", "timezone": zone}
    assert told({"rollout": {"window": section}}) == f"rollout.window.timezone is {got}; {ZONE}"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


def sections(keys: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Maps that look like a section: with some of its keys, most of them well-formed."""
    known = st.fixed_dictionaries({}, optional={key: values | JSON for key, values in keys.items()})
    return known | st.builds(lambda own, others: {**others, **own}, known, st.dictionaries(st.text(), JSON, max_size=2))


TIMES = st.times().map(lambda time: time.isoformat("minutes")) | st.just("24:00") | st.text(":0123456789", max_size=5)
NAMES = st.sampled_from(["Europe/Oslo", "Europe/../UTC", "UTC", "Europe", "/"]) | st.text(max_size=8)
WINDOW_SECTIONS = sections(
    {
        "from": TIMES,
        "to": TIMES,
        "timezone": NAMES,
        "days": st.lists(st.sampled_from(["mon", "SUN", "x"])),
    }
)
ROLLOUT_SECTIONS = sections(
    {
        "paused": st.booleans(),
        "percent": st.floats(0, 100),
        "salt": st.text(),
        "labels": st.dictionaries(st.text(), st.text()),
        "window": WINDOW_SECTIONS,
        "midway": st.sampled_from(["finish", "restart"]),
    }
)
SECTIONS = sections(
    {
        "rollout": ROLLOUT_SECTIONS,
        "maxAttempts": st.integers(1),
        "retry": st.text(),
        "mtu": st.integers(1, 2**32 - 1),
    }
)


@given(SECTIONS, st.text(), st.dictionaries(st.text(), st.text()), st.text())
@settings(max_examples=300)
def test_every_section_is_either_a_policy_that_can_be_asked_or_refused_in_one_line(
    section: dict[str, Any], uid: str, labels: dict[str, str], version: str
) -> None:
    try:
        policy = read_policy(section)
    except MalformedSpecError as error:
        line = str(error)
        assert line.startswith(("rollout ", "rollout.", "maxAttempts is ", "retry is ", "mtu is "))
        assert line.isprintable()
        assert len(line) < 400
    else:
        held = hold_start(policy, Candidate(uid, labels), version, NOW)
        assert held is None or held.message.isprintable()


# --- The device's over the application's ------------------------------------------------------------------------------

POLICIES = st.builds(
    Policy,
    paused=st.none() | st.booleans(),
    percent=st.none() | st.floats(0, 100),
    salt=st.none() | st.sampled_from(["", "a"]),
    labels=st.none() | st.sampled_from([{}, {"ring": "canary"}]),
    window=st.none() | st.builds(Window, st.integers(0, 1439), st.integers(1, 1440), st.just(UTC), st.just(EVERY_DAY)),
    max_attempts=st.none() | st.integers(1, 9),
    retry=st.none() | st.sampled_from(["", "a"]),
    mtu=st.none() | st.integers(1, 4096),
    midway=st.none() | st.sampled_from(["finish", "restart"]),
)


@given(POLICIES, POLICIES)
def test_each_field_is_the_devices_where_it_says_something_and_else_the_applications(
    device: Policy, application: Policy
) -> None:
    merged = device.over(application)
    for name in (field.name for field in fields(Policy)):
        own, shared = getattr(device, name), getattr(application, name)
        assert getattr(merged, name) == (shared if own is None else own)


@given(POLICIES)
def test_a_policy_that_says_nothing_changes_nothing(policy: Policy) -> None:
    assert policy.over(NONE) == policy
    assert NONE.over(policy) == policy


def test_what_a_device_says_can_be_no_or_none_at_all() -> None:
    application = Policy(paused=True, percent=50.0, salt="s", labels={"ring": "canary"}, retry="r")
    device = Policy(paused=False, percent=0.0, salt="", labels={}, retry="")
    assert device.over(application) == device


# --- Labels -----------------------------------------------------------------------------------------------------------

CANARIES = Policy(labels={"ring": "canary", "site": "oslo"})


@pytest.mark.parametrize(
    ("labels", "missing"),
    [
        ({}, "ring=canary, site=oslo"),
        ({"ring": "canary"}, "site=oslo"),
        ({"ring": "Canary", "site": "oslo"}, "ring=canary"),
        ({"ring": "", "site": "oslo", "canary": "ring"}, "ring=canary"),
    ],
)
def test_a_device_that_lacks_a_label_is_held_back(labels: dict[str, str], missing: str) -> None:
    assert hold_start(CANARIES, Candidate("uid", labels), "1", NOW) == Hold("rollout", f"its labels are not {missing}")


def test_a_device_with_all_of_the_labels_may_start_whatever_else_it_has() -> None:
    assert hold_start(CANARIES, Candidate("uid", {"ring": "canary", "site": "oslo", "x": "y"}), "1", NOW) is None
    assert hold_start(Policy(labels={}), Candidate("uid", {}), "1", NOW) is None


def test_labels_are_shown_in_one_line_of_some_length() -> None:
    held = hold_start(Policy(labels={"a\nb": "c" * 500}), Candidate("uid", {}), "1", NOW)
    assert held
    assert held.message == f"its labels are not a\N{REPLACEMENT CHARACTER}b={'c' * 96}…"


# --- A share of the devices -------------------------------------------------------------------------------------------

PERCENTS = st.floats(0, 100) | st.integers(0, 100).map(float)
UIDS = st.uuids().map(str) | st.text(min_size=1)
VERSIONS = st.text(max_size=16)
SALTS = st.none() | st.text(max_size=8)


@given(uid=UIDS, version=VERSIONS, salt=SALTS, percents=st.tuples(PERCENTS, PERCENTS))
def test_a_device_that_is_in_stays_in_when_the_number_is_raised(
    uid: str, version: str, salt: str | None, percents: tuple[float, float]
) -> None:
    low, high = sorted(percents)
    if is_in(Policy(percent=low, salt=salt), uid, version):
        assert is_in(Policy(percent=high, salt=salt), uid, version)


@given(seed=st.integers(0), version=VERSIONS, salt=SALTS, percents=st.lists(PERCENTS, min_size=2, max_size=5))
@settings(max_examples=30)
def test_more_percent_are_the_same_devices_and_others(
    seed: int, version: str, salt: str | None, percents: list[float]
) -> None:
    devices = uids(seed, 200)
    sets = [
        {uid for uid in devices if is_in(Policy(percent=percent, salt=salt), uid, version)}
        for percent in sorted(percents)
    ]
    assert all(smaller <= larger for smaller, larger in pairwise(sets))


@given(uid=UIDS, version=VERSIONS, salt=SALTS)
def test_a_device_is_in_from_the_very_percentage_above_its_place_on(uid: str, version: str, salt: str | None) -> None:
    place = draw(uid, version, salt)
    assert 0 <= place < 1
    assert not is_in(Policy(percent=math.nextafter(place * 100, -1) if place else 0.0, salt=salt), uid, version)
    above = math.nextafter(math.nextafter(place * 100, 101), 101)
    assert is_in(Policy(percent=min(above, 100.0), salt=salt), uid, version)


@given(uid=st.text(), version=VERSIONS, salt=SALTS)
def test_nobody_is_in_at_0_and_everybody_at_100(uid: str, version: str, salt: str | None) -> None:
    assert not is_in(Policy(percent=0.0, salt=salt), uid, version)
    assert is_in(Policy(percent=100.0, salt=salt), uid, version)
    assert is_in(Policy(salt=salt), uid, version)


@given(seed=st.integers(0), version=VERSIONS, salt=SALTS, percent=st.floats(1, 99))
@settings(max_examples=30)
def test_the_share_is_as_large_as_said(seed: int, version: str, salt: str | None, percent: float) -> None:
    count, share = 4000, percent / 100
    policy = Policy(percent=percent, salt=salt)
    found = sum(is_in(policy, uid, version) for uid in uids(seed, count))
    # Six standard deviations: once in 500 million times by chance.
    assert abs(found - count * share) < 6 * math.sqrt(count * share * (1 - share))


def test_devices_that_are_numbered_are_spread_as_evenly() -> None:
    found = sum(is_in(Policy(percent=25.0), f"device-{number}") for number in range(10_000))
    assert abs(found - 2500) < 6 * math.sqrt(10_000 * 0.25 * 0.75)


def test_each_version_draws_anew_unless_a_salt_is_given() -> None:
    def first(version: str, salt: str | None) -> set[str]:
        policy = Policy(percent=20.0, salt=salt)
        return {uid for uid in uids(1, 1000) if is_in(policy, uid, version)}

    assert first("1.0", "s") == first("2.0", "s")
    assert first("1.0", "s") != first("1.0", "t")
    both = len(first("1.0", None) & first("2.0", None))
    assert abs(both - 40) < 6 * math.sqrt(1000 * 0.04 * 0.96)


@given(st.tuples(st.text(), st.text()), st.tuples(st.text(), st.text()))
@example(("ab", "c"), ("a", "bc"))
@example(("", "abc"), ("abc", ""))
@example(("1", "1:1"), ("1:1", "1"))
@example(("3:abc", ""), ("", "3:abc"))
def test_no_two_pairs_of_device_and_version_draw_the_same(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert (draw(*one, None) == draw(*other, None)) == (one == other)


@pytest.mark.parametrize(
    ("uid", "version", "salt", "digest"),
    [
        # How `printf 36:UIDVERSION | sha256sum` begins.
        ("5f8b0c6e-3a76-4a2e-9d2b-0f6a3f1c7e55", "1.2.3", None, 0xF7205B7FE6F451D7),
        ("5f8b0c6e-3a76-4a2e-9d2b-0f6a3f1c7e55", "1.2.3", "canaries", 0x6B11AFD96E092FB4),
        ("ø", "1.2.3", "", 0xFD0CDEE0EB58488E),
    ],
)
def test_every_release_draws_the_same_devices(uid: str, version: str, salt: str | None, digest: int) -> None:
    assert draw(uid, version, salt) == math.ldexp(digest >> 11, -53)


@pytest.mark.parametrize(
    ("percent", "shown"), [(25.0, "25"), (0.5, "0.5"), (0.0, "0"), (99.0001, "99.0001"), (100 / 3, "33.3333333333333")]
)
def test_a_device_that_is_not_drawn_is_told_how_many_are(percent: float, shown: str) -> None:
    last = max(uids(2, 1000), key=lambda uid: draw(uid, "1", None))
    assert hold_start(Policy(percent=percent), Candidate(last, {}), "1", NOW) == Hold(
        "rollout", f"not among the {shown} % of devices"
    )


def test_the_last_device_of_all_is_updated_only_with_everybody() -> None:
    last = "device-219274"
    assert draw(last, "1", None) > 0.99999
    assert not is_in(Policy(percent=99.999), last, "1")
    assert is_in(Policy(percent=100.0), last, "1")


def test_a_device_without_a_uid_is_updated_only_with_everybody() -> None:
    held = hold_start(Policy(percent=99.9), Candidate("", {}), "1", NOW)
    assert held == Hold("rollout", "not among the 99.9 % of devices: it has no UID")
    assert is_in(Policy(percent=100.0), "")
    assert is_in(NONE, "")


# --- Windows ----------------------------------------------------------------------------------------------------------

#: With and without daylight saving, on both halves of the earth, with odd offsets and odd changes.
ZONES = [
    "UTC",
    "Europe/Oslo",
    "Europe/London",
    "America/New_York",
    "America/St_Johns",
    "America/Havana",
    "America/Santiago",
    "Africa/Casablanca",
    "Asia/Kathmandu",
    "Asia/Beirut",
    "Asia/Gaza",
    "Atlantic/Azores",
    "Australia/Lord_Howe",
    "Pacific/Chatham",
    "Pacific/Kiritimati",
    "Etc/GMT+12",
]


@cache
def open_minutes(window: Window) -> frozenset[int]:
    """The minutes of the week, from Monday's midnight, that a window takes."""
    length = window.end - window.start if window.end > window.start else window.end - window.start + 1440
    starts = [day * 1440 + window.start for day in window.days]
    return frozenset((start + minute) % (7 * 1440) for start in starts for minute in range(length))


def is_open(window: Window, moment: datetime) -> bool:
    """Whether it is open by a look at the clock on the wall."""
    wall = moment.astimezone(UTC).astimezone(window.timezone)
    return wall.weekday() * 1440 + wall.hour * 60 + wall.minute in open_minutes(window)


def opening(window: Window, now: datetime) -> datetime:
    """When it opens by a look at the clock every minute."""
    if is_open(window, now):
        return now
    moment = now.astimezone(UTC).replace(second=0, microsecond=0) + MINUTE
    while not is_open(window, moment):
        moment += MINUTE
    return moment


@cache
def clock_changes(zone: str) -> list[datetime]:
    """The hours of two years within which, or before which, a zone's clocks are set; any other where they never are."""
    hours = [datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=number) for number in range(2 * 365 * 24)]
    offsets = [hour.astimezone(ZoneInfo(zone)).utcoffset() for hour in hours]
    return [hours[n] for n in range(1, len(offsets)) if offsets[n] != offsets[n - 1]] or [NOW]


@st.composite
def windows_and_moments(draw: st.DrawFn) -> tuple[Window, datetime]:
    """A window, often near the hour at which clocks are set, and a moment, often within days of that."""
    zone = draw(st.sampled_from(ZONES))
    change = draw(st.sampled_from(clock_changes(zone)))
    wall = change.astimezone(ZoneInfo(zone))
    near = st.integers(-150, 150).map(lambda minutes: (wall.hour * 60 + wall.minute + minutes) % 1440)
    minutes = near | st.integers(0, 1439)
    start = draw(minutes)
    end = draw(minutes.filter(lambda minute: minute != start)) or 1440
    that_day = frozenset({wall.weekday()})
    days = draw(st.frozensets(st.integers(0, 6), min_size=1) | st.just(that_day) | st.just(EVERY_DAY))
    shift = draw(
        st.timedeltas(-timedelta(hours=3), timedelta(hours=3))
        | st.timedeltas(-timedelta(days=9), timedelta(days=9))
        | st.integers(-180, 180).map(lambda minutes: minutes * MINUTE)
    )
    return Window(start, end, ZoneInfo(zone), days), change + shift


@given(windows_and_moments(), st.sampled_from(ZONES))
@settings(max_examples=400)
def test_a_window_opens_when_the_clock_on_the_wall_says_so(case: tuple[Window, datetime], zone: str) -> None:
    window, now = case
    closed_for = opens_in(window, now.astimezone(ZoneInfo(zone)))
    assert now + timedelta(seconds=closed_for) == opening(window, now)
    assert (closed_for == 0.0) == is_open(window, now)
    assert (hold_swap(Policy(window=window), now) is None) == is_open(window, now)


@given(windows_and_moments())
def test_a_window_that_is_said_to_open_is_open_then(case: tuple[Window, datetime]) -> None:
    window, now = case
    opens_at = now + timedelta(seconds=opens_in(window, now))
    assert opens_in(window, opens_at) == 0.0
    if opens_at > now:
        just_before = opens_at - timedelta(microseconds=1)
        assert opens_in(window, just_before) == 1e-6


def at(moment: str, zone: str = "Europe/Oslo", fold: int = 0) -> datetime:
    """A moment by the wall clock; `fold` 1 is the second time that it shows this."""
    return datetime.fromisoformat(moment).replace(tzinfo=ZoneInfo(zone), fold=fold).astimezone(UTC)


def opens(window: Window, now: datetime) -> str:
    """When it opens, by the wall clock."""
    moment = now + timedelta(seconds=opens_in(window, now))
    assert moment == opening(window, now)
    return moment.astimezone(window.timezone).isoformat(timespec="minutes")


def test_a_window_is_open_from_its_first_minute_up_to_its_last() -> None:
    night = window("01:00", "05:00", "Europe/Oslo")
    assert opens_in(night, at("2026-11-23T00:59:59.999999")) == 1e-6
    assert opens_in(night, at("2026-11-23T01:00")) == 0.0
    assert opens_in(night, at("2026-11-23T04:59:59.999999")) == 0.0
    assert opens_in(night, at("2026-11-23T05:00")) == 20 * 60 * 60


def test_a_window_that_passes_midnight_belongs_to_the_day_on_which_it_opened() -> None:
    saturday = window("22:00", "02:00", "Europe/Oslo", ["sat"])
    assert opens(saturday, at("2026-11-28T01:00")) == "2026-11-28T22:00+01:00"
    assert opens_in(saturday, at("2026-11-29T01:00")) == 0.0
    assert opens(saturday, at("2026-11-29T02:00")) == "2026-12-05T22:00+01:00"


def test_a_window_on_sunday_night_is_open_on_monday() -> None:
    assert opens_in(window("22:00", "02:00", days=["sun"]), datetime(2026, 11, 30, 1, tzinfo=UTC)) == 0.0


@pytest.mark.parametrize("end", ["24:00", "00:00"])
def test_a_window_up_to_midnight_ends_there(end: str) -> None:
    saturday = window("22:00", end, "Europe/Oslo", ["sat"])
    assert opens_in(saturday, at("2026-11-28T23:59:59")) == 0.0
    assert opens(saturday, at("2026-11-29T00:00")) == "2026-12-05T22:00+01:00"


@given(st.datetimes(datetime(2026, 1, 1), datetime(2029, 1, 1), timezones=st.sampled_from(ZONES).map(ZoneInfo)))
def test_the_whole_day_of_every_day_is_always(now: datetime) -> None:
    assert opens_in(window("00:00", "24:00", "Europe/Oslo"), now) == 0.0


# In Oslo, 02:00 to 03:00 does not occur on Sunday, 2026-03-29, and occurs twice on Sunday, 2026-10-25.


@pytest.mark.parametrize(
    ("start", "end", "opening"),
    [
        ("01:30", "02:30", "2026-03-29T01:30+01:00"),
        ("02:00", "04:00", "2026-03-29T03:00+02:00"),
        ("02:30", "04:00", "2026-03-29T03:00+02:00"),
        ("03:00", "04:00", "2026-03-29T03:00+02:00"),
        ("02:00", "03:00", "2026-04-05T02:00+02:00"),
        ("02:15", "02:45", "2026-04-05T02:15+02:00"),
        ("03:15", "03:30", "2026-03-29T03:15+02:00"),
        ("02:30", "01:00", "2026-03-29T03:00+02:00"),
    ],
)
def test_what_begins_in_an_hour_that_is_missing_opens_after_it_or_not_that_day(
    start: str, end: str, opening: str
) -> None:
    sunday = window(start, end, "Europe/Oslo", ["sun"])
    assert opens(sunday, at("2026-03-28T12:00:17.5")) == opening
    assert opens(sunday, at("2026-03-29T01:29:59")) == opening


def test_what_ends_in_an_hour_that_is_missing_ends_with_it() -> None:
    sunday = window("01:30", "02:30", "Europe/Oslo", ["sun"])
    assert opens_in(sunday, at("2026-03-29T01:59:59")) == 0.0
    assert opens(sunday, at("2026-03-29T03:00")) == "2026-04-05T01:30+02:00"


def test_an_hour_that_occurs_twice_is_open_twice() -> None:
    sunday = window("02:15", "02:45", "Europe/Oslo", ["sun"])
    assert opens(sunday, at("2026-10-25T01:00")) == "2026-10-25T02:15+02:00"
    assert opens_in(sunday, at("2026-10-25T02:30")) == 0.0
    assert opens(sunday, at("2026-10-25T02:45")) == "2026-10-25T02:15+01:00"
    assert opens_in(sunday, at("2026-10-25T02:30", fold=1)) == 0.0
    assert opens(sunday, at("2026-10-25T02:45", fold=1)) == "2026-11-01T02:15+01:00"


def test_a_window_opens_again_when_the_clock_is_set_back_into_it() -> None:
    sunday = window("01:30", "02:30", "Europe/Oslo", ["sun"])
    assert opens(sunday, at("2026-10-25T02:40:30")) == "2026-10-25T02:00+01:00"


def test_a_window_that_has_just_opened_closes_when_the_clock_is_set_back_before_it() -> None:
    sunday = window("02:30", "04:00", "Europe/Oslo", ["sun"])
    assert opens_in(sunday, at("2026-10-25T02:59")) == 0.0
    assert opens(sunday, at("2026-10-25T02:00", fold=1)) == "2026-10-25T02:30+01:00"


@pytest.mark.parametrize(
    ("zone", "hours", "now", "opening"),
    [
        # Half an hour is missing, or occurs twice.
        ("Australia/Lord_Howe", ("02:10", "02:50"), "2026-10-03T12:00", "2026-10-04T02:30+11:00"),
        ("Australia/Lord_Howe", ("01:40", "01:50"), "2026-04-05T01:50", "2026-04-05T01:40+10:30"),
        # Midnight is missing, or occurs twice.
        ("America/Havana", ("23:30", "01:30"), "2026-03-07T23:00", "2026-03-07T23:30-05:00"),
        ("America/Havana", ("00:10", "01:30"), "2026-03-07T23:00", "2026-03-08T01:00-04:00"),
        ("America/Havana", ("00:10", "00:20"), "2026-11-01T00:20", "2026-11-01T00:10-05:00"),
        # Neither of them has whole hours.
        ("Asia/Kathmandu", ("02:10", "02:50"), "2026-11-23T02:00", "2026-11-23T02:10+05:45"),
        ("America/St_Johns", ("02:10", "02:50"), "2026-11-23T02:00", "2026-11-23T02:10-03:30"),
    ],
)
def test_odd_clocks_are_followed_too(zone: str, hours: tuple[str, str], now: str, opening: str) -> None:
    assert opens(window(*hours, zone), at(now, zone)) == opening


def test_a_clock_that_is_set_twice_within_a_week_is_followed() -> None:
    saturday = window("23:30", "23:45", "America/Recife", ["sat"])
    # Summer time lasted from 2000-10-08 to 2000-10-14, whose last hour occurred twice.
    assert opens(saturday, at("2000-10-07T23:50", "America/Recife")) == "2000-10-14T23:30-02:00"


def test_a_day_that_does_not_occur_has_no_window() -> None:
    friday = window("10:00", "11:00", "Pacific/Apia", ["fri"])
    assert opens(friday, at("2011-12-29T23:00", "Pacific/Apia")) == "2012-01-06T10:00+14:00"


def test_a_device_outside_of_the_window_is_told_when_it_opens() -> None:
    policy = Policy(window=window("01:00", "05:00", "Europe/Oslo", ["sat"]))
    held = Hold(
        "window", "the window opens at 2026-11-28T01:00+01:00", 108.0 * 60 * 60, datetime(2026, 11, 28, tzinfo=UTC)
    )
    assert hold_swap(policy, NOW) == held
    assert hold_start(policy, Candidate("uid", {}), "1", NOW) == held


def test_a_device_within_the_window_may_start_and_swap() -> None:
    policy = Policy(window=window("11:00", "13:00"))
    assert hold_swap(policy, NOW) is None
    assert hold_start(policy, Candidate("uid", {}), "1", NOW) is None


# --- All of it --------------------------------------------------------------------------------------------------------

CLOSED = Policy(labels={"ring": "canary"}, percent=0.0, window=window("01:00", "05:00"))


def test_labels_are_looked_at_first_then_the_share_then_the_window() -> None:
    def message(policy: Policy, labels: Mapping[str, str]) -> str:
        held = hold_start(policy, Candidate("uid", labels), "1", NOW)
        assert held
        return held.message

    assert message(CLOSED, {}) == "its labels are not ring=canary"
    assert message(CLOSED, {"ring": "canary"}) == "not among the 0 % of devices"
    assert message(replace(CLOSED, percent=100.0), {"ring": "canary"}) == "the window opens at 2026-11-24T01:00+00:00"


def test_a_device_that_has_written_its_update_is_held_by_the_window_only() -> None:
    assert hold_swap(replace(CLOSED, window=None), NOW) is None
    held = hold_swap(CLOSED, NOW)
    assert held
    assert held.reason == "window"


@given(st.text(), st.dictionaries(st.text(), st.text()), st.text())
def test_who_has_no_policy_may_start_and_swap(uid: str, labels: dict[str, str], version: str) -> None:
    assert hold_start(NONE, Candidate(uid, labels), version, NOW) is None
    assert hold_swap(NONE, NOW) is None


def run(code: str, **environment: str) -> str:
    command = [sys.executable, "-c", f"import sys; from fleet_fn.drogue.spec_policy import *; {code}"]
    return subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, **environment}
    ).stdout.strip()


def test_time_zones_are_loaded_by_the_first_window_only() -> None:
    assert run("read_policy({'rollout': {'percent': 5}}); print('zoneinfo' in sys.modules)") == "False"


def test_time_zones_are_known_where_the_system_knows_none() -> None:
    section = {"rollout": {"window": {"from": "01:00", "to": "05:00", "timezone": "Europe/Oslo"}}}
    assert run(f"print(read_policy({section}).window.timezone)", PYTHONTZPATH="") == "Europe/Oslo"
