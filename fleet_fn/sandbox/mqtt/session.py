"""An MQTT session: credentials, subscriptions, commands."""

import threading
from typing import Final

from fleet_fn.sandbox.events import Event
from fleet_fn.sandbox.mqtt.cloud import Cloud
from fleet_fn.sandbox.mqtt.connection import ClosedError, Connection, ViolationError
from fleet_fn.sandbox.mqtt.messages import binary, structured, structured_properties
from fleet_fn.sandbox.mqtt.packets import (
    V3,
    V3_BAD_CREDENTIALS,
    V3_FAILURE,
    Connect,
    Disconnect,
    Ping,
    Publish,
    Reason,
    Subscribe,
    Unsubscribe,
    write_connack,
    write_pingresp,
    write_puback,
    write_suback,
    write_unsuback,
)
from fleet_fn.sandbox.mqtt.topics import Member
from fleet_fn.sandbox.mqtt.wire import Properties, Property
from fleet_fn.sandbox.rights import Permission

_CONTENT_MODE: Final = "content-mode"
_SHARES: Final = ("$share", "$shared")
_TOPICS: Final = ("a", "app", "application")


class _RefusedFilterError(Exception):
    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.name)
        self.reason = reason


class Session:
    """A client's session, which lasts as long as its connection."""

    def __init__(self, connection: Connection, cloud: Cloud) -> None:
        self._connection = connection
        self._cloud = cloud
        self._user: str | None = None
        self._client_id = ""
        self._subscriptions: list[_Subscription] = []

    def run(self) -> None:
        """Serve the client until the connection ends."""
        try:
            if self._connect(self._connection.receive_connect()):
                while self._serve_packet():
                    pass
        except ClosedError as error:
            self._log(f"gone ({error})")
        except ViolationError as error:
            self._log(f"turned out: {error}")
            self._connection.close(error.reason)
        finally:
            self._connection.close()
            for subscription in self._subscriptions:
                subscription.end()

    def _connect(self, connect: Connect) -> bool:
        """Answer a CONNECT; return whether the client may stay."""
        self._client_id = connect.client_id
        is_known = connect.clean and not self._cloud.faults.refuses_credentials and self._authenticate(connect)
        # Like released clouds, which refuse every session that is not clean with the code for bad credentials.
        refusal = V3_BAD_CREDENTIALS if connect.version == V3 else Reason.BAD_CREDENTIALS
        if is_known:
            version = "3.1.1" if connect.version == V3 else "5"
            self._log(f"connected as {self._user or 'anonymous'}, MQTT {version}")
        else:
            self._log("refused: the session is not clean" if not connect.clean else "refused: unknown credentials")
        self._connection.send(write_connack(connect.version, Reason.SUCCESS if is_known else refusal))
        return is_known

    def _authenticate(self, connect: Connect) -> bool:
        """Find the user of the credentials; return whether the client may stay.

        They are a name and an access token, a token in either place alone, or none.
        """
        rights = self._cloud.rights
        try:
            password = None if connect.password is None else connect.password.decode()
        except UnicodeDecodeError:
            return False
        match connect.user, password:
            case None, None:
                return True
            case str(name), str(token):
                self._user = rights.login(name, token)
            case (str(token), None) | (None, str(token)):
                self._user = rights.bearer(token)
        return self._user is not None

    def _serve_packet(self) -> bool:
        """Answer a packet; return whether the session goes on."""
        match self._connection.receive():
            case Publish() as message:
                self._send_command(message)
            case Subscribe() as request:
                self._subscribe(request)
            case Unsubscribe() as request:
                self._unsubscribe(request)
            case Ping():
                self._connection.send(write_pingresp())
            case Connect():
                raise ViolationError(Reason.IMPLEMENTATION_SPECIFIC, "it connected twice")
            case Disconnect():
                self._log("disconnected")
                return False
        return True

    def _subscribe(self, request: Subscribe) -> None:
        mode = next(
            (value[1] for _, value in request.properties if isinstance(value, tuple) and value[0] == _CONTENT_MODE),
            "structured",
        )
        if mode not in ("structured", "binary"):
            raise ViolationError(Reason.UNSPECIFIED, f"the content mode {mode!r} is neither structured nor binary")
        number = next((value for key, value in request.properties if key == Property.SUBSCRIPTION_ID), None)
        identifier = number if isinstance(number, int) else None
        codes: list[int] = []
        started = []
        for topic_filter, qos in request.filters:
            try:
                subscription = self._subscription(topic_filter, min(qos, 1), identifier, is_binary=mode == "binary")
            except _RefusedFilterError as refusal:
                self._log(f"may not subscribe to {topic_filter}: {refusal}")
                codes.append(V3_FAILURE if self._connection.version == V3 else refusal.reason)
            else:
                started.append(subscription)
                self._subscriptions.append(subscription)
                codes.append(subscription.qos)
        self._connection.send(write_suback(self._connection.version, request.packet_id, codes))
        for subscription in started:
            subscription.start()

    def _subscription(self, topic_filter: str, qos: int, identifier: int | None, *, is_binary: bool) -> "_Subscription":
        """Return a subscription to a filter.

        Raises:
            _RefusedFilterError: the filter is malformed, or the user may not read the application.

        """
        group: str | None
        match topic_filter.split("/"):
            case [share, group, *topic] if share in _SHARES:
                pass
            case topic:
                group = self._client_id or None
        if any(segment in ("+", "#") for segment in topic):
            raise _RefusedFilterError(Reason.NO_WILDCARDS)
        match topic:
            case []:
                raise _RefusedFilterError(Reason.NOT_AUTHORIZED)
            case [kind, application] if kind in _TOPICS:
                pass
            case _:
                raise _RefusedFilterError(Reason.INVALID_FILTER)
        if not self._cloud.may(self._user, application, Permission.READ):
            raise _RefusedFilterError(Reason.NOT_AUTHORIZED)
        member = self._cloud.topics.join(application, group)
        self._log(f"subscribed to {application}, group {'of its own' if group is None else group}")
        writer = _Writer("/".join(topic), identifier, self._connection.version, is_binary)
        return _Subscription(self._connection, self._cloud, member, writer, qos)

    def _unsubscribe(self, request: Unsubscribe) -> None:
        codes: list[int] = []
        for topic_filter in request.filters:
            # Like released clouds: a subscription is known by its topic alone, so that a shared one cannot end so.
            found = next((each for each in self._subscriptions if each.topic == topic_filter), None)
            if found is not None:
                self._subscriptions.remove(found)
                found.end()
            codes.append(Reason.NO_SUBSCRIPTION if found is None else Reason.SUCCESS)
        self._connection.send(write_unsuback(self._connection.version, request.packet_id, codes))

    def _send_command(self, message: Publish) -> None:
        """Send the command that a client's message is; refuse any other message."""
        problem, reason = "", Reason.SUCCESS
        match message.topic.split("/"):
            case [kind, application, device, name] if kind.lower() == "command" and name and name.isprintable():
                is_allowed = self._cloud.may(self._user, application, Permission.WRITE)
                if is_allowed and self._cloud.has_device(application, device):
                    # Like released clouds, which acknowledge commands for disabled devices, too.
                    self._cloud.commanding.send(application, device, name, message.payload, None)
                else:
                    problem, reason = "Not authorized", Reason.NOT_AUTHORIZED
            case _:
                problem, reason = "Unsupported operation", Reason.IMPLEMENTATION_SPECIFIC
        version = self._connection.version
        if problem and version == V3:  # which has no other way to refuse a message
            raise ViolationError(reason, f"it may not publish to {message.topic}: {problem}")
        if message.packet_id is not None:
            self._connection.send(write_puback(version, message.packet_id, reason, problem))

    def _log(self, line: str) -> None:
        self._cloud.log(f"MQTT client {self._client_id or '(no name)'}: {line}")


