"""An event that always fails stands before those of healthy devices: how long they have to wait for their commands.

Each kind of poison has an application of its own, so that all of them are delivered at once.
"""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import cbor2
import pytest

from fleet_fn.sandbox.delivery import RESTART_DELAY_SECONDS, Delivery, Sink
from fleet_fn.sandbox.events import Event
from tests.support.drogue import Drogue
from tests.support.fake_registry import FakeRegistry
from tests.support.firmware import publish, random_bytes
from tests.support.function import Function, event, running
from tests.support.hostile import always
from tests.support.http import Answer, Request, Response
from tests.support.knative import Partition
from tests.support.statuses import STATUS
from tests.support.timing import Gate

#: How many times faster than in the field all of this happens.
SPEED = 8.0
#: Seconds.
MAX_AGE, EVENT_DEADLINE = 25 / SPEED, 4 / SPEED
#: What the machine may take for some forty events at once.
SLACK = 2.0
PATIENCE = 30.0

GATE = Gate(Response(500))
MANIFESTS: dict[str, Answer] = {"missing": always(Response(404)), "broken": always(Response(500)), "hanging": GATE}


@dataclass(frozen=True)
class Poison:
    """An event that always fails, and why."""

    why: str
    attributes: dict[str, str] = field(default_factory=dict)
    payload: bytes = cbor2.dumps(STATUS)
    image: str | None = None
    #: What the command API, or the device registry, answers for its device.
    command: Answer | None = None
    registry: Answer | None = None


HOPELESS = [
    Poison("undecodable", payload=b"\xff"),
    Poison("huge", payload=bytes(1_000_000)),
    Poison("no id", {"id": ""}),
    Poison("an id that no header holds", {"id": "x" * 65536}),
    Poison("another version of CloudEvents", {"specversion": "0.3"}),
    Poison("a time that is none", {"time": "yesterday"}),
    Poison("an unknown device", registry=always(Response(404))),
    Poison("an image that is missing", image="missing:1"),
    *(Poison(f"a command refused with {status}", command=always(Response(status))) for status in (404, 406, 409)),
    Poison("a command to be sent later", command=always(Response(429, b"", {"Retry-After": "3600"}))),
]
TRANSIENT = [
    Poison("too many commands", command=always(Response(429))),
    Poison("a command that is never taken", command=always(Response(500))),
    Poison("a command API that hangs", command=GATE),
    Poison("a registry that never works", registry=always(Response(500))),
    Poison("a registry that hangs", registry=GATE),
    Poison("an image that is never read", image="broken:1"),
    Poison("an image that hangs", image="hanging:1"),
]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeRegistry]:
    folder = tmp_path_factory.mktemp("images")
    publish(folder, "healthy", "0.1.1", random_bytes(1000, "healthy"))
    with FakeRegistry(folder) as registry:
        registry.answers |= MANIFESTS
        yield registry
        GATE.opened.set()


@pytest.fixture(scope="module")
def cloud() -> Iterator[Drogue]:
    with Drogue() as cloud:
        yield cloud
        GATE.opened.set()


@pytest.fixture(scope="module")
def impatient(cloud: Drogue, images: FakeRegistry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Function]:
    settings = {
        "EVENT_DEADLINE_SECONDS": str(EVENT_DEADLINE),
        "EVENT_MAX_AGE_SECONDS": str(MAX_AGE),
        "FIRMWARE_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
        "THREADS": "32",
    }
    with running({**cloud.environment, **images.environment, **settings}) as function:
        yield function


class Application:
    """An application with a poisoned device and a healthy one."""

    def __init__(self, cloud: Drogue, poison: Poison, deliverer: str) -> None:
        self.name = f"{poison.why} by {deliverer}".lower().replace(" ", "-")
        self.poison = poison
        self.healthy, self.poisoned = f"healthy of {self.name}", f"poisoned of {self.name}"
        #: When the healthy device was told something.
        self.told_at: float | None = None
        self.told = threading.Event()
        cloud.put_image(self.name, None, "healthy:0.1.1")
        cloud.put_image(self.name, self.healthy, None)
        cloud.put_image(self.name, self.poisoned, poison.image)
        cloud.command_answers[self.healthy] = self._tell
        if poison.command:
            cloud.command_answers[self.poisoned] = poison.command
        if poison.registry:
            cloud.registry_answers[self.name, self.poisoned] = poison.registry

    def _tell(self, _: Request) -> Response:
        if not self.told.is_set():
            self.told_at = time.monotonic()
            self.told.set()
        return Response(202)

    def poisoned_event(self) -> tuple[dict[str, str | None], bytes]:
        attributes = event(self.poisoned, self.name, datacontenttype="application/cbor")
        return {**attributes, **self.poison.attributes}, self.poison.payload

    def healthy_event(self) -> tuple[dict[str, str | None], bytes]:
        return event(self.healthy, self.name, datacontenttype="application/cbor"), cbor2.dumps(STATUS)


def of_sandbox(attributes: dict[str, str | None], payload: bytes) -> Event:
    return Event({name: value for name, value in attributes.items() if value is not None}, payload)


def test_by_drogues_event_source_nobody_waits_for_what_is_hopeless_nor_for_the_rest_until_that_is_too_old(
    impatient: Function, cloud: Drogue
) -> None:
    applications = [Application(cloud, poison, "drogue") for poison in (*HOPELESS, *TRANSIENT)]
    lines: list[str] = []
    delivery = Delivery(Sink.of(f"{impatient.url}/"), None, SPEED, lines.append)
    try:
        started = time.monotonic()
        for application in applications:
            delivery.put(of_sandbox(*application.poisoned_event()))
        while waiting := [application for application in applications if not application.told.is_set()]:
            assert time.monotonic() - started < PATIENCE, [application.name for application in waiting]
            for application in waiting:
                delivery.put(of_sandbox(*application.healthy_event()))  # as a device does that hears nothing
            waiting[0].told.wait(0.5)
    finally:
        delivery.stop()
    waited = {application.poison.why: (application.told_at or 0) - started for application in applications}
    for poison in HOPELESS:
        assert waited[poison.why] < SLACK, waited
    for poison in TRANSIENT:
        # One attempt more, which may come after a new start of the event source.
        assert waited[poison.why] < MAX_AGE + EVENT_DEADLINE + RESTART_DELAY_SECONDS / SPEED + SLACK, waited


def test_knatives_kafka_source_gives_poison_up_when_it_is_stale_and_a_hopeless_one_at_once(
    impatient: Function, cloud: Drogue
) -> None:
    """By the policy in `knative/`; the healthy device asks again, so that its event is young when its turn comes."""
    applications = [Application(cloud, poison, "knative") for poison in (*HOPELESS, *TRANSIENT)]
    started = time.monotonic()

    def deliver(application: Application) -> Partition:
        partition = Partition(impatient, pause=1 / SPEED)
        events = (application.poisoned_event, application.healthy_event)
        partition.deliver(make() for make in events)
        return partition

    with ThreadPoolExecutor(len(applications)) as pool:
        partitions = list(pool.map(deliver, applications))
    for application, partition in zip(applications, partitions, strict=True):
        why = application.poison.why
        assert application.told.is_set(), why
        waited = (application.told_at or 0) - started
        attempts, healthy = partition.attempts
        letters = [letter["device"] for letter, _ in partition.dead_letters]
        if application.poison in HOPELESS:
            assert (attempts, healthy, letters) == (1, 1, [application.poisoned]), why
            assert waited < SLACK, why
        else:
            assert (1 < attempts <= 8, healthy, letters) == (True, 1, []), why
            assert waited < 1.2 * MAX_AGE + SLACK, why
