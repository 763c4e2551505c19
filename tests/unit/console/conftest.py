"""A console over a cloud with fleets in every state."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import pytest

from fleet_fn.sandbox.cloud import Sandbox
from tests.support.console import Browser, browsing, environment_of
from tests.support.fleets import Story, make_fleet
from tests.support.shop import Shop, opening_shop

#: The applications' devices; `bare` names no firmware and has no device.
DEVICES: Final = {"thermostats": 260, "lights": 150, "hostile": 60, "vending": 40, "bare": 0}


def stories(now: datetime) -> list[Story]:
    """One application that waits, one that is halted, a paused one with hostile names, and one without stages."""
    hours = {count: timedelta(hours=count) for count in (1, 3)}
    return [
        Story("thermostats", DEVICES["thermostats"], 1, now=now),
        Story("lights", DEVICES["lights"], 2, before="1.0.0", version="1.1.0", failing=0.45, max_failed=5, now=now),
        Story("hostile", DEVICES["hostile"], 3, hostile=True, failing=0.2, paused=True, now=now),
        Story("vending", DEVICES["vending"], 4, stages=None, max_failed=None, failing=0, began=hours[3], now=now),
    ]


@pytest.fixture(scope="module")
def fleets() -> Iterator[Browser]:
    """A browser of these fleets, which the console has read; nothing may change them."""
    objects = [each for story in stories(datetime.now(UTC)) for each in make_fleet(story)]
    with (
        Sandbox([*objects, {"metadata": {"name": "bare"}}]) as sandbox,
        browsing(environment_of(sandbox.url)) as browser,
    ):
        browser.wait("/")
        yield browser


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    with opening_shop(tmp_path) as found:
        yield found
