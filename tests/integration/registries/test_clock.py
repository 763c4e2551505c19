"""A wall clock that steps by an hour and back changes the ages of events, and nothing else."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import cbor2
import pytest

from tests.support.drogue import Drogue
from tests.support.fake_registry import FakeRegistry, release, running
from tests.support.firmware import Published
from tests.support.function import Answer, Function, event
from tests.support.statuses import STATUS, blocks, in_sync, midway, update

HOUR: Final = timedelta(hours=1)
#: Python imports it before anything else, and asks it for the time from then on.
_SITE: Final = """
import os, time

def stepped(clock, unit):
    def now():
        with open(os.environ["STEP_FILE"]) as file:
            return clock() + unit(file.read()) * (1 if unit is float else 10**9)
    return now

time.time, time.time_ns = stepped(time.time, float), stepped(time.time_ns, int)
"""


class Wall:
    """The wall clock of the machine that a function runs on, as the function sees it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = folder / "step"
        (folder / "sitecustomize.py").write_text(_SITE)
        self.step(timedelta())

    @property
    def environment(self) -> dict[str, str]:
        return {"PYTHONPATH": str(self.folder), "STEP_FILE": str(self._file)}

    def step(self, to: timedelta) -> None:
        """From now on it is off by so much."""
        written = self._file.with_suffix(".new")
        written.write_text(str(int(to.total_seconds())))
        written.replace(self._file)


@pytest.fixture
def wall(tmp_path: Path) -> Wall:
    return Wall(tmp_path)


@pytest.fixture
def stepped(drogue: Drogue, registry: FakeRegistry, wall: Wall, tmp_path: Path) -> Iterator[Function]:
    with running(drogue, registry, tmp_path / "cache", **wall.environment) as function:
        yield function


@pytest.fixture
def released(registry: FakeRegistry, drogue: Drogue, device: str) -> Published:
    """What the device should run, in three blocks."""
    return release(registry, drogue, device, 1300)


def post(function: Function, device: str, status: dict[int, Any], **attributes: str | None) -> Answer:
    return function.post(event(device, datacontenttype="application/cbor", **attributes), cbor2.dumps(status))


@pytest.mark.parametrize("steps", [(HOUR, -HOUR), (-HOUR, HOUR)], ids=["forward first", "back first"])
def test_what_is_remembered_is_remembered_for_as_long(
    stepped: Function,
    drogue: Drogue,
    registry: FakeRegistry,
    wall: Wall,
    device: str,
    released: Published,
    steps: tuple[timedelta, timedelta],
) -> None:
    drogue.put_image("example", f"{device}-missing", f"{device}:missing")
    again = event(device, datacontenttype="application/cbor", time=None)
    assert stepped.post(again, cbor2.dumps(STATUS)).outcome.startswith("write")
    assert post(stepped, f"{device}-missing", STATUS, time=None).status == 422
    reads, asked = drogue.reads_of("example"), len(registry.asked(device))
    for step in steps:
        wall.step(step)
        assert post(stepped, device, midway("1", 1024), time=None).outcome.endswith("offset=1024; size=276")
        assert post(stepped, f"{device}-missing", STATUS, time=None).status == 422
        assert stepped.post(again, cbor2.dumps(STATUS)).outcome == "duplicate"
    assert (drogue.reads_of("example"), len(registry.asked(device))) == (reads, asked)
    assert blocks(drogue, device)[-1] == (1024, released.content[1024:])


def test_by_a_clock_that_is_ahead_events_are_too_old_until_it_is_set_right(
    stepped: Function, drogue: Drogue, wall: Wall, device: str, released: Published
) -> None:
    wall.step(HOUR)
    assert post(stepped, device, STATUS).outcome == "stale"
    assert post(stepped, device, STATUS, time=(datetime.now(UTC) + HOUR).isoformat()).outcome.startswith("write")
    wall.step(timedelta())
    assert update(stepped, drogue, device) == ("1", released.content)


def test_by_a_clock_that_is_behind_an_update_goes_all_the_way(
    stepped: Function, drogue: Drogue, wall: Wall, device: str, released: Published
) -> None:
    assert post(stepped, device, STATUS).outcome.startswith("write")
    wall.step(-HOUR)
    assert update(stepped, drogue, device) == ("1", released.content)
    assert post(stepped, device, in_sync("1")).outcome == "sync"
    assert drogue.reported(device)["update"]["attempts"] == 0
    assert blocks(drogue, device)[-1] == (1024, released.content[1024:])
