"""The plot of what fleets need, docs/capacity.svg: `make plots`."""

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench import svg
from tests.bench.capacity import DAILY_BYTES, POLL_SECONDS, USUAL_BLOCK, Need

#: Below the repository's folder.
PLOT: Final = Path("docs", "capacity.svg")

#: Narrow, and with large letters: it is read on telephones, too.
_WIDTH, _HEIGHT, _TEXT = 460, 440, 14
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 276, 82, 384
_LABELS: Final = _RIGHT + 8
_LABEL_GAP: Final = 18
#: Powers of ten: of devices, and of what they need.
_FIRST, _LAST, _DECADES = 3, 7, 5
_STEPS: Final = 222
#: Names of powers of ten.
_NAMES: Final = ("1", "10", "100", "1 k", "10 k", "100 k", "1 M", "10 M")


@dataclass(frozen=True, slots=True)
class _Line:
    style: str
    label: str
    of: Callable[[Need], float]


_LINES: Final = (
    _Line("reads", "registry reads/s", lambda need: need.reads),
    _Line("partitions", "partitions", lambda need: need.partitions),
    _Line("pods", "pods", lambda need: need.pods),
    _Line("sources", "KafkaSources", lambda need: need.sources),
    _Line("cpus", "CPUs", lambda need: need.cpus),
    _Line("fewer", "KafkaSources at 500", lambda need: need.sources_500),
)
_LOOK: Final = svg.style(
    _TEXT,
    {
        "reads": svg.GRAY,
        "partitions": svg.ORANGE,
        "pods": svg.BLUE,
        "sources": svg.PURPLE,
        "cpus": svg.GREEN,
        "fewer": svg.RED,
    },
    {"reads": "2 4", "sources": "9 4", "fewer": "3 3"},
)


def plot() -> str:
    """Return the plot, as it is in docs/."""
    most = Need(10**_LAST, USUAL_BLOCK)
    title = "What a fleet needs"
    load = f"polls each {POLL_SECONDS} s, {DAILY_BYTES >> 20} MiB a day in blocks of {USUAL_BLOCK >> 10} KiB"
    ends = ", ".join(f"{round(line.of(most)):,} {line.label}" for line in _LINES)
    parts = [
        f'<text class="title" x="16" y="26">{title}</text>',
        f'<text class="soft" x="16" y="48">{load}</text>',
        f'<text class="soft" x="{_LABELS}" y="{_TOP - 8}">{most.devices:,} devices:</text>',
        *_grid(),
        *(_path(line) for line in _LINES),
        *_labels(most),
    ]
    description = f"Devices, from {10**_FIRST:,} on, against what they need: {load}. {most.devices:,} need {ends}."
    return svg.document((_WIDTH, _HEIGHT), title, description, _LOOK, parts)


def _grid() -> Iterator[str]:
    for decade in range(_DECADES + 1):
        y = _y(10**decade)
        yield f'<line class="grid" x1="{_LEFT}" x2="{_RIGHT}" y1="{y}" y2="{y}"/>'
        yield f'<text class="soft" x="{_LEFT - 8}" y="{y + 5}" text-anchor="end">{_NAMES[decade]}</text>'
    for decade in range(_FIRST, _LAST + 1):
        x = _x(10**decade)
        yield f'<line class="grid" x1="{x}" x2="{x}" y1="{_TOP}" y2="{_BOTTOM}"/>'
        yield f'<text class="soft" x="{x}" y="{_BOTTOM + 20}" text-anchor="middle">{_NAMES[decade]}</text>'
    yield f'<text class="soft" x="{(_LEFT + _RIGHT) / 2:g}" y="{_BOTTOM + 42}" text-anchor="middle">devices</text>'


def _path(line: _Line) -> str:
    """Return a line, from the last devices on that need one of it."""
    points: list[tuple[float, float]] = []
    for step in range(_STEPS + 1):
        devices = round(10 ** (_FIRST + (_LAST - _FIRST) * step / _STEPS))
        count = line.of(Need(devices, USUAL_BLOCK))
        if count <= 1:
            points.clear()
        points.append((_x(devices), _y(count)))
    return f'<path class="{line.style} line" d="M{" ".join(f"{x:g},{y:g}" for x, y in points)}"/>'


def _labels(most: Need) -> Iterator[str]:
    """Yield the lines' numbers and names beside their ends, none over another."""
    lowest = -math.inf
    for y, line in sorted(((_y(line.of(most)), line) for line in _LINES), key=lambda end: end[0]):
        lowest = max(y, lowest + _LABEL_GAP)
        yield (
            f'<text x="{_LABELS}" y="{lowest + 5:g}"><tspan class="{line.style} value">{round(line.of(most)):,}</tspan>'
            f" {line.label}</text>"
        )


def _x(devices: float) -> float:
    return round(_LEFT + (_RIGHT - _LEFT) * (math.log10(devices) - _FIRST) / (_LAST - _FIRST), 1)


def _y(count: float) -> float:
    return round(_BOTTOM - (_BOTTOM - _TOP) * math.log10(max(count, 1)) / _DECADES, 1)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(plot(), encoding="utf-8")
