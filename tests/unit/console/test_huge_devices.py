"""What the console keeps of a device is bounded, whatever stands in its object."""

import tracemalloc
from datetime import UTC, datetime
from typing import Any

from fleet_fn.console.snapshot import DeviceCollector
from fleet_fn.drogue.listing import read_device
from tests.support.shop import failed_device

NOW = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)
DEVICES = 50


def huge_device(number: int) -> Any:
    """A device with all the text that the registry takes."""
    found = failed_device(f"device{number}")
    found["metadata"]["labels"] = {f"{number} {label}": "x" * 200 for label in range(100)} | {"long": "x" * 10_000}
    text = f"{number} " + "y" * 8000
    firmware = found["status"]["firmware"]
    firmware |= {"current": text, "target": f"t{text}"}
    for condition in firmware["conditions"]:
        condition |= {"reason": f"r{text}", "message": f"m{text}"}
    found["spec"] = {"gatewaySelector": {"matchNames": [f"{number} {name} " + "g" * 1000 for name in range(40)]}}
    return found


def test_a_device_with_huge_texts_takes_little_memory() -> None:
    collector = DeviceCollector.of({"metadata": {"name": "shop"}}, NOW)
    tracemalloc.start()
    try:
        for number in range(DEVICES):
            collector.add([read_device(huge_device(number), "shop")])
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept / DEVICES < 50_000


def test_texts_of_an_ordinary_length_stay_as_they_are() -> None:
    collector = DeviceCollector.of({"metadata": {"name": "shop"}}, NOW)
    found = failed_device("device")
    found["metadata"]["labels"] = {"site": "x" * 255, "fleet-rollout": "1.0.0"}
    found["status"]["firmware"] |= {"current": "v" * 255}
    collector.add([read_device(found, "shop")])
    (entry,) = collector.entries
    assert entry.row.current == "v" * 255
    assert entry.labels == found["metadata"]["labels"]
