"""A connection that comes back whenever it is lost."""

import base64
import time
from collections.abc import Callable
from dataclasses import replace
from threading import Event, Lock, Thread
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

#: Pauses before the next connection: short enough for events that came meanwhile not to be stale. A session that lasted
#: for so long begins them anew.
_PAUSES: Final = Pauses(1.0, 20.0)
#: Pauses after refused credentials, whose check costs the cloud more.
_REFUSED_PAUSES: Final = Pauses(2.0, 60.0, floor=0.25)
_LASTING_SECONDS: Final = 10.0
#: Sessions in a row that were accepted and did not last, after which that is logged.
_MAX_SHORT: Final = 3
#: Longest wait for a token.
_TOKEN_SECONDS: Final = 5.0
#: What one connection has logged, no other one logs for so long.
_QUIET_SECONDS: Final = 60.0


class Failures:
    """The failures that connections have logged, which are often the same."""

    def __init__(self) -> None:
        self._logged: dict[str, float] = {}
        self._lock = Lock()

    def is_news(self, reason: str) -> bool:
        """Return whether no connection has logged this of late, and note it."""
        now = time.monotonic()
        with self._lock:
            self._logged = {known: at for known, at in self._logged.items() if now - at < _QUIET_SECONDS}
            if reason in self._logged:
                return False
            self._logged[reason] = now
            return True


class Connection:
    """A connection for the events of one application, in a thread of its own.

    Brokers want acknowledgements in the order of the messages, and Drogue Cloud sends an application's next event after
    the last one's. So an event that is delivered again and again would hold up all applications of its connection. And
    if a record of a topic is no CloudEvent, Drogue Cloud closes each connection that subscribes to it.
    """

    def __init__(self, plan: Plan, authorization: Authorization, size: int, failures: Failures) -> None:
        """Take messages.

        Args:
            plan: what to do.
            authorization: the credentials.
            size: number of messages that may be not done.
            failures: those that are logged already.

        """
        self._ending = Event()
        self._is_unwanted = False
        self._plan = replace(plan, is_ending=self._is_ending, has_ended=self._has_ended)
        self._process = plan
        self._authorization = authorization
        self._window = Window(size)
        self._failures = failures
        self._protocol = MQTT_5
        self._session: Session | None = None
        self._count = metrics.subscription()
        #: The last failure; empty after a session that lasted.
        self._told = ""
        self._was_refused = False
        self._thread = Thread(target=self._run, name="mqtt", daemon=True)

    def start(self) -> None:
        """Connect, and stay connected until the end."""
        self._thread.start()

    def end(self) -> None:
        """Disconnect: the application's events are wanted no more."""
        self._is_unwanted = True
        self.wake()

    def wake(self) -> None:
        """Let the connection see that the end has come."""
        if self._is_ending():
            self._ending.set()
        if session := self._session:
            session.wake()

    def join(self, deadline: Deadline) -> None:
        """Wait for the end of the connection."""
        self._thread.join(deadline.remaining)

    def _is_ending(self) -> bool:
        return self._is_unwanted or self._process.is_ending()

    def _has_ended(self) -> bool:
        return self._is_unwanted or self._process.has_ended()

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
                fields = {"application": self._plan.application}
                logger.error(
                    "each connection ends soon: is a record of the topic no CloudEvent?", extra={"fields": fields}
                )
            self._ending.wait((_REFUSED_PAUSES if self._was_refused else _PAUSES).seconds(attempts))

    def _connect(self) -> bool:
        """Run a session, and log its failure; return whether the broker accepted it."""
        was_up = self._was_refused = False

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
            self._was_refused = isinstance(error, RefusedError)
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

    def _tell(self, error: UpstreamError) -> None:
        """Log a failure, unless it is the same as before, or as another connection's."""
        if error.reason == self._told or self._ending.is_set():
            return
        self._told = error.reason
        if self._failures.is_news(error.reason):
            what = "connection lost" if isinstance(error, LostError) else "no token"
            logger.warning(f"{what}; trying again until it works", extra={"fields": self._fields(error)})

    def _fields(self, error: UpstreamError) -> dict[str, str]:
        return {"reason": error.reason, "application": self._plan.application}


def _credentials(header: str | None) -> tuple[str | None, str | None]:
    """Return user name and password for credentials of HTTP.

    Drogue Cloud takes a bearer token as the user name, in each version of MQTT.
    """
    scheme, _, value = (header or "").partition(" ")
    if scheme == "Basic":
        user, _, password = base64.b64decode(value).decode().partition(":")
        return user, password
    return value or None, None
