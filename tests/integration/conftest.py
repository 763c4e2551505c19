"""A Drogue Cloud, a folder of firmware and a function between them; and a registry."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.drogue import Drogue
from tests.support.function import Function, running
from tests.support.registry import DockerRegistry, Skopeo, need


@pytest.fixture(scope="session")
def drogue() -> Iterator[Drogue]:
    with Drogue() as drogue:
        yield drogue


@pytest.fixture(scope="session")
def firmware(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder below which the session's function looks for image layouts."""
    return tmp_path_factory.mktemp("firmware")


@pytest.fixture(scope="session")
def environment(drogue: Drogue, firmware: Path) -> dict[str, str]:
    """Settings of a function between that Drogue Cloud and that folder."""
    return {**drogue.environment, "FIRMWARE_REGISTRY": f"oci-layout:{firmware}"}


@pytest.fixture(scope="session")
def function(environment: dict[str, str]) -> Iterator[Function]:
    with running(environment) as function:
        yield function


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests whose peers are not installed are skipped; from here, so that one line tells of all of them."""
    peers = {"_has_docker_registry": "docker-registry", "skopeo": "skopeo", "promtool": "promtool"}
    for fixture, program in peers.items():
        if fixture in getattr(item, "fixturenames", ()):
            need(program)


@pytest.fixture(scope="session")
def _has_docker_registry() -> None:
    """For whatever starts a registry of its own."""


@pytest.fixture(scope="session")
def docker_registry(_has_docker_registry: None) -> Iterator[DockerRegistry]:
    """A real registry, by plain HTTP, that lets everybody in. Repositories are for each test its own."""
    with DockerRegistry() as registry:
        yield registry


@pytest.fixture(scope="session")
def host_with_api() -> Iterator[str]:
    """The host of a registry that lists referrers itself, as docker-registry does not."""
    from tests.support.cosign import PEER_REGISTRY, need_peer, peer_registry  # slow to import, for a few tests

    need_peer(PEER_REGISTRY)
    with peer_registry() as host:
        yield host


@pytest.fixture(scope="session")
def skopeo(tmp_path_factory: pytest.TempPathFactory) -> Skopeo:
    return Skopeo(tmp_path_factory.mktemp("skopeo"))


_numbers = itertools.count(1)


@pytest.fixture
def device(drogue: Drogue) -> str:
    """The name of a device that nobody else uses; it is known, and nothing is desired for it."""
    name = f"device-{next(_numbers)}"
    drogue.put("example", spec={})
    drogue.put("example", name, spec={})
    return name
