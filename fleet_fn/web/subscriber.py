"""Events from the MQTT integration, answered in this process."""

import io
from http import HTTPStatus
from threading import Thread
from typing import Any, Final

from fleet_fn.deadline import Deadline
from fleet_fn.settings import WORK_SHARE, Settings
from fleet_fn.subscription.messages import Answer, Request
from fleet_fn.subscription.sink import credentials
from fleet_fn.subscription.subscription import Subscription
from fleet_fn.web.arrival import DEADLINE, MAX_BODY_BYTES
from fleet_fn.web.wsgi import Application

#: Seconds beyond EVENT_DEADLINE_SECONDS within which a subscription ends: gunicorn waits for one more.
_SPARE_SECONDS: Final = 1.0


class Function:
    """The function's application, as what events are delivered to."""

    def __init__(self, application: Application, settings: Settings) -> None:
        self._application = application
        self._seconds = settings.event_deadline_seconds * WORK_SHARE
        self._authorization = credentials(settings)

    def __call__(self, request: Request) -> Answer:
        """Have an event answered, logged, counted and traced as a POST is."""
        status, headers, _ = self._application.answer(self._environ(request))
        if status < HTTPStatus.INTERNAL_SERVER_ERROR:
            return Answer(is_final=True)
        wanted = dict(headers).get("Retry-After", "")
        reason = f"{status.value} {status.phrase}"
        return Answer(is_final=False, retry_after=float(wanted) if wanted.isdigit() else None, reason=reason)

    def _environ(self, request: Request) -> dict[str, Any]:
        environ: dict[str, Any] = {
            "REQUEST_METHOD": "POST",
            "SCRIPT_NAME": "",
            "PATH_INFO": "/",
            "QUERY_STRING": "",
            "SERVER_NAME": "localhost",
            "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "CONTENT_LENGTH": str(len(request.body)),
            "wsgi.input": io.BytesIO(request.body),
            "wsgi.url_scheme": "http",
            "wsgi.multithread": True,
            "wsgi.multiprocess": True,
            "wsgi.run_once": False,
            DEADLINE: Deadline(self._seconds),
        }
        for name, value in request.headers.items():
            key = "CONTENT_TYPE" if name == "content-type" else f"HTTP_{name.upper().replace('-', '_')}"
            environ[key] = value
        if self._authorization is not None:
            environ["HTTP_AUTHORIZATION"] = self._authorization.encode().decode("latin-1")
        return environ


class Subscriber:
    """A subscription that delivers to the function in this process."""

    def __init__(self, application: Application, settings: Settings) -> None:
        self._seconds = settings.event_deadline_seconds + _SPARE_SECONDS
        self._subscription = Subscription(settings, Function(application, settings), MAX_BODY_BYTES)
        self._stopping = Thread(target=self._subscription.stop, args=(self._seconds,), daemon=True)

    def start(self) -> None:
        """Begin to take events."""
        self._subscription.start()

    def begin_stop(self) -> None:
        """Take no more events; those that have come are answered and acknowledged."""
        self._stopping.start()

    def finish_stop(self) -> None:
        """Wait until that is done; begin it if no signal did."""
        if self._stopping.ident is None:
            self._stopping.start()
        self._stopping.join(self._seconds)
