"""Delivery of events to a URL, such as that of a function elsewhere."""

from threading import Lock
from typing import Final
from urllib.parse import urlsplit

from fleet_fn.deadline import Deadline
from fleet_fn.errors import TransientError, UpstreamError
from fleet_fn.http.authorization import Fixed, basic
from fleet_fn.http.client import HttpClient
from fleet_fn.observability.log import logger
from fleet_fn.settings import Settings
from fleet_fn.subscription.messages import Answer, Request

#: Name of the receiver in reasons and logs.
SINK: Final = "sink"
#: Seconds that the receiver has beyond EVENT_DEADLINE_SECONDS, for the network.
_SPARE_SECONDS: Final = 1.0


class Sink:
    """Posts events to a URL, with the credentials that events carry."""

    def __init__(self, url: str, settings: Settings) -> None:
        """Post to `url`, an http or https URL."""
        parts = urlsplit(url)
        self._client = HttpClient(
            SINK,
            f"{parts.scheme}://{parts.netloc}",
            authorization=Fixed(credentials(settings)),
            ca_file=settings.drogue_ca_file,
        )
        self._path = parts.path or "/"
        self._seconds = settings.event_deadline_seconds + _SPARE_SECONDS
        #: Why the last event was not taken; empty if it was.
        self._failure = ""
        self._lock = Lock()

    def __call__(self, request: Request) -> Answer:
        """Post an event; what is not answered with 2xx or 4xx is worth another try."""
        if request.is_cut:
            _log("event refused: it is too large", request)
            return Answer(is_final=True)
        answer = self._post(request)
        with self._lock:
            is_news, self._failure = answer.reason not in ("", self._failure), answer.reason
        if is_news:
            fields = {"reason": answer.reason}
            logger.warning("sink takes no events; trying again until it does", extra={"fields": fields})
        return answer

    def _post(self, request: Request) -> Answer:
        try:
            answer = self._client.request(
                "POST",
                self._path,
                Deadline(self._seconds),
                headers=request.headers,
                body=request.body,
                wants_body=False,
            )
        except UpstreamError as error:
            retry_after = error.retry_after if isinstance(error, TransientError) else None
            return Answer(is_final=False, retry_after=retry_after, reason=error.reason)
        if 200 <= answer.status < 300:
            return Answer(is_final=True)
        reason = f"{SINK}: answered {answer.status}"
        if 400 <= answer.status < 500:
            _log("event refused", request, reason)
            return Answer(is_final=True)
        return Answer(is_final=False, reason=reason)


def credentials(settings: Settings) -> str | None:
    """Return the `Authorization` that events must carry; None if they need none."""
    if settings.events_token is not None:
        return f"Bearer {settings.events_token}"
    if settings.events_user is not None:
        return basic(settings.events_user, settings.events_password or "")
    return None


def _log(what: str, request: Request, reason: str = "") -> None:
    fields = {"reason": reason, "source": request.source, "id": request.id}
    logger.warning(what, extra={"fields": {name: value for name, value in fields.items() if value}})
