"""The whole sandbox: a small Drogue Cloud on one loopback port."""

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from fleet_fn.deadline import Deadline
from fleet_fn.sandbox.commanding import Commanding
from fleet_fn.sandbox.deliverers import DELIVERERS, Policy
from fleet_fn.sandbox.delivery import Delivery, Sink, authorization
from fleet_fn.sandbox.endpoints import Endpoints
from fleet_fn.sandbox.events import Event, registry_event
from fleet_fn.sandbox.mqtt.cloud import Cloud
from fleet_fn.sandbox.mqtt.endpoint import Endpoint, MqttOptions
from fleet_fn.sandbox.mqtt.faults import Faults
from fleet_fn.sandbox.mqtt.topics import Topics
from fleet_fn.sandbox.objects import Object
from fleet_fn.sandbox.refusal import RefusedError
from fleet_fn.sandbox.registry import Registry, copy_object
from fleet_fn.sandbox.rights import Rights
from fleet_fn.sandbox.server import Server
from fleet_fn.sandbox.waiting import Commands

if TYPE_CHECKING:
    from fleet_fn.sandbox.openid import OpenIdUsers

#: How to read `spec.core.disabled` of a device: as released clouds do, or as their documentation says.
CORE_DISABLED: Final = ("as-released", "as-documented")

_logger = logging.getLogger(__name__)


