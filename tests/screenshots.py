"""Screenshots for the documentation: `python -m tests.screenshots FOLDER`, or `make pictures`.

They show a console over a sandbox with generated fleets, whose firmware lies in image layouts.
"""

import os
import sys
import tempfile
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from playwright.sync_api import Browser, expect

from fleet_fn.sandbox.cloud import Sandbox
from tests.support.chromium import chromium, page_of
from tests.support.console import environment_of
from tests.support.console_process import serving_console
from tests.support.firmware import publish, random_bytes
from tests.support.fleets import Story, make_fleet

#: Bytes of an image at most.
MAX_BYTES: Final = 200_000
_IMAGE: Final = "thermostat"
_VERSIONS: Final = ("1.3.0", "1.4.0", "1.4.1", "1.4.2", "1.5.0")
#: Names of the images, paths of the pages, and whether a phone shows them in the dark.
_SHOTS: Final = {
    "applications": ("/", False),
    "application": ("/applications/thermostats", False),
    "application-phone": ("/applications/thermostats", True),
    "device": ("/applications/thermostats/device?name={failed}", False),
    "change": ("/applications/thermostats/rollout/pause", False),
}


def take_screenshots(folder: Path) -> list[Path]:
    """Take all screenshots into a folder, and return them.

    Raises:
        ValueError: an image is larger than MAX_BYTES.

    """
    now = datetime.now(UTC)
    stories = [
        Story(now=now, image=_IMAGE),
        Story("meters", 900, seed=2, now=now, stages=None, failing=0.0, image=_IMAGE),
        Story("street-lights", 250, seed=3, now=now, failing=0.3, max_failed=5, image=_IMAGE),
        Story("weather-stations", 60, seed=4, now=now, began=timedelta(days=9), paused=True, image=_IMAGE),
    ]
    objects = [each for story in stories for each in make_fleet(story)]
    with ExitStack() as stack:
        layouts = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fleet-screenshots-")))
        for version in _VERSIONS:
            publish(layouts, _IMAGE, version, random_bytes(184_320, version))
        sandbox = stack.enter_context(Sandbox(objects, user="alice"))
        settings = environment_of(sandbox.url, FIRMWARE_REGISTRY=f"oci-layout:{layouts}", DROGUE_USER="alice")
        url = stack.enter_context(serving_console({**os.environ, **settings}))
        browser = stack.enter_context(chromium())
        failed = _find_failed(browser, url)
        folder.mkdir(parents=True, exist_ok=True)
        return [
            _take(browser, url + path.format(failed=failed), folder / f"{name}.png", is_phone=is_phone)
            for name, (path, is_phone) in _SHOTS.items()
        ]


def _find_failed(browser: Browser, url: str) -> str:
    """Return the name of a device that rolled back."""
    with page_of(browser) as page:
        page.goto(f"{url}/applications/thermostats?state=rolled-back")
        expect(page.locator("[data-reading]")).to_have_count(0, timeout=30_000)
        return page.locator("table.devices td.name").first.inner_text()


def _take(browser: Browser, url: str, file: Path, *, is_phone: bool) -> Path:
    with page_of(browser, width=390 if is_phone else 1280, dark=is_phone) as page:
        page.goto(url)
        expect(page.locator("[data-reading]")).to_have_count(0, timeout=30_000)
        page.screenshot(path=file)
    size = file.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"{file} has {size:,} bytes, more than {MAX_BYTES:,}")
    return file


if __name__ == "__main__":
    for image in take_screenshots(Path(sys.argv[1])):
        sys.stdout.write(f"{image}: {image.stat().st_size:,} bytes\n")
