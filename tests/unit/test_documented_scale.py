"""The capacity that docs/scale.md tells: its tables, its plot, and the bounds that both rest on."""

import re
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.bench import capacity, capacity_plot
from tests.bench.capacity import SOURCE_RATE, SOURCE_RATE_500, Need
from tests.bench.deliverers import MAX_AGE_SECONDS, PARTITION_RATE, Plant, Simulation

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "scale.md").read_text()
TEXT = " ".join(PAGE.split())
SVG = "{http://www.w3.org/2000/svg}"


# --- The table --------------------------------------------------------------------------------------------------------


def test_the_table_is_what_the_method_says() -> None:
    assert capacity.table() in PAGE, "make plots writes it anew"


def test_the_table_has_three_loads_for_each_size_of_fleet() -> None:
    devices = re.findall(r"^\| ([\d,]+) \| (?:polls|and 1 MiB)", PAGE, re.MULTILINE)
    assert devices == [f"{size:,}" for size in (10**4, 10**6, 10**7) for _ in range(3)]


def test_a_row_is_counted_by_hand() -> None:
    # 1,000,000 / 300 + 1,000,000 * 256 / 86,400 = 6,296.3
    assert Need(1_000_000, 4096).row.startswith(
        "| 1,000,000 | and 1 MiB a day in blocks of 4 KiB | 6,296 | 225 | 32 | 4 | 33 |"
    )


@pytest.mark.parametrize(
    "sentence",
    [
        f"the events divided by {PARTITION_RATE * capacity.HEADROOM:.0f}, KafkaSources by"
        f" {SOURCE_RATE * capacity.HEADROOM:.0f} or {SOURCE_RATE_500 * capacity.HEADROOM:,.0f}",
        f"8 \N{MULTIPLICATION SIGN} {PARTITION_RATE} \N{MULTIPLICATION SIGN} 0.7 = {capacity.POD_RATE:.0f}",
        f"{capacity.POD_RATE:.0f} events/s",
        f"| `max-scale`, 20 pods | {20 * capacity.POD_RATE:,.0f} events/s |",
        f"{1000 * capacity.POLL_CPU:.2g} ms for a poll of a device that the process does not know,"
        f" and {1000 * capacity.BLOCK_CPU:.2g} ms for a block",
    ],
)
def test_the_method_is_told(sentence: str) -> None:
    assert sentence in TEXT


def test_the_answer_is_the_table_s() -> None:
    small, large = Need(10_000, 4096), Need(1_000_000, 4096)
    assert (small.partitions, small.sources, small.pods) == (3, 1, 1)
    assert "Ten thousand with three partitions, one KafkaSource and one pod." in TEXT
    assert (
        f"A million with {large.partitions} partitions, {large.sources} KafkaSources ({large.sources_500} after one"
        f" change of a ConfigMap) and {large.pods} pods."
    ) in TEXT


def test_the_manifest_and_the_operators_page_tell_the_same_limits() -> None:
    manifest = " ".join((ROOT / "knative" / "kafka-source.yaml").read_text().replace("#", " ").split())
    page = " ".join((ROOT / "docs" / "operate.md").read_text().split())
    assert f"passes {SOURCE_RATE} events a second" in manifest
    assert f"a partition passes {PARTITION_RATE} a second" in manifest
    assert f"passes {SOURCE_RATE} events a second" in page
    assert f"a partition {PARTITION_RATE}" in page


# --- The simulation ---------------------------------------------------------------------------------------------------


def test_the_waits_are_what_the_simulation_says() -> None:
    assert capacity.waits() in PAGE, "make plots writes them anew"


def test_the_simulated_bounds_are_told_and_near_the_measured_ones() -> None:
    bounds = capacity.bounds()
    partition, source, pod = (round(simulated) for simulated, _ in bounds.values())
    assert f"a partition {partition} events a second, a KafkaSource {source}, and a pod {pod}." in TEXT
    assert all(simulated == pytest.approx(measured, rel=0.1) for simulated, measured in bounds.values())


def test_more_records_a_poll_raise_the_bound_of_a_source() -> None:
    assert capacity.rate(Plant(32, 1, 500, 6)) > 3 * capacity.rate(Plant(32, 1, 50, 6))


def test_an_idle_dispatcher_takes_an_event_at_once() -> None:
    waited = Simulation(Plant(1, 1, 50, 1), [(10.0, 1)], seed=1).run(20).waits
    assert len(waited) == 1
    assert waited[0] < 0.2


def test_a_device_without_a_command_asks_again() -> None:
    # More than one partition passes before they are too old.
    queue = [(index / 10**6, index) for index in range(1500)]
    course = Simulation(Plant(1, 1, 2000, 1), queue, seed=1).run(120)
    assert course.stale > 0
    assert course.waiting == 0
    assert max(course.waits) > MAX_AGE_SECONDS


def test_events_wait_for_room_in_a_pod() -> None:
    few, many = (capacity.rate(Plant(32, 8, 50, pods)) for pods in (1, 2))
    assert many == pytest.approx(2 * few, rel=0.1)


def test_a_bound_that_is_off_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(capacity, "bounds", lambda: {"a partition": (50.0, 35)})
    monkeypatch.setattr(capacity, "waits", lambda: "")
    assert capacity.run(1) == ["a partition passes 50 events/s in the simulation, not 35"]
    assert capacity.table() in capsys.readouterr().out


def test_pages_are_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "waits", lambda: "| a |\n| --- |\n| new |")
    page = f"before\n\n{capacity.table()}\nnot this row? | it is one\n\n| a |\n| --- |\n| old |\n| older |\n\nafter\n"
    renewed = capacity.renew(page)
    assert "| old |" not in renewed
    assert renewed.endswith("| a |\n| --- |\n| new |\n\nafter\n")


# --- The plot ---------------------------------------------------------------------------------------------------------


def test_the_plot_in_the_docs_is_the_method_s() -> None:
    assert (ROOT / capacity_plot.PLOT).read_text() == capacity_plot.plot(), "make plots draws it anew"


def test_the_plot_can_be_read_without_seeing_it() -> None:
    root = ElementTree.fromstring(capacity_plot.plot())
    title, description = root.findtext(f"{SVG}title"), root.findtext(f"{SVG}desc")
    assert title == "What a fleet needs"
    assert f"{Need(10**7, 4096).partitions:,} partitions" in (description or "")


def test_no_label_is_over_another() -> None:
    texts = ElementTree.fromstring(capacity_plot.plot()).iter(f"{SVG}text")
    heights = sorted(float(text.attrib["y"]) for text in texts if text.find(f"{SVG}tspan") is not None)
    assert len(heights) == 6
    assert all(below - above >= 16 for above, below in pairwise(heights))
