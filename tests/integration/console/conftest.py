"""What the console's tests share: an OpenID provider for all tests of a file."""

from collections.abc import Iterator

import pytest

from tests.support.openid import Knobs, OpenIdProvider


@pytest.fixture(scope="module")
def shared_provider() -> Iterator[OpenIdProvider]:
    with OpenIdProvider() as provider:
        yield provider


@pytest.fixture
def provider(shared_provider: OpenIdProvider) -> Iterator[OpenIdProvider]:
    yield shared_provider
    shared_provider.knobs = Knobs()
    shared_provider.client.grants = ("authorization_code", "refresh_token")
