"""Fixtures: a registry that misbehaves on demand, and functions that read from it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.drogue import Drogue
from tests.support.fake_registry import FakeRegistry
from tests.support.firmware import Published, publish, random_bytes
from tests.support.function import Function
from tests.support.function import running as running_function


@contextmanager
def running(drogue: Drogue, registry: FakeRegistry, cache: Path, **environment: str) -> Iterator[Function]:
    """A function that reads from `registry`, and keeps what it read in the folder `cache`."""
    settings = {**drogue.environment, **registry.environment, "FIRMWARE_CACHE_DIR": str(cache), **environment}
    with running_function(settings) as function:
        yield function
        # Before that there is one of gunicorn's own.
        written = function.errors.partition("Booting worker")[2]
        assert "Warning" not in written, "something was left open, or is deprecated"


def release(registry: FakeRegistry, drogue: Drogue, device: str, size: int = 3000) -> Published:
    """Publish version 1 of a firmware into a repository with the device's name, and have the device run it."""
    drogue.put_image("example", device, f"{device}:1")
    return publish(registry.folder, device, "1", random_bytes(size, device))


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
