"""What each process remembers of a hawkBit, and that it does no device harm."""

import itertools
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import cbor2
import pytest

from fleet_fn.deadline import Deadline
from fleet_fn.drogue.listing import Device
from fleet_fn.fleet.rows import Row, read_row
from fleet_fn.fleet.states import State
from fleet_fn.settings import Settings
from tests.support.ddi import Action, FakeHawkbit, module
from tests.support.ddi.fake import TENANT, answering
from tests.support.ddi.fake import TOKEN as GATEWAY_TOKEN
from tests.support.drogue import TOKEN, USER, Drogue
from tests.support.firmware import random_bytes
from tests.support.function import event
from tests.support.http import Response
from tests.support.pod import Pod, wall
from tests.support.statuses import STATUS, in_sync, midway
from tests.support.timing import Clock

SIZE = 3200
POLL = 300
_numbers = itertools.count(1)


class Fleet:
    """Processes of the function, each with a memory of its own, and one device."""

    def __init__(self, drogue: Drogue, hawkbit: FakeHawkbit, folder: Path) -> None:
        self.clock = Clock()
        self.device = f"memory-{next(_numbers)}"
        self.controller = f"example.{self.device}"
        self._hawkbit = hawkbit
        self._settings = Settings(
            drogue_api_url=drogue.url,
            drogue_user=USER,
            drogue_token=TOKEN,
            hawkbit_url=hawkbit.url,
            hawkbit_tenant=TENANT,
            hawkbit_gateway_token=GATEWAY_TOKEN,
            firmware_cache_dir=str(folder),
            poll_seconds=POLL,
        )
        self._pods: list[Pod] = []
        drogue.put("example", spec={})
        drogue.put("example", self.device, spec={"firmware": {"hawkbit": {"controller": self.controller}}})

    def pod(self) -> Pod:
        self._pods.append(Pod(self._settings, self.clock))
        return self._pods[-1]

    def close(self) -> None:
        for pod in self._pods:
            pod.close()

    def assign(self, version: str = "1.0", **options: str) -> Action:
        firmware = module(version, random_bytes(SIZE, ("memory", version)))
        return self._hawkbit.assign(self.controller, firmware, **options)

    def post(
        self, pod: Pod, status: dict[int, object] = STATUS, after: float = 2.0, deadline: Deadline | None = None
    ) -> str:
        """The outcome of a status that comes a while later."""
        self.clock.now += after
        time = wall(self.clock).isoformat()
        attributes = event(self.device, datacontenttype="application/cbor", time=time)
        outcome = pod.answer(attributes, cbor2.dumps(status), deadline)
        return f"{outcome.name} {outcome.reason or outcome.version or ''}".rstrip()


@pytest.fixture(scope="module")
def hawkbit() -> Iterator[FakeHawkbit]:
    with FakeHawkbit() as hawkbit:
        yield hawkbit


