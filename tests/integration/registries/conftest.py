"""Fixtures: a registry that misbehaves on demand, and functions that read from it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.drogue import Drogue
from tests.support.fake_registry import FakeRegistry, release, running
from tests.support.firmware import Published
from tests.support.function import Function


@pytest.fixture
def released(registry: FakeRegistry, drogue: Drogue, device: str) -> Published:
    """What the device should run."""
    return release(registry, drogue, device)


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeRegistry]:
    """Tests name their repositories after their devices, which nobody else uses."""
    with FakeRegistry(tmp_path_factory.mktemp("registry")) as registry:
        yield registry


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the session's function keeps what it has fetched."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def function(drogue: Drogue, registry: FakeRegistry, cache: Path) -> Iterator[Function]:
    with running(drogue, registry, cache) as function:
        yield function
