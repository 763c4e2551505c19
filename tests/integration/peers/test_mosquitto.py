"""A whole update whose events go through the real mosquitto, by both versions of MQTT."""

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from paho.mqtt.enums import MQTTProtocolVersion

from tests.peers.cloud import Cloud, sandbox, settings_of_function
from tests.peers.simulated import device
from tests.support.firmware import publish, random_bytes
from tests.support.http import Request, Response, Server
from tests.support.mosquitto import Mosquitto, Publisher
from tests.support.registry import need
from tests.support.subscriber import Subscriber

_PREFIX = "ce-"
SIZE = 20_000


@pytest.fixture(scope="module")
def broker() -> Iterator[Mosquitto]:
    need("mosquitto")
    with Mosquitto() as broker:
        yield broker


@contextmanager
def bridge(broker: Mosquitto, mode: str) -> Iterator[str]:
    """A sink that publishes each event as Drogue Cloud's MQTT integration does; its URL."""

    def forward(request: Request) -> Response:
        attributes = {
            name.lower().removeprefix(_PREFIX): value.encode("latin-1").decode()
            for name, value in request.headers.items()
            if name.lower().startswith(_PREFIX)
        }
        attributes["datacontenttype"] = request.headers.get("content-type", "")
        if mode == "binary":
            sent = publisher.binary(attributes, request.body)
        else:
            whole = {**attributes, "data_base64": base64.b64encode(request.body).decode()}
            sent = publisher.structured(whole, names_type=mode == "structured")
        publisher.flush([sent])
        return Response(204)

    protocol = MQTTProtocolVersion.MQTTv311 if mode == "3.1.1" else MQTTProtocolVersion.MQTTv5
    with Publisher(broker, protocol) as publisher, Server(forward) as server:
        yield server.url


@pytest.mark.parametrize("mode", ["binary", "structured", "3.1.1"])
def test_a_device_is_updated(broker: Mosquitto, tmp_path: Path, mode: str) -> None:
    application = f"mqtt-{mode.replace('.', '-')}"
    (tmp_path / "images").mkdir()
    publish(tmp_path / "images", "sensor", "1.2.3", random_bytes(SIZE, mode))
    cloud: Cloud
    with bridge(broker, mode) as sink, sandbox(tmp_path, sink) as cloud:
        cloud.create(application, "sensor", {"container": {"image": "sensor:1.2.3"}})
        settings = settings_of_function(cloud, tmp_path, **broker.environment)
        with (
            Subscriber(settings, "--application", application) as subscriber,
            device(cloud, application, "sensor", tmp_path, "--once") as running,
        ):
            running.end()
            subscriber.end()
        status = cloud.device(application, "sensor")["status"]["firmware"]
    assert status["current"] == "1.2.3"
