"""A connection that comes back whenever it is lost."""

import base64
import time
from threading import Event, Thread
from typing import Final

from fleet_fn.deadline import Deadline
from fleet_fn.errors import UpstreamError
from fleet_fn.http.authorization import Authorization
from fleet_fn.observability import metrics
from fleet_fn.observability.log import logger
from fleet_fn.subscription.acknowledgements import Window
from fleet_fn.subscription.broker import LostError, RefusedError, UnsupportedError
from fleet_fn.subscription.pauses import Pauses
from fleet_fn.subscription.session import MQTT_3, MQTT_5, PROTOCOLS, Plan, Session

#: Pauses before the next connection. A session that lasted for so long begins them anew.
_PAUSES: Final = Pauses(1.0, 60.0)
_LASTING_SECONDS: Final = 10.0
#: Longest wait for a token.
_TOKEN_SECONDS: Final = 5.0


class Connection:
    """One connection of the group, in a thread of its own."""

    def __init__(self, plan: Plan, authorization: Authorization, size: int) -> None:
        """Take up to `size` messages that are not done."""
        self._plan = plan
        self._authorization = authorization
        self._window = Window(size)
        self._ending = Event()
        self._protocol = MQTT_5
        self._session: Session | None = None
        self._count = metrics.subscription()
        #: Reason of the last failure that was logged; empty while there is a connection.
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

    def join(self, seconds: float) -> None:
        """Wait for the end of the connection, `seconds` at most."""
        self._thread.join(seconds)

    def _run(self) -> None:
        attempts = 0
        while not self._ending.is_set():
            began = time.monotonic()
            try:
                self._connect()
            except UnsupportedError as error:
                if self._protocol is MQTT_5:
                    # A name with a character that MQTT 5 forbids would come again and again. In JSON it can be read.
                    self._protocol = MQTT_3
                    fields = {"reason": error.reason}
                    logger.warning(f"falling back to {PROTOCOLS[MQTT_3]}", extra={"fields": fields})
                else:
                    self._tell(error)
            except UpstreamError as error:
                self._tell(error)
            attempts = 1 if time.monotonic() - began > _LASTING_SECONDS else attempts + 1
            self._ending.wait(_PAUSES.seconds(attempts))

    def _connect(self) -> None:
        """Run a session.

        Raises:
            LostError: it was lost, or did not come about.
            UpstreamError: there is no token.

        """
        header = self._authorization.header(Deadline(_TOKEN_SECONDS))
        self._session = session = Session(self._plan, self._window, self._protocol)
        is_up = False

        def connected() -> None:
            nonlocal is_up
            is_up, self._told = True, ""
            self._count.connected(1)

        try:
            session.run(*_credentials(header), connected)
        except RefusedError:
            if header is not None:
                self._authorization.refresh(header, 401, Deadline(_TOKEN_SECONDS))
            raise
        finally:
            self._session = None
            if is_up:
                self._count.connected(-1)

    def _tell(self, error: UpstreamError) -> None:
        """Log a failure, unless it is the same as before."""
        if error.reason == self._told or self._ending.is_set():
            return
        self._told = error.reason
        what = "connection lost" if isinstance(error, LostError) else "no token"
        logger.warning(f"{what}; trying again until it works", extra={"fields": {"reason": error.reason}})


def _credentials(header: str | None) -> tuple[str | None, str | None]:
    """Return user name and password for credentials of HTTP.

    Drogue Cloud takes a bearer token as the user name, in each version of MQTT.
    """
    scheme, _, value = (header or "").partition(" ")
    if scheme == "Basic":
        user, _, password = base64.b64decode(value).decode().partition(":")
        return user, password
    return value or None, None