@pytest.fixture
def fleet(drogue: Drogue, hawkbit: FakeHawkbit, tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(drogue, hawkbit, tmp_path)
    yield fleet
    fleet.close()


def test_a_canceled_update_does_not_go_on_by_its_record(fleet: Fleet, hawkbit: FakeHawkbit) -> None:
    action, pod = fleet.assign(), fleet.pod()
    assert fleet.post(pod) == "write 1.0"
    hawkbit.cancel(action)
    assert fleet.post(pod, midway("1.0", 512), after=POLL) == "withheld unmanaged"
    assert not action.active
    for _ in range(3):
        assert fleet.post(pod, midway("1.0", 512)) == "withheld unmanaged"


def test_an_assignment_after_a_canceled_one_starts_at_once(fleet: Fleet) -> None:
    fleet.assign()
    pod = fleet.pod()
    assert fleet.post(pod) == "write 1.0"
    fleet.assign("2.0")
    assert fleet.post(pod, midway("1.0", 512), after=POLL) == "withheld unmanaged"
    assert fleet.post(pod, midway("1.0", 512)) == "write 2.0"


@pytest.mark.parametrize("options", [{}, {"status": "wait_for_confirmation"}])
def test_an_older_memory_does_not_stop_a_device_midway(
    fleet: Fleet, hawkbit: FakeHawkbit, options: dict[str, str]
) -> None:
    first, second = fleet.pod(), fleet.pod()
    before = fleet.assign(**options) if options else None
    assert fleet.post(second).startswith("withheld")
    if before:
        hawkbit.confirm(before)
    else:
        fleet.assign()
    assert fleet.post(first) == "write 1.0"
    fleet.clock.now += 20  # the device's object is read again
    asked = len(hawkbit.requests)
    for offset in range(512, SIZE, 512):
        assert fleet.post(second, midway("1.0", offset)) == "write 1.0"
    bases = [request for request in hawkbit.requests[asked:] if request.path.endswith(fleet.controller)]
    assert len(bases) == 1


@pytest.mark.parametrize("status", [409, 500])
def test_feedback_that_is_refused_leaves_out_no_other(fleet: Fleet, hawkbit: FakeHawkbit, status: int) -> None:
    action, pod = fleet.assign(), fleet.pod()
    with answering(hawkbit, "feedback", lambda _: Response(status)):
        assert fleet.post(pod) == "write 1.0"
    assert fleet.post(pod, midway("1.0", SIZE), after=1.0) == "swap 1.0"
    assert action.told == ["downloaded"]


def test_an_event_without_time_for_feedback_leaves_out_no_other(fleet: Fleet, drogue: Drogue) -> None:
    action, pod = fleet.assign(), fleet.pod()
    deadline = Deadline(60.0, lambda: 60.0 if drogue.commands_for(fleet.device) else 0.0)
    assert fleet.post(pod, deadline=deadline) == "write 1.0"
    assert action.told == []
    assert fleet.post(pod, midway("1.0", SIZE), after=1.0) == "swap 1.0"
    assert action.told == ["downloaded"]


def test_a_finished_download_is_told_again_as_long_as_its_action_is_open(fleet: Fleet, hawkbit: FakeHawkbit) -> None:
    action, pod = fleet.assign(type="downloadonly"), fleet.pod()
    assert fleet.post(pod) == "write 1.0"
    with answering(hawkbit, "feedback", lambda _: Response(503)):
        assert fleet.post(pod, midway("1.0", SIZE)) == "withheld window"
    assert action.active
    assert fleet.post(pod, midway("1.0", SIZE), after=POLL) == "withheld window"
    assert (action.active, action.told) == (False, ["download", "downloaded"])
    assert fleet.post(pod, midway("1.0", SIZE), after=POLL) == "withheld unmanaged"


def test_a_finished_download_is_not_told_again_for_the_sake_of_a_window(fleet: Fleet) -> None:
    action, pod = fleet.assign(window="unavailable"), fleet.pod()
    assert fleet.post(pod) == "write 1.0"
    for _ in range(5):
        assert fleet.post(pod, midway("1.0", SIZE), after=POLL) == "withheld window"
    assert action.told == ["download", "downloaded"]


def test_swap_is_for_the_bytes_that_the_action_has_now(fleet: Fleet) -> None:
    action, pod = fleet.assign(), fleet.pod()
    assert fleet.post(pod) == "write 1.0"
    for _ in range(3):  # hawkBit's link to the action changes with the first readings
        assert fleet.post(pod, midway("1.0", SIZE)) == "swap 1.0"
    action.modules = (module("1.0", random_bytes(SIZE, "replaced")),)
    assert fleet.post(pod, midway("1.0", SIZE)) == "write 1.0", "it begins anew"


@pytest.mark.parametrize("status", [404, 410])
def test_an_installed_action_may_be_gone(fleet: Fleet, hawkbit: FakeHawkbit, status: int) -> None:
    fleet.assign()
    assert fleet.post(fleet.pod(), in_sync("1.0")) == "sync"
    with answering(hawkbit, "installedBase", lambda _: Response(status)):
        assert fleet.post(fleet.pod(), in_sync("1.0")) == "withheld unmanaged"


def row_of(fleet: Fleet, drogue: Drogue) -> Row:
    known = drogue.object("example", fleet.device)
    return read_row(Device(fleet.device, known.get("status", {})), wall(fleet.clock) + timedelta(days=1))


@pytest.mark.parametrize("options", [{}, {"status": "wait_for_confirmation"}])
def test_the_status_of_a_device_tells_that_its_update_was_canceled(
    fleet: Fleet, drogue: Drogue, hawkbit: FakeHawkbit, options: dict[str, str]
) -> None:
    action, pod = fleet.assign(**options), fleet.pod()
    fleet.post(pod)
    assert row_of(fleet, drogue).target == "1.0"
    hawkbit.cancel(action)
    before = drogue.writes_of("example", fleet.device)
    for _ in range(3):
        assert fleet.post(pod, after=POLL) == "withheld unmanaged"
    row = row_of(fleet, drogue)
    assert (row.state, row.reason, row.target, row.progress) == (State.HELD, "unmanaged", "0.1.0", None)
    assert row.detail == "unmanaged: hawkBit assigns no firmware to it"
    assert drogue.writes_of("example", fleet.device) == before + 1
    fleet.assign("2.0")
    assert fleet.post(pod, after=POLL) == "write 2.0"
    assert row_of(fleet, drogue).target == "2.0"


def test_the_status_of_a_device_goes_on_to_tell_that_its_update_failed(fleet: Fleet, drogue: Drogue) -> None:
    fleet.assign()
    pod = fleet.pod()
    for _ in range(3):
        assert fleet.post(pod, after=POLL) == "write 1.0"
        assert fleet.post(pod, midway("1.0", SIZE)) == "swap 1.0"
        fleet.post(pod)
    assert fleet.post(pod, after=POLL) == "withheld unmanaged"
    row = row_of(fleet, drogue)
    assert (row.state, row.reason) == (State.FAILED, "attempts")
