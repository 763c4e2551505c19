"""FailureCounter: many devices on which a version fails, and one object that counts them."""

import json
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from fleet_fn.deadline import Deadline
from fleet_fn.drogue.device_registry_api import DeviceRegistryAPI
from fleet_fn.drogue.failure_counter import FailedUpdate, FailureCounter
from fleet_fn.errors import PermanentError, TransientError


class Application(DeviceRegistryAPI):
    """An application's object in memory, with an answer of the next write that is scripted."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {"metadata": {"name": "app"}, "spec": {}}
        self.version = 0
        self.reads = self.writes = 0
        #: Raised by writes; the last one goes on.
        self.errors: list[Exception | None] = [None]
        self.stores = True
        self.is_open = threading.Event()
        self.is_open.set()

    def fetch(self, names: tuple[str, ...], _: Deadline) -> tuple[dict[str, Any], bytes]:
        assert names == ("app",)
        self.reads += 1
        self.is_open.wait()
        text = json.dumps({**self.found, "read": self.version})
        return json.loads(text), text.encode()

    def put(self, names: tuple[str, ...], changed: Mapping[str, Any], _: Deadline) -> bool:
        assert names == ("app",)
        self.writes += 1
        if changed["read"] != self.version:
            return False
        error = self.errors.pop(0) if len(self.errors) > 1 else self.errors[0]
        if error is None or self.stores:
            self.found = json.loads(json.dumps(changed))
            self.version += 1
        if error:
            raise error
        return True

    def fail(self, device: str, version: str = "2") -> None:
        """Have another process count a device."""
        failed = {version: {"count": 1, "devices": [device]}}
        self.found["status"] = {"firmware": {"rollout": {"failed": failed}}}
        self.version += 1

    @property
    def failed(self) -> Any:
        return self.found["status"]["firmware"]["rollout"]["failed"]


@pytest.fixture
def application() -> Application:
    return Application()


@pytest.fixture
def counter(application: Application) -> Iterator[FailureCounter]:
    counter = FailureCounter(application, lambda *_: None)
    yield counter
    assert not counter._waiting, "failures wait that nothing writes"


def record(counter: FailureCounter, device: str, seconds: float = 5.0, *, version: str = "2") -> int | None:
    return counter.record("app", FailedUpdate(device, version, is_first=True), Deadline(seconds))


def test_each_device_is_counted_once(application: Application, counter: FailureCounter) -> None:
    assert [record(counter, device) for device in ("a", "b", "a")] == [1, 2, None]
    assert application.failed == {"2": {"count": 2, "devices": ["a", "b"]}}
    assert application.writes == 2


def test_failures_that_wait_are_written_together(application: Application, counter: FailureCounter) -> None:
    application.is_open.clear()
    devices = [f"device-{number}" for number in range(30)]
    with ThreadPoolExecutor(30) as pool:
        counts = [pool.submit(record, counter, device, version="23"[index % 2]) for index, device in enumerate(devices)]
        limit = time.monotonic() + 20
        while len(counter._waiting.get("app", ())) < 30:
            assert time.monotonic() < limit
            time.sleep(0.001)
        application.is_open.set()
        found = [count.result() for count in counts]
    assert application.writes <= 3
    assert sorted(number for number in found if number) == sorted([*range(1, 16), *range(1, 16)])
    assert {version: entry["count"] for version, entry in application.failed.items()} == {"2": 15, "3": 15}


def test_a_failure_whose_turn_does_not_come_waits_no_longer(application: Application, counter: FailureCounter) -> None:
    application.is_open.clear()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(record, counter, "a")
        while not application.reads:
            time.sleep(0.001)
        with pytest.raises(TransientError, match="no time is left"):
            record(counter, "b", 0.01)
        application.is_open.set()
        assert first.result() == 1
    assert record(counter, "b") == 2


def test_one_failure_has_its_count_although_the_answer_is_lost(
    application: Application, counter: FailureCounter
) -> None:
    application.errors = [TransientError("cut short"), None]
    assert record(counter, "a") == 1
    assert (application.failed, application.writes) == ({"2": {"count": 1, "devices": ["a"]}}, 1)


def test_a_lost_write_is_made_once_more(application: Application, counter: FailureCounter) -> None:
    application.stores = False
    application.errors = [TransientError("cut short"), None]
    assert record(counter, "a") == 1
    assert application.writes == 2
    application.errors = [TransientError("cut short")]
    with pytest.raises(TransientError, match="cut short"):
        record(counter, "b")
    assert application.writes == 4


def test_conflicts_without_end_are_no_lost_answer(
    application: Application, counter: FailureCounter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fleet_fn.drogue.object_editor._MAX_ATTEMPTS", 3)
    monkeypatch.setattr(application, "put", lambda *_: False)
    with pytest.raises(TransientError, match="others keep changing"):
        record(counter, "a")
    assert application.reads == 3


def test_a_write_without_effect_is_not_repeated(application: Application, counter: FailureCounter) -> None:
    application.stores = False
    application.errors = [TransientError("refused").without_effect()]
    with pytest.raises(TransientError, match="refused"):
        record(counter, "a")
    assert application.writes == 1


def test_a_device_that_another_process_counts_first_is_not_counted_twice(
    application: Application, counter: FailureCounter, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = application.put

    def be_late(names: tuple[str, ...], changed: Mapping[str, Any], deadline: Deadline) -> bool:
        monkeypatch.undo()
        application.fail("a")
        return put(names, changed, deadline)

    monkeypatch.setattr(application, "put", be_late)
    assert record(counter, "a") is None
    assert application.failed == {"2": {"count": 1, "devices": ["a"]}}


def test_a_refused_write_is_the_error_of_each(application: Application, counter: FailureCounter) -> None:
    application.stores = False
    application.errors = [PermanentError("refused")]
    with ThreadPoolExecutor(8) as pool:
        counts = [pool.submit(record, counter, f"device-{number}") for number in range(8)]
    for count in counts:
        with pytest.raises(PermanentError, match="refused"):
            count.result()
