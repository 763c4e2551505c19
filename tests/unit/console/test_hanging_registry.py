"""The OCI registry hangs: users still see rollouts, and still stop them."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet_fn.console import parts
from fleet_fn.sandbox.cloud import Sandbox
from tests.support.console import Browser, browsing, environment_of
from tests.support.fake_registry import FakeRegistry
from tests.support.http import Request

PATIENCE = 20.0
APPLICATIONS = 12
SPEC = {"firmware": {"container": {"image": "pump:1.1.0"}, "rollout": {"stages": [{"percent": 1}, {"percent": 100}]}}}
ROLLOUT = {"version": "1.1.0", "stage": 0, "previous": {"container": {"image": "pump:1.0.0"}, "version": "1.0.0"}}


@pytest.fixture
def browser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Browser]:
    monkeypatch.setattr(parts, "_QUICK_SECONDS", 0.5)
    release = threading.Event()

    def hang(_: Request) -> None:
        release.wait(PATIENCE)

    objects = [
        {"metadata": {"name": f"shop{number}"}, "spec": SPEC, "status": {"firmware": {"rollout": ROLLOUT}}}
        for number in range(APPLICATIONS)
    ]
    with FakeRegistry(tmp_path / "layout") as registry, Sandbox(objects) as sandbox:
        registry.answers["pump"] = hang
        environment = environment_of(sandbox.url, **registry.environment)
        try:
            with browsing(environment) as found:
                yield found
                release.set()
        finally:
            release.set()


def test_rollouts_are_stopped_all_the_same(browser: Browser) -> None:
    began = time.monotonic()
    assert browser.confirm("/applications/shop0/rollout/abort").status_code == 303
    assert time.monotonic() - began < 4


def test_all_applications_are_read_all_the_same(browser: Browser) -> None:
    began = time.monotonic()
    browser.wait("/")
    page = browser.wait("/applications/shop1")
    assert time.monotonic() - began < 6
    assert "The target may be another by now: OCI registry" in page
