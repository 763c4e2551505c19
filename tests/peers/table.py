"""What came out, in 80 columns."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tests.peers.courses import Course
from tests.peers.drive import Result

Rows = Mapping[tuple[str, str], Sequence[tuple[Course, Result]]]
_FORMAT: Final = "{:<12} {:<22} {:>4} {:>7} {:>7} {:>5} {:>6} {:>6} {:>3}"
HEAD: Final = _FORMAT.format("device", "scenario", "runs", "arrived", "bricked", "wrong", "exch.", "least", "cut")


@dataclass(frozen=True)
class Sum:
    """A row of the table."""

    runs: int
    arrived: int
    bricked: int
    wrong: int
    exchanges: int
    least: int
    helped: int

    @staticmethod
    def of(outcomes: Iterable[tuple[Course, Result]]) -> "Sum":
        """The sum of what came out of some courses."""
        outcomes = list(outcomes)
        results = [result for _, result in outcomes]
        return Sum(
            len(outcomes),
            sum(result.arrived for result in results),
            sum(result.bricked for result in results),
            sum(result.wrong for result in results),
            sum(result.exchanges for result in results),
            sum(course.least for course, _ in outcomes),
            sum(result.helped for result in results),
        )


def line(board: str, scenario: str, outcomes: Sequence[tuple[Course, Result]]) -> str:
    """A line of the table; `-` where nobody is to arrive."""
    row = Sum.of(outcomes)
    arrived = row.arrived if any(course.arrives for course, _ in outcomes) else "-"
    return _FORMAT.format(
        board, scenario, row.runs, arrived, row.bricked, row.wrong, row.exchanges, row.least, row.helped
    )


def is_right(course: Course, result: Result) -> bool:
    """Whether a course ended as it has to."""
    return not (result.bricked or result.wrong) and result.arrived == course.arrives
