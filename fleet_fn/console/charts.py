"""Charts as SVG, made by the server.

They have no style of their own: `charts.css` gives each class its color, light or dark. Texts beside a chart say what
it shows, so that nothing is told by color alone.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from markupsafe import Markup

from fleet_fn.fleet.rows import Row
from fleet_fn.fleet.states import State

#: A part of a bar is at least so wide, in percent: one failed device in 10,000 shows.
_MIN_PERCENT: Final = 0.8
#: Steps of a curve.
_STEPS: Final = 120
#: Share of devices that came too early to set the beginning of a curve: boards of a laboratory, for instance.
_EARLY_SHARE: Final = 0.01


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a stacked bar."""

    name: str
    count: int
    #: The class that gives it its color.
    kind: str
    #: The page that shows its devices; empty if there is none.
    url: str = ""


def draw_bar(parts: Sequence[Part], label: str) -> Markup:
    """Return a stacked bar.

    Args:
        parts: from left to right; those without devices are left out.
        label: what the bar shows.

    """
    shown = [part for part in parts if part.count]
    text = ", ".join(f"{part.count:,} {part.name}" for part in shown) or "no devices"
    rectangles, start = Markup(), 0.0
    for part, percent in zip(shown, _percents([part.count for part in shown]), strict=True):
        rectangles += Markup(
            '<rect class="fill-{}" x="{}%" y="0" width="{}%" height="100%"><title>{}</title></rect>'
        ).format(part.kind, f"{start:.3f}", f"{percent:.3f}", f"{part.name}: {part.count:,}")
        start += percent
    return Markup('<svg class="bar" role="img" aria-label="{}: {}">{}</svg>').format(label, text, rectangles)


def _percents(counts: Sequence[int]) -> list[float]:
    """Return shares of the whole in percent, none of them too small to be seen."""
    total = sum(counts)
    raised = [max(100 * count / total, _MIN_PERCENT) for count in counts]
    return [100 * percent / sum(raised) for percent in raised]


@dataclass(frozen=True, slots=True)
class Curve:
    """How many devices got a version since its rollout began, by their own times."""

    began: datetime
    ended: datetime
    #: Numbers after each step of the same length, the first one at the beginning.
    in_sync: Sequence[int]
    failed: Sequence[int]

    @property
    def top(self) -> int:
        """The highest number."""
        return self.in_sync[-1] + self.failed[-1]


def trace(rows: Iterable[Row], version: str, began: datetime | None, now: datetime) -> Curve | None:
    """Return the curve of a version; None if no device shows a result.

    Args:
        rows: devices.
        version: the version.
        began: when its rollout began; None if that is not known.
        now: the time of the rows.

    """
    in_sync, failed = [], []
    for row in rows:
        if row.since is None:
            continue
        if row.state is State.IN_SYNC and row.current == version:
            in_sync.append(row.since)
        elif row.target == version and (row.state is State.ROLLED_BACK or (row.state is State.FAILED and row.gave_up)):
            failed.append(row.since)
    times = sorted((*in_sync, *failed))
    if not times:
        return None
    start = min(began or times[int(len(times) * _EARLY_SHARE)], now - timedelta(minutes=1))
    return Curve(start, now, _accumulate(in_sync, start, now), _accumulate(failed, start, now))


def _accumulate(times: Iterable[datetime], start: datetime, end: datetime) -> list[int]:
    """Return how many of the times have come after each step."""
    length = (end - start) / _STEPS
    steps = Counter(min(max(-((start - time) // length), 0), _STEPS) for time in times)
    total, sums = 0, []
    for step in range(_STEPS + 1):
        total += steps[step]
        sums.append(total)
    return sums


def draw_curve(curve: Curve, drawn: int, stage_since: datetime | None = None) -> Markup:
    """Return a curve as stacked areas.

    Args:
        curve: the curve.
        drawn: devices that the rollout has let in; a line across.
        stage_since: when its stage began; a line upright. None if that is not known.

    """
    top = top_of(curve, drawn)
    both = [good + bad for good, bad in zip(curve.in_sync, curve.failed, strict=True)]
    lines = Markup()
    for share in (0.0, 0.5, 1.0):
        y = f"{100 * (1 - share):.0f}%"
        lines += Markup('<line class="grid" x1="0" x2="100%" y1="{0}" y2="{0}"/>').format(y)
    if stage_since and curve.began < stage_since < curve.ended:
        x = f"{100 * ((stage_since - curve.began) / (curve.ended - curve.began)):.2f}%"
        lines += Markup('<line class="line-stage" x1="{0}" x2="{0}" y1="0" y2="100%"/>').format(x)
    label = (
        f"{curve.in_sync[-1]:,} devices in sync, {curve.failed[-1]:,} rolled back or failed, "
        f"{drawn:,} let in by the rollout"
    )
    return Markup(
        '<svg class="curve" role="img" aria-label="{}">{}'
        '<svg viewBox="0 0 {} 100" preserveAspectRatio="none" width="100%" height="100%">'
        '<path class="fill-failed" d="{}"/><path class="area-in-sync" d="{}"/><path class="line-in-sync" d="{}"/>'
        '<path class="line-drawn" d="M0 {}H{}"/></svg></svg>'
    ).format(
        label,
        lines,
        _STEPS,
        _area(both, top),
        _area(curve.in_sync, top),
        _line(curve.in_sync, top),
        f"{_height(drawn, top):.2f}",
        _STEPS,
    )


def draw_meter(share: float, kind: str, mark: float = 0.0) -> Markup:
    """Return a thin bar, filled up to a share of it; texts beside it have the numbers.

    Args:
        share: from 0 to 1.
        kind: the class that gives it its color.
        mark: share that is marked; 0 for none.

    """
    line = Markup('<line x1="{0}%" x2="{0}%" y1="0" y2="100%"/>').format(f"{100 * mark:.3f}") if mark else ""
    return Markup(
        '<svg class="meter" aria-hidden="true"><rect class="track" width="100%" height="100%"/>'
        '<rect class="fill-{}" width="{}%" height="100%"/>{}</svg>'
    ).format(kind, f"{100 * min(max(share, 0.0), 1.0):.3f}", line)


def top_of(curve: Curve, drawn: int) -> int:
    """Return the top of a curve's axis."""
    return nice_top(max(curve.top, drawn))


def nice_top(number: int) -> int:
    """Return the top of an axis: an even number of few digits, not below a number."""
    unit = 1
    while number > 20 * unit:
        unit *= 10
    return next(digits * unit for digits in (2, 4, 6, 8, 10, 12, 16, 20) if digits * unit >= number)


def _line(numbers: Sequence[int], top: int) -> str:
    steps = " ".join(f"{step} {_height(number, top):.2f}" for step, number in enumerate(numbers))
    return f"M{steps}"


def _area(numbers: Sequence[int], top: int) -> str:
    return f"{_line(numbers, top)} {_STEPS} 100 0 100Z"


def _height(number: int, top: int) -> float:
    return 100 - 100 * number / top
