"""The simulation of a bad version: its courses, its checks and its plot."""

from itertools import pairwise
from typing import Any, Final
from xml.etree import ElementTree

import pytest

from fleet_fn.fleet.rollout.progress import Standing
from tests.bench import bad_version, plot, simulation
from tests.bench.simulation import FRESH_SECONDS, PASS_SECONDS, Course, Fleet, Simulation
from tests.support.function import ROOT

DEVICES: Final = 2000
DAY: Final = 86400.0
#: Enough for each check at a seed, and few enough for a test.
FEW: Final = {"DEVICES": 10_000, "HASTY_FLEETS": 2, "HASTY_DEVICES": 1000}
SVG: Final = "{http://www.w3.org/2000/svg}"
MAX_COLUMNS: Final = 80


@pytest.fixture(scope="module")
def fleet() -> Fleet:
    return Fleet.make(DEVICES, seed=1)


def course(fleet: Fleet, failing: float, **rollout: Any) -> Course:
    return Simulation(fleet, rollout, failing).run()


def stages(**waits: Any) -> list[dict[str, Any]]:
    return [{"percent": 10, **waits}, {"percent": 100}]


# --- Courses ----------------------------------------------------------------------------------------------------------


def test_a_fleet_is_the_same_for_a_seed(fleet: Fleet) -> None:
    assert Fleet.make(DEVICES, seed=1).download == fleet.download
    assert Fleet.make(DEVICES, seed=2).download != fleet.download
    assert course(fleet, 0.03, maxFailed=5) == course(Fleet.make(DEVICES, seed=1), 0.03, maxFailed=5)


def test_each_device_polls_in_its_own_time(fleet: Fleet) -> None:
    for device in range(20):
        period = fleet.period[device]
        first, later = fleet.next_poll(device, 0.0), fleet.next_poll(device, DAY)
        assert 0 <= first < period
        assert DAY <= later < DAY + period
        assert (later - first) / period == pytest.approx(round((later - first) / period))


def test_without_policy_each_device_boots_the_version(fleet: Fleet) -> None:
    found = course(fleet, 0.03)
    assert len(found.boots) == found.drawn == DEVICES
    assert found.boots == sorted(found.boots)
    assert found.rolled_back == sum(luck < 0.03 for luck in fleet.luck)
    assert found.in_sync == DEVICES - found.rolled_back
    assert (found.halted_at, found.advances, found.progress) == (None, [], None)


@pytest.mark.parametrize("failing", [0.03, 1.0])
def test_a_halt_ends_all_boots(fleet: Fleet, failing: float) -> None:
    found = course(fleet, failing, maxFailed=5)
    assert found.halted_at is not None
    assert found.last_boot < found.halted_at + FRESH_SECONDS
    assert 5 <= found.rolled_back <= 5 + found.in_flight
    assert found.in_sync + found.rolled_back == len(found.boots) < DEVICES


def test_too_few_failures_do_not_halt(fleet: Fleet) -> None:
    failing = sum(luck < 0.03 for luck in fleet.luck)
    assert course(fleet, 0.03, maxFailed=failing + 1) == course(fleet, 0.03)


def test_a_share_lets_in_no_other_device(fleet: Fleet) -> None:
    found = course(fleet, 0.0, percent=10)
    assert len(found.boots) == found.drawn == pytest.approx(DEVICES / 10, rel=0.2)
    assert course(fleet, 0.0, percent=0) == Course()


def test_a_good_version_passes_its_stages(fleet: Fleet) -> None:
    found = course(fleet, 0.0, stages=stages(success=99, after="24h"))
    assert found.advances == [DAY]
    assert found.progress
    assert found.progress.standing is Standing.COMPLETE
    assert found.in_sync == DEVICES
    first = sum(boot < DAY for boot in found.boots)
    assert first == len(course(fleet, 0.0, percent=10).boots)


def test_a_bad_version_stays_at_its_stage(fleet: Fleet) -> None:
    found = course(fleet, 0.3, stages=stages(success=99, after="24h"))
    assert found.progress
    assert found.progress.standing is Standing.FAILING
    assert found.advances == []
    assert len(found.boots) == found.drawn < DEVICES


def test_a_stage_without_time_ends_at_the_first_results(fleet: Fleet) -> None:
    found = course(fleet, 0.0, stages=stages(success=99))
    first_result = found.boots[0] + simulation.BOOT_SECONDS[0]
    assert first_result <= found.advances[0] <= found.boots[0] + simulation.BOOT_SECONDS[1] + PASS_SECONDS


# --- The benchmark ----------------------------------------------------------------------------------------------------


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in FEW.items():
        monkeypatch.setattr(bad_version, name, value)


@pytest.fixture
def one_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what is found with any share of failures."""
    monkeypatch.setattr(bad_version, "OTHER_FAILING", ())


@pytest.mark.usefixtures("few")
def test_the_benchmark_prints_its_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert bad_version.run(seed=1) == []
    shown = capsys.readouterr().out.splitlines()
    assert max(map(len, shown)) <= MAX_COLUMNS
    assert "a version that fails on 3 % of 10,000 devices, seed 1" in shown
    for policy in bad_version.POLICIES:
        assert sum(line.startswith(f"{policy}  ") for line in shown) == 2, policy


@pytest.mark.usefixtures("few", "one_share")
def test_a_brake_that_is_late_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation, "FRESH_SECONDS", 60.0)
    wrong = bad_version.run(seed=1)
    assert f"{bad_version.BRAKE}: a device booted it after the halt was known" in wrong


@pytest.mark.usefixtures("few", "one_share")
def test_stages_that_do_not_hold_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bad_version.POLICIES, bad_version.STAGES, {"stages": [{"percent": 100}]})
    wrong = bad_version.run(seed=1)
    assert f"{bad_version.STAGES}: the last pass did not see that it fails" in wrong
    assert f"{bad_version.STAGES}: 10,000 devices booted it, more than 1 %" in wrong
    assert f"{bad_version.STAGES}: a good version was on all devices before its stages were over" in wrong


# --- The plot ---------------------------------------------------------------------------------------------------------


def test_the_plot_in_the_docs_is_the_simulation() -> None:
    assert (ROOT / plot.PLOT).read_text() == plot.plot(), "make plots draws it anew"


def test_the_plot_can_be_read_without_seeing_it() -> None:
    root = ElementTree.fromstring((ROOT / plot.PLOT).read_text())
    assert (root.get("role"), root.get("aria-labelledby")) == ("img", "title desc")
    title, description = root.find(f"{SVG}title"), root.find(f"{SVG}desc")
    assert title is not None
    assert description is not None
    assert "In the end, so many have booted it: no policy: 100,000; " in (description.text or "")
    texts = ["".join(text.itertext()) for text in root.iter(f"{SVG}text")]
    assert "100,000 no policy" in texts


def test_labels_of_lines_do_not_cover_each_other() -> None:
    same = Course(boots=[60.0], drawn=1, in_sync=1)
    root = ElementTree.fromstring(plot.draw(dict.fromkeys(bad_version.POLICIES, same), 1))
    heights = [float(text.get("y", "")) for text in root.iter(f"{SVG}text") if text.find(f"{SVG}tspan") is not None]
    assert len(heights) == 4
    assert all(upper + 15 < lower for upper, lower in pairwise(heights))
