"""A real MQTT broker, mosquitto, and a publisher that sends events as Drogue Cloud does."""

import getpass
import json
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import trustme
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tests.support.drogue import TOKEN, USER


class Mosquitto:
    """A broker with TLS that lets in only `USER` with `TOKEN`; it can be killed, and started again at its port."""

    def __init__(self, *, tls: bool = True, settings: str = "", websockets: bool = False) -> None:
        """`settings` are further lines of its configuration."""
        self._authority = trustme.CA() if tls else None
        self._lines = settings
        self._websockets = websockets
        self._stack = ExitStack()

    def __enter__(self) -> "Mosquitto":
        with self._stack as stack:
            self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fleet-broker-")))
            self.ca_file = self._folder / "ca.pem"
            with socket.create_server(("127.0.0.1", 0)) as probe:
                self.port: int = probe.getsockname()[1]
            self._configure()
            self.start()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._stack.close()

    def _configure(self) -> None:
        passwords = self._folder / "passwords"
        self._write_password(TOKEN)
        lines = [
            f"user {getpass.getuser()}",
            # Release 2.0.11 does not start if all of its listeners are WebSockets.
            *([f"listener 0 {self._folder / 'socket'}"] if self._websockets else []),
            f"listener {self.port} 127.0.0.1",
            *(["protocol websockets"] if self._websockets else []),
            "allow_anonymous false",
            f"password_file {passwords}",
            "max_queued_messages 100000",
            self._lines,
        ]
        if self._authority:
            issued = self._authority.issue_cert("localhost", "127.0.0.1")
            certificate, key = self._folder / "certificate.pem", self._folder / "key.pem"
            certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
            issued.private_key_pem.write_to_path(key)
            self._authority.cert_pem.write_to_path(self.ca_file)
            lines += [f"certfile {certificate}", f"keyfile {key}"]
        (self._folder / "mosquitto.conf").write_text("\n".join(lines) + "\n")

    @property
    def url(self) -> str:
        scheme = "ws" if self._websockets else "mqtt"
        return f"{scheme}{'s' * bool(self._authority)}://localhost:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """Settings of a function that subscribes to all of `example`'s events here."""
        trust = {"DROGUE_CA_FILE": str(self.ca_file)} if self._authority else {}
        return {"DROGUE_MQTT_URL": self.url, "MQTT_APPLICATIONS": "example", **trust}

    def start(self) -> None:
        """Start it, and wait until it listens."""
        with (self._folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                ["mosquitto", "-v", "-c", str(self._folder / "mosquitto.conf")], stdout=log, stderr=log
            )
        limit = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=5).close()
                return
            except OSError:
                assert time.monotonic() < limit, self.log
                assert self.process.poll() is None, self.log
                time.sleep(0.02)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def set_password(self, password: str) -> None:
        """Let `USER` in with another one."""
        self._write_password(password)
        self.process.send_signal(signal.SIGHUP)

    def _write_password(self, password: str) -> None:
        command = ["mosquitto_passwd", "-b", "-c", str(self._folder / "passwords"), USER, password]
        subprocess.run(command, check=True, capture_output=True)

    @property
    def log(self) -> str:
        return (self._folder / "log").read_text()

    def publisher(self) -> "Publisher":
        return Publisher(self)


class Publisher:
    """Sends events to a broker, as Drogue Cloud sends them to subscribers; QoS 1."""

    def __init__(self, broker: Mosquitto, protocol: MQTTProtocolVersion = MQTTProtocolVersion.MQTTv5) -> None:
        self._client = Client(
            CallbackAPIVersion.VERSION2,
            protocol=protocol,
            transport="websockets" if broker.url.startswith("ws") else "tcp",
        )
        self._client.username_pw_set(USER, TOKEN)
        if broker.ca_file.exists():
            self._client.tls_set(str(broker.ca_file))
        self._broker = broker

    def __enter__(self) -> "Publisher":
        self._client.connect("localhost", self._broker.port)
        self._client.loop_start()
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def binary(self, event: Mapping[str, str | None], payload: bytes, *more: tuple[str, str]) -> Any:
        """Send an event whose attributes are user properties; `more` properties follow."""
        properties = Properties(PacketTypes.PUBLISH)
        known = [(name, value) for name, value in event.items() if value is not None and name != "datacontenttype"]
        if known or more:
            properties.UserProperty = [*known, *more]
        if content_type := event.get("datacontenttype"):
            properties.ContentType = content_type
        return self.raw(payload, properties, event.get("application") or "example")

    def structured(self, event: Mapping[str, Any], *, names_type: bool = True) -> Any:
        """Send an event as JSON, whose media type the message names or, as in MQTT 3.1.1, not."""
        properties = Properties(PacketTypes.PUBLISH)
        if names_type:
            properties.ContentType = "application/cloudevents+json; charset=utf-8"
        return self.raw(json.dumps(event).encode(), properties, event.get("application") or "example")

    def raw(self, payload: bytes, properties: Properties | None = None, application: str = "example") -> Any:
        return self._client.publish(f"app/{application}", payload, qos=1, properties=properties)

    def flush(self, sent: list[Any]) -> None:
        """Wait until the broker has messages."""
        for each in sent:
            each.wait_for_publish(30)
            assert each.is_published()
