"""A shop of pumps: an application whose firmware lies in a layout, and a console for it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from fleet_fn.sandbox.cloud import Sandbox
from tests.support.console import Browser, browsing, environment_of
from tests.support.firmware import publish, random_bytes
from tests.support.sink import Sink, sinking


@dataclass
class Shop:
    """An application whose firmware lies in a layout, and a browser."""

    sandbox: Sandbox
    browser: Browser
    sink: Sink

    def url(self, device: str | None = None) -> str:
        path = f"{self.sandbox.url}/api/registry/v1alpha1/apps/shop"
        return path if device is None else f"{path}/devices/{device}"

    def read(self, device: str | None = None) -> Any:
        return requests.get(self.url(device), auth=("sandbox", "sandbox"), timeout=10).json()

    def write(self, found: Any, device: str | None = None) -> None:
        requests.put(self.url(device), json=found, auth=("sandbox", "sandbox"), timeout=10).raise_for_status()

    @property
    def firmware(self) -> Any:
        return self.read()["spec"]["firmware"]

    @property
    def rollout(self) -> Any:
        return self.read().get("status", {}).get("firmware", {}).get("rollout", {})

    def set_rollout(self, **status: Any) -> None:
        found = self.read()
        found["status"] = {"firmware": {"rollout": status}}
        self.write(found)

    def set_failed(self, count: int) -> None:
        self.set_rollout(version="1.0.0", stage=0, failed={"1.0.0": {"count": count, "devices": []}})

    def set_policy(self, **policy: Any) -> None:
        found = self.read()
        found["spec"]["firmware"]["rollout"] = policy
        self.write(found)

    def event(self) -> Any:
        (received,) = self.sink.received(1)
        assert received.attributes["type"] == "io.drogue.fleet.rollout.v1"
        return received.data


def failed_device(name: str) -> dict[str, Any]:
    """A device that has given 1.0.0 up."""
    conditions = [
        {"type": "InSync", "status": "False", "lastTransitionTime": "2026-11-29T10:00:00Z"},
        {"type": "UpdateFailed", "status": "True", "lastTransitionTime": "2026-11-29T10:00:00Z", "reason": "gave-up"},
    ]
    status = {"current": "0.9.0", "target": "1.0.0", "conditions": conditions}
    return {"metadata": {"application": "shop", "name": name}, "status": {"firmware": status}}


@contextmanager
def opening_shop(folder: Path) -> Iterator[Shop]:
    """Open a shop with versions 1.0.0 and 1.1.0; `folder` gets them."""
    for version in ("1.0.0", "1.1.0"):
        publish(folder, "pump", version, random_bytes(4096, version))
    application = {"metadata": {"name": "shop"}, "spec": {"firmware": {"container": {"image": "pump:1.0.0"}}}}
    devices = [{"metadata": {"application": "shop", "name": f"device{number}"}} for number in range(3)]
    failed = [failed_device("broken1"), failed_device("broken2")]
    with Sandbox([application, *devices, *failed]) as sandbox, sinking() as sink:
        environment = environment_of(sandbox.url, FIRMWARE_REGISTRY=f"oci-layout:{folder}", K_SINK=sink.url())
        with browsing(environment) as browser:
            yield Shop(sandbox, browser, sink)


def wait_for_job(shop: Shop) -> None:
    def is_over(_: str) -> bool:
        job = shop.browser.parts.jobs.last("shop")
        assert job is not None
        assert not job.has_failed, job.result
        return job.ended is not None

    shop.browser.wait("/applications/shop", is_over)
