"""A subscription to all applications follows those that the token can see."""

from functools import partial

import pytest

from fleet_fn.settings import Settings
from fleet_fn.subscription import subscription as module
from fleet_fn.subscription.applications import AllApplications
from fleet_fn.subscription.messages import Answer
from fleet_fn.subscription.pauses import Pauses
from fleet_fn.subscription.subscription import Subscription
from tests.support.drogue import Drogue
from tests.support.scripted_broker import ScriptedBroker
from tests.support.subscriber import wait_for


def test_connections_follow_the_applications(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AllApplications", partial(AllApplications, looks=Pauses(0.05, 0.05)))
    with Drogue() as drogue, ScriptedBroker() as broker:
        drogue.put("pumps", spec={})
        settings = Settings.for_sink({**drogue.environment, **broker.environment, "MQTT_APPLICATIONS": "*"})
        subscription = Subscription(settings, lambda _: Answer(is_final=True), 1000)
        subscription.start()
        try:
            wait_for(lambda: broker.subscribed == ["$share/fleet-fn/app/pumps"])
            drogue.put("fans", spec={})
            wait_for(lambda: len(broker.subscribed) == 2)
            drogue.roles["pumps"] = None
            wait_for(lambda: broker.disconnects == 1)
            del drogue.roles["pumps"]
            wait_for(lambda: broker.subscribed.count("$share/fleet-fn/app/pumps") == 2)
        finally:
            subscription.stop(3)
        wait_for(lambda: broker.disconnects == 3)
