"""What the console's tests share: a browser and an OpenID provider for all tests of a file.

While a browser runs, no other test of the process can run an event loop.
"""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page

from tests.support.chromium import chromium, page_of
from tests.support.openid import Knobs, OpenIdProvider


@pytest.fixture(scope="module")
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


@pytest.fixture(scope="module")
def shared_provider() -> Iterator[OpenIdProvider]:
    with OpenIdProvider() as provider:
        yield provider


@pytest.fixture
def provider(shared_provider: OpenIdProvider) -> Iterator[OpenIdProvider]:
    yield shared_provider
    shared_provider.knobs = Knobs()
    shared_provider.client.grants = ("authorization_code", "refresh_token")
