"""The capacity that docs/scale.md tells, computed again by the method that it names."""

import math
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "scale.md").read_text()
#: Events a second, as they were measured.
PARTITION, SOURCE, SOURCE_500 = 35, 250, 2108
#: Seconds between polls.
POLL = 300
#: Bytes of firmware that a device takes each day.
DAILY = 2**20

ROWS = re.findall(r"^\| ([\d,]+) \| (polls|and 1 MiB a day in blocks of (\d) KiB) \| (.+) \|$", PAGE, re.MULTILINE)


def number(text: str) -> int:
    return int(text.replace(",", ""))


def test_the_table_has_three_loads_for_each_size_of_fleet() -> None:
    assert [number(row[0]) for row in ROWS] == [size for size in (10**4, 10**6, 10**7) for _ in range(3)]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]} {row[1]}")
def test_the_table_is_what_the_method_says(row: tuple[str, str, str, str]) -> None:
    devices, _, block, told = row
    blocks = DAILY / (int(block) * 1024) if block else 0
    events = number(devices) * (1 / POLL + blocks / 86400)
    per_pod = 8 * PARTITION * 0.7
    needed = [math.ceil(events / passed) for passed in (PARTITION, SOURCE, SOURCE_500, per_pod)]
    assert [number(cell) for cell in told.split(" | ")] == [round(events), *needed, round(events)]


def test_what_a_pod_passes_is_told_alike_everywhere() -> None:
    per_pod = round(8 * PARTITION * 0.7)
    assert f"8 * {PARTITION} * 0.7 = {per_pod}" in PAGE.replace("\N{MULTIPLICATION SIGN}", "*")
    assert f"{per_pod} events/s" in PAGE
    assert f"| `max-scale`, 20 pods | {20 * per_pod:,} events/s |" in PAGE


def test_the_manifest_and_the_operators_page_tell_the_same_limits() -> None:
    manifest = " ".join((ROOT / "knative" / "kafka-source.yaml").read_text().replace("#", " ").split())
    page = " ".join((ROOT / "docs" / "operate.md").read_text().split())
    assert f"passes {SOURCE} events a second" in manifest
    assert f"a partition passes {PARTITION} a second" in manifest
    assert f"passes {SOURCE} events a second" in page
    assert f"a partition {PARTITION}" in page