class Sandbox:
    """A small Drogue Cloud: device endpoint, registry and command APIs, deliveries.

    It serves while its context lasts, or from `start` to `stop`, and only once. Safe to use from several threads.
    """

    def __init__(
        self,
        objects: Iterable[Mapping[str, Any]] = (),
        *,
        sink: str | None = None,
        sink_user: str | None = None,
        sink_password: str | None = None,
        sink_token: str | None = None,
        user: str = "sandbox",
        token: str = "sandbox",  # noqa: S107 - protects nothing
        port: int = 0,
        speed: float = 1.0,
        deliver_as: str = "event-source",
        delivery: Policy | None = None,
        members: Mapping[str, str] | None = None,
        core_disabled: str = "as-released",
        openid: "OpenIdUsers | None" = None,
        mqtt: MqttOptions | None = None,
        log: Callable[[str], None] = _logger.info,
    ) -> None:
        """Make a sandbox with these objects.

        Args:
            objects: applications, and devices, which have `metadata.application`.
            sink: URL that events are delivered to; None drops them.
            sink_user: user name of the sink's Basic credentials.
            sink_password: password of the sink's Basic credentials.
            sink_token: the sink's Bearer token, instead of these.
            user: user name for the APIs; the owner of the objects.
            token: access token for the APIs.
            port: port on 127.0.0.1; 0 takes a free one.
            speed: divides all pauses and time-outs of delivery.
            deliver_as: the deliverer to imitate, a key of `DELIVERERS`.
            delivery: the deliverer's retries; None keeps its own.
            members: roles, keys of `ROLES`, of other users in all applications, by user name. They use the same token.
            core_disabled: how to read `spec.core.disabled`, one of `CORE_DISABLED`.
            openid: knows users by the access tokens of an OpenID provider; None takes no such tokens.
            mqtt: how to serve the MQTT integration; None leaves it out.
            log: takes one line, without secrets, for each event in the sandbox.

        Raises:
            RefusedError: Drogue Cloud would refuse an object, or the sandbox does not support it.
            ValueError: an option is invalid.

        """
        if not speed > 0:
            raise ValueError("speed must be above 0")
        if deliver_as not in DELIVERERS:
            raise ValueError(f"unknown deliverer {deliver_as!r}: use one of {', '.join(DELIVERERS)}")
        if core_disabled not in CORE_DISABLED:
            raise ValueError(f"unknown reading of core.disabled {core_disabled!r}: use {' or '.join(CORE_DISABLED)}")
        self._log_line = log
        self._port = port
        self._server: Server | None = None
        self._serving: threading.Thread | None = None
        self._commands = Commands()
        self._delivery = Delivery(
            Sink.of(sink) if sink is not None else None,
            authorization(sink_user, sink_password, sink_token),
            speed,
            self._log,
            DELIVERERS[deliver_as].with_policy(delivery),
        )
        self._owner = user
        self._registry = Registry(objects, self._publish_change, user)
        inverts_core, rights = core_disabled == "as-released", Rights(user, token, members or {}, openid)
        commanding = Commanding(self._registry, self._commands, self._log, inverts_core=inverts_core)
        self._endpoints = Endpoints(
            self._registry, commanding, self._publish, rights, self._log, inverts_core=inverts_core
        )
        self._mqtt: Endpoint | None = None
        self._mqtt_options = mqtt
        self._mqtt_cloud = Cloud(
            self._registry,
            rights,
            commanding,
            Topics(1 if mqtt is None else mqtt.partitions, self._log),
            Faults(),
            self._log,
        )

    def start(self) -> None:
        """Listen and serve.

        Raises:
            OSError: a port is in use.

        """
        self._server = Server(self._port, self._endpoints.answer, self._log)
        if self._mqtt_options is not None:
            try:
                self._mqtt = Endpoint(self._mqtt_options, self._mqtt_cloud)
            except OSError:
                self._server.server_close()
                raise
            self._mqtt.start()
        self._serving = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, name="sandbox", daemon=True
        )
        self._serving.start()

    def stop(self) -> None:
        """Stop serving. Waiting devices get their answers; undelivered events are dropped."""
        self._delivery.stop()
        if self._mqtt is not None:
            self._mqtt.stop()
        self._commands.close()
        if self._server is not None and self._serving is not None:
            self._server.close()
            self._serving.join()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Base URL: `http://127.0.0.1:PORT`, without a slash at the end."""
        if self._server is None:
            raise RuntimeError("the sandbox has not been started")
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def mqtt(self) -> Endpoint:
        """The MQTT integration."""
        if self._mqtt is None:
            raise RuntimeError("the sandbox has no MQTT integration, or has not been started")
        return self._mqtt

    @property
    def mqtt_url(self) -> str | None:
        """URL of the MQTT integration; None without one."""
        return None if self._mqtt is None else self._mqtt.url

    @property
    def sink(self) -> str | None:
        """URL that events are delivered to; None drops them.

        A change counts from the next attempt on.
        """
        sink = self._delivery.sink
        return None if sink is None else sink.url

    @sink.setter
    def sink(self, url: str | None) -> None:
        self._delivery.sink = None if url is None else Sink.of(url)

    @property
    def waiting(self) -> int:
        """Number of devices that wait for commands."""
        return self._commands.waiting

    def wait_for_deliveries(self, application: str, seconds: float) -> bool:
        """Wait until all events of an application are delivered, or given up.

        Return whether they are. Groups of MQTT subscribers have acknowledged them then, and the function has written
        its reports.
        """
        deadline = Deadline(seconds)
        is_delivered = self._delivery.wait(application, seconds)
        return self._mqtt_cloud.topics.wait(application, deadline.remaining) and is_delivered

    def get(self, application: str, device: str | None = None) -> Object:
        """Return a copy of an application, or of one of its devices.

        Raises:
            RefusedError: there is no such object.

        """
        registry = self._registry
        return copy_object(
            registry.application(application) if device is None else registry.device(application, device)
        )

    def put(self, given: Mapping[str, Any]) -> Object:
        """Create or replace an object like `kubectl apply`, and return a copy of it.

        The object is an application or a device. A `resourceVersion` in its metadata has to be the current one; without
        it, any version is overwritten.

        Raises:
            RefusedError: the object is malformed, or has another version.

        """
        try:
            return copy_object(self._registry.update(given))
        except RefusedError as refusal:
            if refusal.status != 404:
                raise
            return copy_object(self._registry.create(given, self._owner))

    def delete(self, application: str, device: str | None = None) -> None:
        """Delete an application with its devices, or one of its devices.

        Raises:
            RefusedError: there is no such object.

        """
        self._registry.delete(application, device)

    def _publish_change(self, application: Object, device: Object) -> None:
        self._publish(registry_event(application, device))

    def _publish(self, event: Event) -> None:
        if self._mqtt_options is not None:
            self._mqtt_cloud.topics.publish(event)
        if self._mqtt_options is None or self.sink is not None:
            self._delivery.put(event)

    def _log(self, line: str) -> None:
        """Log a line, with control characters escaped: names may contain some."""
        self._log_line("".join(char if char.isprintable() else ascii(char)[1:-1] for char in line))
