"""A real browser: Debian's Chromium, steered by Playwright."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, Page, sync_playwright

from tests.support.registry import missing

_PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
#: How long a page may take to be as it should be.
PATIENCE_MILLISECONDS = 30_000
#: How many times as fast time runs for consoles, and for pages that poll them: they wait for seconds otherwise.
PACE = 10.0
#: Has the console's script poll so much more often. What it does otherwise takes its time.
_POLL_OFTEN = f"""
{{
  const set = window.setTimeout;
  window.setTimeout = (callback, delay, ...rest) =>
    set(callback, callback.name === "poll" ? delay / {PACE} : delay, ...rest);
}}
"""


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser without a window; the test is skipped without one, or fails where a result decides."""
    program = next(filter(None, map(shutil.which, _PROGRAMS)), None)
    if program is None:
        missing("chromium is not installed: apt-get install chromium")
    # Only a user other than root has the kernel's sandbox; the pages are our own.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=arguments)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def page_of(browser: Browser, *, width: int = 1280, dark: bool = False) -> Iterator[Page]:
    """A page of its own, which polls often, and whose errors and refused resources fail the test."""
    context = browser.new_context(
        viewport={"width": width, "height": 900},
        color_scheme="dark" if dark else "light",
        locale="en-US",
        timezone_id="Europe/Oslo",
        permissions=["clipboard-read", "clipboard-write"],
    )
    context.set_default_timeout(PATIENCE_MILLISECONDS)
    context.add_init_script(_POLL_OFTEN)
    page = context.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if _is_refusal(message.text) else None)
    try:
        yield page
    finally:
        context.close()
    assert not problems, problems


def _is_refusal(text: str) -> bool:
    return "Content Security Policy" in text or "Refused to" in text
