"""The displays of `fleet` in a terminal: what fits, and what cannot steer it."""

import io
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.live import Live

from fleet_fn.cli.fleet_terminal import Screen, TerminalSummary, TerminalTable
from fleet_fn.cli.fleet_view import Selection
from fleet_fn.fleet.rollout_numbers import RolloutNumbers
from fleet_fn.fleet.rows import Row
from fleet_fn.fleet.states import State
from fleet_fn.fleet.stops import Stop, StopKind
from fleet_fn.fleet.survey import Summary
from fleet_fn.fleet.totals import Totals

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
ALL = Selection("shop")
ROLLOUT = RolloutNumbers("0.1.1", 10.0, 5000, 509, 280, 73, 12, 1, 3)


def terminal(width: int = 80, *, height: int = 24, color: bool = False, **variables: str) -> Console:
    return Console(
        width=width,
        height=height,
        file=io.StringIO(),
        force_terminal=True,
        color_system="standard" if color else None,
        highlight=False,
        markup=False,
        emoji=False,
        legacy_windows=False,
        _environ={"TERM": "xterm", **variables},
    )


def plain(text: str) -> list[str]:
    """The lines of a terminal's output without styles; no other escape sequence is in it."""
    found = re.sub(r"\x1b\[[0-9;]*m", "", text).split("\n")
    assert all(line.isprintable() for line in found), text
    return found


def table(*rows: Row, width: int = 80, pages: Sequence[Sequence[Row]] = (), **more: Any) -> list[str]:
    """The lines of a table of these rows, without the numbers below."""
    texts: list[str] = []
    shown = TerminalTable(ALL, texts.append, now=NOON, console=terminal(width, **more))
    for page in pages or [rows]:
        shown.show(page)
    found = plain("\n".join(texts)) if texts else []
    assert all(cell_len(line) <= width for line in found)
    return found


def row(name: str, state: State, reason: str | None = None, message: str | None = None, **more: Any) -> Row:
    fields = {"since": NOON, "current": "0.1.0", "target": "0.1.1", "in_sync": state is State.IN_SYNC, **more}
    return Row(name, state, reason, message, **fields)


ROWS = [
    row("lamp", State.IN_SYNC, current="0.1.1", since=NOON - timedelta(days=3)),
    row("gate", State.UPDATING, "writing", "37.50 % written", since=NOON - timedelta(minutes=3)),
    row("till", State.HELD, "rollout", "not among the 10 % of devices", since=NOON - timedelta(hours=3)),
    row("sink", State.ROLLED_BACK, "backoff", "0.1.1 did not come up, attempts: 1 of 3"),
    row("door", State.FAILED, "OCI registry ghcr.io", "no such tag", target="Unknown"),
    Row("new", message="never reported"),
]


def test_table_fits_80_columns() -> None:
    assert table(*ROWS) == [
        "DEVICE  STATE        VERSION           FOR  DETAILS",
        "lamp    in-sync      0.1.1              3d",
        "gate    updating     0.1.0 → 0.1.1      3m  37.50 % written",
        "till    held         0.1.0 → 0.1.1      3h  rollout: not among the 10 % of",
        "                                            devices",
        "sink    rolled-back  0.1.0 → 0.1.1      0s  did not come up, attempts: 1 of 3",
        "door    failed       0.1.0 → Unknown    0s  OCI registry ghcr.io: no such tag",
        "new     unknown                             never reported",
    ]


@pytest.mark.parametrize("width", [30, 43, 44, 63, 64, 80, 120, 250])
def test_table_fits_a_terminal_of_any_width(width: int) -> None:
    long = row("l" * 200, State.FAILED, "x" * 100, "word " * 300, current="1" * 300, target="温" * 300)
    wide = row("温" * 200, State.HELD, "温" * 50, "x" * 3000)
    found = table(*ROWS, long, wide, width=width)
    assert ("VERSION" in found[0], "FOR" in found[0]) == (width >= 64, width >= 44)
    assert sum(line.startswith("ll") for line in found) == 3  # a name has three lines at most


def test_long_name_is_wrapped_and_its_end_stays() -> None:
    found = table(row("device-with-a-name-of-43-characters-000000017", State.IN_SYNC), width=80)
    assert "".join(line.split("  ")[0] for line in found[1:]) == "device-with-a-name-of-43-characters-000000017"
    found = table(row("d" * 200 + "-17", State.IN_SYNC), width=80)
    assert len(found) == 4
    assert found[3].endswith("-17")
    assert "…" in found[2]


