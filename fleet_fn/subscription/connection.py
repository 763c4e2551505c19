"""A connection that comes back whenever it is lost."""

import base64
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from threading import Event, Thread
from typing import Final

from fleet_fn.deadline import Deadline
from fleet_fn.errors import UpstreamError
from fleet_fn.http.authorization import Authorization
from fleet_fn.observability import metrics
from fleet_fn.observability.log import logger
from fleet_fn.subscription.acknowledgements import Window
from fleet_fn.subscription.broker import MQTT_3, MQTT_5, PROTOCOLS, LostError, RefusedError, UnsupportedError
from fleet_fn.subscription.pauses import Pauses
from fleet_fn.subscription.session import Plan, Session

#: Pauses before the next connection. A session that lasted for so long begins them anew.
_PAUSES: Final = Pauses(1.0, 60.0)
_LASTING_SECONDS: Final = 10.0
#: Sessions in a row that were accepted and did not last, after which the applications are parted.
_MAX_SHORT: Final = 3
#: Longest wait for a token.
_TOKEN_SECONDS: Final = 5.0


class Connection:
    """One connection of the group, in a thread of its own.

    If a record of an application's topic is no CloudEvent, Drogue Cloud closes each connection that subscribes to the
    application, again and again. So if sessions do not last, each application gets a connection of its own.
    """

    def __init__(self, plan: Plan, authorization: Authorization, size: int, application: str = "") -> None:
        """Take messages.

        Args:
            plan: what to do.
            authorization: the credentials.
            size: number of messages that may be not done.
            application: the only application that is taken; empty for all that have no connection of their own.

        """
        self._parted: dict[str, Connection] = {}
        self._wanted = plan.applications
        self._plan = replace(plan, applications=self._applications)
        self._authorization = authorization
        self._size = size
        self._application = application
        self._window = Window(size)
        self._ending = Event()
        self._protocol = MQTT_5
        self._session: Session | None = None
        self._count = metrics.subscription()
        #: The last failure that was logged; empty after a session that lasted.
        self._told = ""
        self._thread = Thread(target=self._run, name="mqtt", daemon=True)

    def start(self) -> None:
        """Connect, and stay connected until the end."""
        self._thread.start()

    def wake(self) -> None:
        """Let the connection look for what has changed, the plan's end included."""
        if self._plan.is_ending():
            self._ending.set()
        if session := self._session:
            session.wake()
        for each in list(self._parted.values()):
            each.wake()

    def join(self, deadline: Deadline) -> None:
        """Wait for the end of the connection."""
        self._thread.join(deadline.remaining)
        for each in list(self._parted.values()):
            each.join(deadline)

    def _applications(self) -> Collection[str]:
        wanted = self._wanted()
        if self._application:
            return [self._application] if self._application in wanted else []
        return [name for name in wanted if name not in self._parted]

    def _run(self) -> None:
        attempts = short = 0
        while not self._ending.is_set():
            began = time.monotonic()
            was_up = self._connect()
            if time.monotonic() - began > _LASTING_SECONDS:
                attempts, short, self._told = 1, 0, ""
            else:
                attempts, short = attempts + 1, short + was_up
            if short == _MAX_SHORT:
                self._part()
            self._ending.wait(_PAUSES.seconds(attempts))

    def _connect(self) -> bool:
        """Run a session, and log its failure; return whether the broker accepted it."""
        was_up = False

        def connected() -> None:
            nonlocal was_up
            was_up = True
            self._count.connected(1)

        try:
            self._run_session(connected)
        except UnsupportedError as error:
            if self._protocol is MQTT_5:
                # A name with a character that MQTT 5 forbids would come again and again. In JSON it can be read.
                self._protocol = MQTT_3
                logger.warning(f"falling back to {PROTOCOLS[MQTT_3]}", extra={"fields": self._fields(error)})
            else:
                self._tell(error)
        except UpstreamError as error:
            self._tell(error)
        finally:
            self._session = None
            if was_up:
                self._count.connected(-1)
        return was_up

    def _run_session(self, connected: Callable[[], None]) -> None:
        """Run a session.

        Raises:
            LostError: it was lost, or did not come about.
            UpstreamError: there is no token.

        """
        header = self._authorization.header(Deadline(_TOKEN_SECONDS))
        self._session = Session(self._plan, self._window, self._protocol)
        try:
            self._session.run(*_credentials(header), connected)
        except RefusedError:
            if header is not None:
                self._authorization.refresh(header, 401, Deadline(_TOKEN_SECONDS))
            raise

    def _part(self) -> None:
        """Give each application a connection of its own; log it if it is the only one."""
        names = self._applications()
        if self._application or len(names) < 2:
            fields = {"application": next(iter(names), "")}
            logger.error("each connection ends soon: is a record of the topic no CloudEvent?", extra={"fields": fields})
            return
        logger.warning("connections do not last: each application gets its own")
        for name in names:
            self._parted[name] = Connection(
                replace(self._plan, applications=self._wanted), self._authorization, self._size, name
            )
            self._parted[name].start()

    def _tell(self, error: UpstreamError) -> None:
        """Log a failure, unless it is the same as before."""
        if error.reason == self._told or self._ending.is_set():
            return
        self._told = error.reason
        what = "connection lost" if isinstance(error, LostError) else "no token"
        logger.warning(f"{what}; trying again until it works", extra={"fields": self._fields(error)})

    def _fields(self, error: UpstreamError) -> dict[str, str]:
        fields = {"reason": error.reason, "application": self._application}
        return {name: value for name, value in fields.items() if value}


def _credentials(header: str | None) -> tuple[str | None, str | None]:
    """Return user name and password for credentials of HTTP.

    Drogue Cloud takes a bearer token as the user name, in each version of MQTT.
    """
    scheme, _, value = (header or "").partition(" ")
    if scheme == "Basic":
        user, _, password = base64.b64decode(value).decode().partition(":")
        return user, password
    return value or None, None
