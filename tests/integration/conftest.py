"""A Drogue Cloud, a folder of firmware and a function between them."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.drogue import Drogue
from tests.support.function import Function


@pytest.fixture(scope="session")
def drogue() -> Iterator[Drogue]:
    with Drogue() as drogue:
        yield drogue


@pytest.fixture(scope="session")
def firmware(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder below which the session's function looks for image layouts."""
    return tmp_path_factory.mktemp("firmware")


@pytest.fixture(scope="session")
def function(drogue: Drogue, firmware: Path) -> Iterator[Function]:
    with Function({**drogue.environment, "FIRMWARE_REGISTRY": f"oci-layout:{firmware}"}) as function:
        yield function
        assert "Traceback" not in "".join(function.log), "the function had an unexpected error"


_numbers = itertools.count(1)


@pytest.fixture
def device(drogue: Drogue) -> str:
    """The name of a device that nobody else uses; it is known, and nothing is desired for it."""
    name = f"device-{next(_numbers)}"
    drogue.put("example", spec={})
    drogue.put("example", name, spec={})
    return name
