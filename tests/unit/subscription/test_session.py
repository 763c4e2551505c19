"""A session with a broker that says nothing, and one whose messages are not done."""

from collections.abc import Callable
from threading import Event, Thread

import pytest

from fleet_fn.subscription import session as module
from fleet_fn.subscription.acknowledgements import Window
from fleet_fn.subscription.broker import MQTT_5, Broker, LostError
from fleet_fn.subscription.filter import Sharing
from fleet_fn.subscription.messages import Message
from fleet_fn.subscription.session import Plan, Session
from tests.support.scripted_broker import ScriptedBroker
from tests.support.subscriber import wait_for


class Running:
    """A session in a thread, which takes one message and leaves it undone."""

    def __init__(self, broker: ScriptedBroker) -> None:
        self.taken: list[Callable[[], None]] = []
        self.problem = ""
        self._ending = Event()
        address = Broker("127.0.0.1", broker.port, None, False, None)
        plan = Plan(address, "group", "example", Sharing(), self._take, self._ending.is_set, self._ending.is_set)
        self._session = Session(plan, Window(1), MQTT_5)
        self._thread = Thread(target=self._run)

    def __enter__(self) -> "Running":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._session.wake()
        self._thread.join()

    def _take(self, _: Message, __: bool, done: Callable[[], None]) -> None:
        self.taken.append(done)

    def _run(self) -> None:
        try:
            self._session.run(None, None, lambda: None)
        except LostError as error:
            self.problem = error.reason


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_KEEPALIVE_SECONDS", 1)
    monkeypatch.setattr(module, "_GLANCE_SECONDS", 0.3)


def test_a_broker_that_answers_no_ping_is_lost() -> None:
    with ScriptedBroker() as broker, Running(broker) as running:
        wait_for(lambda: broker.subscribed != [])
        broker.is_silent = True
        wait_for(lambda: running.problem == "MQTT integration: no answer to a ping", 10, lambda: running.problem)


def test_a_broker_hears_pings_while_no_message_may_be_taken() -> None:
    """Else it would hang up, and send the same messages again."""
    with ScriptedBroker() as broker, Running(broker) as running:
        wait_for(lambda: broker.subscribed != [])
        broker.publish(b"")
        wait_for(lambda: len(running.taken) == 1)
        before = broker.pings
        wait_for(lambda: broker.pings >= before + 4, 15)
        running.taken[0]()
        wait_for(lambda: broker.acknowledged == [1])
        assert running.problem == ""
