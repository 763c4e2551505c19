"""The cost of idle devices that docs/scale.md tells is what the benchmark compares with."""

import re
from pathlib import Path

from tests.bench import cold

PAGE = (Path(__file__).parents[2] / "docs" / "scale.md").read_text()


def test_the_table_tells_what_the_benchmark_promises() -> None:
    rows = re.findall(r"^\| (\d+) \| 1 \| ([\d.]+) \| 33 \| ([\d.]+) \|$", PAGE, re.MULTILINE)
    assert {int(processes): float(reads) for processes, reads, _ in rows} == cold.PROMISED
    polls = cold.DEVICES / cold.POLL_SECONDS
    assert [float(second) for _, _, second in rows] == [round(float(reads) * polls, 1) for _, reads, _ in rows]
    assert f"IN_SYNC_TTL_SECONDS={cold.TTL_SECONDS:.0f}" in PAGE
