"""Fixtures of the unit tests."""

import logging
from collections.abc import Iterator

import pytest

from fleet_fn.observability.log import logger


class _Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def records() -> Iterator[list[logging.LogRecord]]:
    """The records that the project logs during the test; they go nowhere else, whatever the log is configured for."""
    handler, before = _Records(), logger.handlers[:]
    logger.handlers[:] = [handler]
    yield handler.records
    logger.handlers[:] = before
