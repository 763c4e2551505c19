"""How the benchmark of throughput compares: its pairs of rounds, its tables, and what it says should be otherwise."""

from dataclasses import replace

import pytest

from tests.bench.throughput import rates
from tests.bench.throughput.measuring import WIDTH, Measured, Round

ROUND = Round(rate=1000, cost=500, load_cost=20, cloud_cost=30, requests=1, idle=0.1, others=0)
FLOOR = Measured([replace(ROUND, rate=rate, cost=1000) for rate in (500, 1000, 250)])


def function(times: float, cost: float = 400) -> Measured:
    return Measured([replace(ROUND, rate=times * one.rate, cost=cost) for one in FLOOR.rounds])


def measured(block: Measured, poll: Measured) -> dict[str, Measured]:
    return {"floor": FLOOR, "a block": block, "a poll": poll}


def test_a_round_is_compared_with_the_same_round_of_the_floor() -> None:
    even = Measured([replace(ROUND, rate=rate) for rate in (1000, 1000, 1000)])
    assert even.rate_of(FLOOR) == 2
    assert even.cost_of(FLOOR) == 0.5


def test_the_worst_round_counts() -> None:
    unbalanced = Measured([replace(ROUND, rate=rate) for rate in (1800, 700, 1900)])
    assert unbalanced.rate == 1800
    assert unbalanced.worst == 700


def test_nothing_is_wrong_if_the_targets_are_reached() -> None:
    assert list(rates.below_target(measured(function(1.9), function(2.0)), "here")) == []


@pytest.mark.parametrize(
    ("block", "poll", "wrong"),
    [
        (function(1.8), function(2), "a block, here: 1.80 times the floor's events/s, not 1.9"),
        (function(1.9), function(1.9), "a poll, here: 1.90 times the floor's events/s, not 2.0"),
        (function(1.9), function(2, cost=600), "a poll, here: 0.60 of the floor's CPU, not 0.5"),
    ],
)
def test_what_is_below_its_target_is_said(block: Measured, poll: Measured, wrong: str) -> None:
    assert list(rates.below_target(measured(block, poll), "here")) == [wrong]


@pytest.mark.parametrize(("busy", "names"), [(replace(ROUND, load_cost=900), ["wrk"]), (ROUND, [])])
def test_a_load_that_is_the_limit_is_said(busy: Round, names: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    result = Measured([busy])
    assert [line.split()[0] for line in rates.load_is_limit(measured(result, result))] == names
    assert "wrk" in capsys.readouterr().out


def test_tables_are_narrow(capsys: pytest.CaptureFixture[str]) -> None:
    rates.table({"a block, 1 connection": function(100, 12345)}, FLOOR)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= WIDTH
