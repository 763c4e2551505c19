"""One browser for all tests of this folder, which one worker runs.

While a browser runs, no other test of the process can run an event loop.
"""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page

from tests.support.chromium import chromium, page_of


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def kept_page(browser: Browser) -> Iterator[Page]:
    """A page for tests that look only: to load another one costs less than a page of its own for each."""
    with page_of(browser) as found:
        yield found


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with page_of(browser) as found:
        yield found
