"""Ten thousand devices in sync, whose objects the function reads page by page rather than one by one."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from tests.support.drogue import Drogue
from tests.support.firmware import publish, random_bytes
from tests.support.function import Function, event, running
from tests.support.http import Answer, Request, Response

DEVICES = 10_000
IN_SYNC = {"firmware": {"current": "1", "target": "1", "conditions": [{"type": "InSync", "status": "True"}]}}


def name_of(number: int) -> str:
    return f"device-{number:05}"


class Requests:
    """Counts requests that come over the wire, by kind."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def through(self, answer: Answer) -> Answer:
        def count(request: Request) -> Response | None:
            is_list, is_device = "/devices?" in request.path, "/devices/" in request.path
            kind = "page" if is_list else "device" if is_device else "application"
            self.counts["command" if request.method == "POST" else kind] += 1
            return answer(request)

        return count


@pytest.fixture(scope="module")
def wire() -> Requests:
    return Requests()


@pytest.fixture(scope="module")
def fleet(wire: Requests) -> Iterator[Drogue]:
    with Drogue(through=wire.through) as drogue:
        drogue.put_image("idle", None, "idle:1")
        for number in range(DEVICES):
            drogue.put("idle", name_of(number), spec={}, status=IN_SYNC)
        yield drogue


@pytest.fixture(scope="module")
def function(fleet: Drogue, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Function]:
    folder: Path = tmp_path_factory.mktemp("idle")
    publish(folder, "idle", "1", random_bytes(1000, 1))
    more = {"FIRMWARE_REGISTRY": f"oci-layout:{folder}", "FIRMWARE_CACHE_DIR": str(folder / "cache")}
    settings = {"IN_SYNC_TTL_SECONDS": "1800", "REPORT_SEEN_SECONDS": "0", "LOG_LEVEL": "INFO"}
    with running({**fleet.environment, **more, **settings}) as function:
        yield function


def poll(function: Function, number: int) -> str:
    return function.post(event(name_of(number), "idle"), b'{"version": "1"}').outcome


def test_polls_of_ten_thousand_devices_read_pages_instead(wire: Requests, function: Function, fleet: Drogue) -> None:
    random = Random(1)
    for number in random.sample(range(DEVICES), 20):
        assert poll(function, number) == "sync"
    assert wire.counts["device"] == 20
    deadline = time.monotonic() + 120
    while wire.counts["page"] < DEVICES / 100 + 1:
        assert time.monotonic() < deadline, wire.counts
        time.sleep(0.1)
    wire.counts.clear()
    for number in random.sample(range(DEVICES), 500):
        assert poll(function, number) == "sync"
    assert wire.counts["command"] == 500
    assert wire.counts["device"] == wire.counts["page"] == 0

    # A change is noticed at once if its event arrives, and an update starts on what is read for it.
    fleet.put_image("idle", name_of(7), "idle:none")
    change = event(name_of(7), "idle", type="io.drogue.registry.v1", subject="devices", datacontenttype=None)
    assert function.post(change, b"").outcome == "ignored"
    assert poll(function, 7).startswith("failed")
    assert wire.counts["device"] >= 1


def test_a_registry_that_never_lists_holds_up_no_event(tmp_path: Path) -> None:
    asked, may_end = threading.Event(), threading.Event()

    def through(answer: Answer) -> Answer:
        def hold(request: Request) -> Response | None:
            if "/devices?" in request.path:
                asked.set()
                may_end.wait(60)
                return None
            return answer(request)

        return hold

    publish(tmp_path, "idle", "1", random_bytes(1000, 1))
    more = {"FIRMWARE_REGISTRY": f"oci-layout:{tmp_path}", "FIRMWARE_CACHE_DIR": str(tmp_path / "cache")}
    settings = {"IN_SYNC_TTL_SECONDS": "1800", "REPORT_SEEN_SECONDS": "0", "THREADS": "1"}
    with Drogue(through=through) as drogue:
        drogue.put_image("idle", None, "idle:1")
        for number in range(40):
            drogue.put("idle", name_of(number), spec={}, status=IN_SYNC)
        with running({**drogue.environment, **more, **settings}) as function:
            for number in range(20):
                assert poll(function, number) == "sync"
            assert asked.wait(30)
            for number in range(20, 40):
                assert poll(function, number) == "sync"
            assert len(drogue.commands) == 40
        may_end.set()