def test_long_details_end_with_an_ellipsis() -> None:
    found = table(row("lamp", State.FAILED, "word " * 100), width=80)
    assert len(found) == 6
    assert found[5].endswith("…")


def test_error_of_a_key_is_not_cut() -> None:
    reason = "the device's spec.firmware.rollout.stages[1].percent is 10; it must be a number from 50 to 100"
    found = table(row("device7", State.FAILED, reason, target="Unknown"), width=80)
    assert found[-1].endswith("from 50 to 100")


def test_wide_characters_and_marks_are_aligned() -> None:
    found = table(
        row("温度計", State.IN_SYNC), row("ku\N{COMBINING DIAERESIS}che", State.IN_SYNC), row("gate", State.IN_SYNC)
    )
    assert {cell_len(line[: line.index("in-sync")]) for line in found[1:]} == {8}


def test_later_pages_keep_the_columns_of_the_first() -> None:
    found = table(pages=[[row("gate", State.IN_SYNC)], [], [row("l" * 14, State.IN_SYNC)], [row("x", State.IN_SYNC)]])
    assert [line.split()[0] for line in found] == ["DEVICE", "gate", "llllll", "llllll", "ll", "x"]
    assert found[5].index("in-sync") == found[1].index("in-sync")


@pytest.mark.parametrize(
    "evil", ["\x1b[2J\x1b[31m", "\x9b2J", "\u202egnp.exe", "\u2066x", "a\r\nb", "\x07\x08", "\ud800"]
)
def test_text_cannot_steer_the_terminal(evil: str) -> None:
    bad = row(evil, State.FAILED, evil, evil, current=evil, target=evil)
    found = table(bad, width=120, color=True)
    assert len(found) == 2
    texts: list[str] = []
    totals = Totals()
    totals.add([bad])
    TerminalSummary(Selection(evil, labels=evil), texts.append, console=terminal(color=True)).end(
        Summary(totals, rollout_problem=evil)
    )
    assert len(plain(texts[0])) > 5


def test_markup_and_emoji_codes_are_shown_as_they_are() -> None:
    found = table(row("[red]x[/red]:smile:", State.FAILED, "[link=https://x]y[/link]", "[bold]"), width=120)
    assert found[1].startswith("[red]x[/red]:smile:  failed")
    assert found[1].endswith("[link=https://x]y[/link]: [bold]")


def test_states_have_colors_unless_the_user_wants_none() -> None:
    texts: list[str] = []
    TerminalTable(ALL, texts.append, now=NOON, console=terminal(color=True)).show([row("lamp", State.ROLLED_BACK)])
    assert "\x1b[31mrolled-back" in texts[0]
    texts.clear()
    TerminalTable(ALL, texts.append, now=NOON, console=terminal(color=True, NO_COLOR="1")).show(
        [row("lamp", State.HELD)]
    )
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", texts[0])


def test_application_without_devices_has_no_table() -> None:
    assert table() == []


# --- The summary ------------------------------------------------------------------------------------------------------


def summarized(totals: Totals, width: int = 80, **more: Any) -> list[str]:
    texts: list[str] = []
    TerminalSummary(ALL, texts.append, console=terminal(width)).end(Summary(totals, **more))
    found = plain("\n".join(texts))
    assert all(cell_len(line) <= width for line in found)
    return found


def fleet(**counts: int) -> Totals:
    totals = Totals()
    for name, count in counts.items():
        totals.add([row("x", State(name.replace("_", "-")), "backoff")] * count)
    return totals


def test_summary_has_bars_versions_and_the_rollout() -> None:
    assert summarized(fleet(failed=30, rolled_back=1667, in_sync=3303), rollout=ROLLOUT) == [
        "5,000 devices of shop",
        "",
        "failed          30     0.6 %  ▏                 backoff 30",
        "rolled-back  1,667   33.34 %  █████▎            backoff 1,667",
        "stalled          0",
        "held             0",
        "updating         0",
        "in-sync      3,303   66.06 %  ██████████▌",
        "unknown          0",
        "",
        "version  run it  should run it",
        "0.1.1         0          5,000",
        "0.1.0     5,000              0",
        "",
        "rollout of 0.1.1 to 10 %, stage 2 of 3: 509 of 5000 devices drawn; of these 280",
        "in-sync, 73 rolled-back, 12 failed, success 76.71 %",
    ]


