"""The plot of the bad version, docs/rollout-simulation.svg: `make plots`."""

import math
import sys
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Final

from tests.bench import svg
from tests.bench.bad_version import BOTH, BRAKE, DEVICES, FAILING, NO_POLICY, POLICIES, STAGES, simulate
from tests.bench.simulation import FRESH_SECONDS, Course, Fleet

#: Below the repository's folder.
PLOT: Final = Path("docs", "rollout-simulation.svg")
SEED: Final = 1

_WIDTH, _HEIGHT = 790, 420
#: The axes: pixels from the left and from the top.
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 560, 74, 360
#: The labels of the lines: pixels from the left.
_LABELS: Final = _RIGHT + 10
#: The time axis.
_MINUTES, _TICK_MINUTES = 30, 5
_DECADES: Final = 5
#: Pixels between two points of a line, and between the middles of two labels at least.
_STEP, _LABEL_GAP = 2, 17


@dataclass(frozen=True, slots=True)
class _Line:
    policy: str
    label: str
    style: str


_LINES: Final = (
    _Line(NO_POLICY, NO_POLICY, "none"),
    _Line(STAGES, "stages 1, 10, 100 %", "stages"),
    _Line(BRAKE, BRAKE, "brake"),
    _Line(BOTH, f"stages and {BRAKE}", "both"),
)
_LOOK: Final = svg.style(
    13,
    {"none": svg.ORANGE, "stages": svg.GREEN, "brake": svg.BLUE, "both": svg.PURPLE},
    {"stages": "9 4", "both": "3 3"},
)


def plot() -> str:
    """Return the plot of the benchmark's bad version, as it is in docs/."""
    wanted = {line.policy: POLICIES[line.policy] for line in _LINES}
    return draw(simulate(Fleet.make(DEVICES, SEED), FAILING, wanted), DEVICES)


def draw(courses: Mapping[str, Course], devices: int) -> str:
    """Return an SVG with the devices that booted a version, over time, under each policy."""
    failing = f"{100 * FAILING:g} %"
    ends = "; ".join(f"{line.label}: {len(courses[line.policy].boots):,}" for line in _LINES)
    title = "Devices that have booted a bad version"
    description = (
        f"Simulation of {devices:,} devices; the version rolls back on {failing} of them. "
        f"In the end, so many have booted it: {ends}."
    )
    parts = [
        f'<text class="title" x="{_LEFT}" y="28">{title}</text>',
        f'<text class="soft" x="{_LEFT}" y="50">Simulation of {devices:,} devices; it rolls back on {failing} of them'
        "</text>",
        f'<text class="soft" x="{_LABELS}" y="50">in the end</text>',
        *_grid(),
        *(_path(line, courses[line.policy]) for line in _LINES),
        *(_halt(line, course) for line in _LINES if (course := courses[line.policy]).halted_at is not None),
        *_labels(courses),
    ]
    return svg.document((_WIDTH, _HEIGHT), title, description, _LOOK, parts)


def _grid() -> Iterator[str]:
    for decade in range(_DECADES + 1):
        y = _y(10**decade)
        yield f'<line class="grid" x1="{_LEFT}" x2="{_RIGHT}" y1="{y}" y2="{y}"/>'
        yield f'<text class="soft" x="{_LEFT - 8}" y="{y + 4}" text-anchor="end">{10**decade:,}</text>'
    for minutes in range(0, _MINUTES + 1, _TICK_MINUTES):
        x = _x(60 * minutes)
        yield f'<text class="soft" x="{x}" y="{_BOTTOM + 22}" text-anchor="middle">{minutes}</text>'
    middle = (_LEFT + _RIGHT) / 2
    yield (
        f'<text class="soft" x="{middle:g}" y="{_BOTTOM + 44}" text-anchor="middle">'
        "minutes since the rollout began</text>"
    )


def _path(line: _Line, course: Course) -> str:
    """Return the line of a policy, from the first device on."""
    points = [(_x(course.boots[0]), _y(1))] if course.boots else []
    for x in range(_LEFT, _RIGHT + 1, _STEP):
        count = bisect_right(course.boots, (x - _LEFT) / (_RIGHT - _LEFT) * 60 * _MINUTES)
        if not count or not points or x <= points[0][0]:
            continue
        y = _y(count)
        if len(points) > 1 and points[-1][1] == points[-2][1] == y:
            points.pop()  # the line goes straight on
        points.append((float(x), y))
    return f'<path class="{line.style} line" d="M{" ".join(f"{x:g},{y:g}" for x, y in points)}"/>'


def _halt(line: _Line, course: Course) -> str:
    halt = (course.halted_at or 0.0) + FRESH_SECONDS
    x, y = _x(halt), _y(len(course.boots))
    return (
        f'<circle class="{line.style} halt" cx="{x:g}" cy="{y:g}" r="5"/>'
        f'<text x="{x - 10:g}" y="{y - 4:g}" text-anchor="end">halts</text>'
    )


def _labels(courses: Mapping[str, Course]) -> Iterator[str]:
    """Yield the labels beside the ends of the lines, and the lines' numbers, none over another."""
    ends = sorted((_y(len(courses[line.policy].boots)), index) for index, line in enumerate(_LINES))
    lowest = -math.inf
    for end, index in ends:
        y = lowest = max(end, lowest + _LABEL_GAP)
        line = _LINES[index]
        count = len(courses[line.policy].boots)
        yield (
            f'<text x="{_LABELS}" y="{y + 4:g}"><tspan class="{line.style} value">{count:,}</tspan> '
            f"{escape(line.label)}</text>"
        )


def _x(seconds: float) -> float:
    return round(_LEFT + (_RIGHT - _LEFT) * seconds / (60 * _MINUTES), 1)


def _y(count: int) -> float:
    return round(_BOTTOM - (_BOTTOM - _TOP) * math.log10(max(count, 1)) / _DECADES, 1)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(plot(), encoding="utf-8")
