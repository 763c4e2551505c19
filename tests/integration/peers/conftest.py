"""Whole updates through programs of others, which `make peers` gets and drives."""

import os

import pytest

from tests.peers.catalog import MARK


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip them elsewhere: most of these programs take minutes to get."""
    del item
    if MARK not in os.environ:
        pytest.skip("make peers runs it")