class _Writer:
    """Writes the messages of a subscription."""

    def __init__(self, topic: str, identifier: int | None, version: int, is_binary: bool) -> None:
        self.topic: Final = topic
        self._identifier = identifier
        self._version = version
        self._is_binary = is_binary

    def write(self, event: Event) -> tuple[bytes, Properties | None]:
        """Return the payload of a message, and its properties in MQTT 5."""
        if self._version == V3:
            return structured(event), None
        if self._is_binary:
            return binary(event, self._identifier)
        return structured(event), structured_properties(self._identifier)


class _Subscription:
    """Sends the events of an application to a client, one after the other."""

    def __init__(self, connection: Connection, cloud: Cloud, member: Member, writer: _Writer, qos: int) -> None:
        self.topic: Final = writer.topic
        self.qos: Final = qos
        self._connection = connection
        self._log = cloud.log
        self._faults = cloud.faults
        self._member = member
        self._writer = writer

    def start(self) -> None:
        """Send events, until the subscription or the connection ends."""
        threading.Thread(target=self._run, name=f"mqtt {self.topic}", daemon=True).start()

    def end(self) -> None:
        """Send no more events."""
        self._member.leave()

    def _run(self) -> None:
        try:
            while (event := self._member.next()) is not None:
                if event.attributes["application"] in self._faults.poisoned:
                    raise ViolationError(Reason.SUCCESS, "the next record is no CloudEvent")
                payload, properties = self._writer.write(event)
                self._connection.publish(self.topic, payload, properties, self.qos)
                self._member.acknowledge()
                self._log(f"{event}: {'acknowledged' if self.qos else 'sent'} over MQTT")
        except ClosedError:
            pass  # the session ends by itself
        except (ViolationError, ValueError) as error:
            self._log(f"MQTT subscription to {self.topic} ends, and its connection with it: {error}")
            self._connection.close(Reason.SUCCESS)
        finally:
            self._member.leave()