def test_summary_says_why_the_rollout_has_stopped() -> None:
    found = summarized(fleet(held=2), rollout=replace(ROLLOUT, stop=Stop(StopKind.PAUSED, "updates are paused")))
    assert found[-3] == "rollout paused: updates are paused (rollout resume ends that)"


@pytest.mark.parametrize("width", [30, 50, 80, 200])
def test_summary_fits_a_terminal_of_any_width(width: int) -> None:
    totals = fleet(failed=123_456)
    totals.add(Row(str(n), State.FAILED, "reason " * 9, current=f"{n}" * 40, target="温" * 99) for n in range(30))
    found = summarized(totals, width, rollout=ROLLOUT)
    assert any(line.startswith("and 25 more") for line in found)


# --- The screen -------------------------------------------------------------------------------------------------------


class Drawn:
    """A screen, and what was last drawn on it."""

    def __init__(self, width: int = 80, height: int = 24, selection: Selection = ALL) -> None:
        self.console = terminal(width, height=height)
        self.live = Live(console=self.console, auto_refresh=False)
        self.screen = Screen(selection, self.live)
        self.height = height

    def read(self, rows: Sequence[Row], **more: Any) -> None:
        totals = Totals()
        self.screen.show(rows)
        totals.add(rows)
        self.screen.end(Summary(totals, **more))

    def lines(self) -> list[str]:
        self.screen.wait(0.01)
        return self.rendered()

    def rendered(self) -> list[str]:
        rendered = self.console.render_lines(self.live.renderable, pad=False)
        found = plain("\n".join("".join(segment.text for segment in line).rstrip() for line in rendered))
        assert len(found) <= self.height
        assert all(cell_len(line) <= self.console.width for line in found)
        return found


def many(count: int) -> list[Row]:
    return [
        row(f"device-{number:05}", State.ROLLED_BACK, "backoff", since=NOON + timedelta(seconds=number))
        for number in range(count)
    ]


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 60), (40, 30), (80, 12), (30, 5)])
def test_screen_fits_the_terminal(width: int, height: int) -> None:
    drawn = Drawn(width, height)
    drawn.read(many(5000), rollout=ROLLOUT)
    found = drawn.lines()
    if height >= 24:
        assert sum(line.startswith("device-") for line in found) > 1
        assert any(line.endswith(" more") for line in found)


def test_screen_shows_what_needs_attention_with_the_latest_first() -> None:
    drawn = Drawn()
    drawn.read([*ROWS, *many(2)])
    found = drawn.lines()
    table = found[next(n for n, line in enumerate(found) if line.startswith("DEVICE")) :]
    assert [line.split()[0] for line in table[1:5]] == ["door", "device-00001", "sink", "device-00000"]
    assert table[5] == ""
    assert table[-1].endswith("reading…; Ctrl-C ends")


def test_screen_without_trouble_shows_no_device() -> None:
    drawn = Drawn()
    drawn.read(ROWS[:3])
    assert not any(line.startswith("DEVICE") for line in drawn.lines())


def test_screen_shows_the_states_that_are_asked_for() -> None:
    drawn = Drawn(selection=Selection("shop", states=frozenset([State.UPDATING])))
    drawn.read(ROWS)
    assert any(line.startswith("gate  ") for line in drawn.lines())


def test_screen_keeps_the_last_reading_and_tells_of_a_failure() -> None:
    drawn = Drawn()
    drawn.read(ROWS)
    drawn.screen.show(many(9))
    drawn.screen.break_off("x")
    drawn.screen.complain("device registry: answered 503\x1b[2J" + "x" * 300)
    found = drawn.lines()
    assert any(line.startswith("device registry: answered 503\N{REPLACEMENT CHARACTER}") for line in found)
    assert any(line.startswith("6 devices of shop") for line in found)
    drawn.read(ROWS)
    assert not any("answered 503" in line for line in drawn.lines())


def test_screen_counts_while_it_reads() -> None:
    drawn = Drawn()
    drawn.screen.count(1200)
    assert any("reading… 1200; Ctrl-C ends" in line for line in drawn.rendered())


def test_screen_has_nothing_to_leave_before_a_complete_reading() -> None:
    assert Drawn().screen.last() is None
