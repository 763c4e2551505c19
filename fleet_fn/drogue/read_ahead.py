"""Read devices ahead: by pages, before each poll reads its own device.

A page of 100 devices is one request, but takes as much of our CPU as some 40 single reads.
"""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from fleet_fn.concurrency.ttl_cache import TTLCache
from fleet_fn.drogue.device_registry_object import RegistryObject, read_object
from fleet_fn.drogue.listing import list_objects
from fleet_fn.drogue.refusals import DEVICE_REGISTRY
from fleet_fn.errors import PermanentError, TransientError
from fleet_fn.http.client import HttpClient
from fleet_fn.observability.log import logger
from fleet_fn.observability.side_effects import Guarded

#: Keeps a device's object.
Keep = Callable[[tuple[str, ...], RegistryObject], None]

#: Misses that show how many there are in a second.
_SAMPLE: Final = 20
#: Single reads that a page has to spare, for a twelfth of the requests and about three times the CPU that they take.
_LEAST_SPARED: Final = 12
#: Devices that are read ahead at most: they have to stay in the cache until they poll.
_MAX_DEVICES: Final = 16_000
#: Applications that are known.
_MAX_APPLICATIONS: Final = 1000
#: The pause after each page, which is also no shorter than twice the time that the page took.
_PAUSE_SECONDS: Final = 0.1
#: Back-off after a listing that failed; doubles up to the maximum.
_FIRST_BACKOFF_SECONDS: Final = 60.0
_MAX_BACKOFF_SECONDS: Final = 3600.0
#: An application with too many devices is listed again after that time.
_TOO_LARGE_SECONDS: Final = 86400.0
#: The share of the time for which objects are remembered that a listing may take.
_LONGEST_SHARE: Final = 0.5


class Background:
    """Runs listings in threads, and lets them pause."""

    def begin(self, work: Callable[[], None]) -> threading.Thread | None:
        """Begin work, and return its thread, if it has one.

        Raises:
            RuntimeError: no thread can be started.

        """
        thread = threading.Thread(target=work, name="read ahead", daemon=True)
        thread.start()
        return thread

    def pause(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)


@dataclass(slots=True)
class _Application:
    """An application, and what is known of its devices."""

    name: str
    #: Pages and devices of the last whole listing. Before it, one page is assumed.
    pages: int = 1
    devices: int = 0
    #: No listing begins before that time.
    not_before: float = 0.0
    backoff_seconds: float = _FIRST_BACKOFF_SECONDS
    #: Misses since a time.
    misses: int = 0
    since: float = 0.0


class ReadAhead:
    """Lists the devices of applications into a cache, one application at a time.

    A listing begins if its pages spare many more single reads. It fails for itself: no event waits for it. Safe to use
    from several threads.
    """

    def __init__(
        self,
        upstream: HttpClient,
        devices: TTLCache[tuple[str, ...], RegistryObject],
        seconds: float,
        clock: Callable[[], float],
        background: Background | None = None,
    ) -> None:
        """Create a reader that has not listed anything.

        Args:
            upstream: Drogue Cloud.
            devices: the cache of objects by names.
            seconds: how long a listed object is of use.
            clock: monotonic seconds.
            background: runs listings; by default in threads.

        """
        self._upstream = upstream
        self._devices = devices
        self._seconds = seconds
        self._clock = clock
        self._background = background or Background()
        self._lock = threading.Lock()
        self._applications: dict[str, _Application] = {}
        #: After a fork it counts as ended.
        self._thread: threading.Thread | None = None

    def count_miss(self, name: str) -> None:
        """Count an event whose device the cache lacks.

        Args:
            name: the device's application.

        """
        with self._lock:
            now = self._clock()
            application = self._application(name)
            if now < application.not_before:
                return
            if not application.misses:
                application.since = now
            application.misses += 1
            if application.misses < _SAMPLE:
                return
            spared = self._seconds * application.misses
            is_worth_it = spared >= _LEAST_SPARED * application.pages * (now - application.since)
            application.misses = 0
            if not is_worth_it or (self._thread and self._thread.is_alive()):
                return
            application.not_before = now + self._seconds
            recent = [each for each in self._applications.values() if each is not application and now < each.not_before]
            room = _MAX_DEVICES - sum(each.devices for each in recent)
            try:
                self._thread = self._background.begin(partial(Guarded("read ahead", self._list), application, room))
            except RuntimeError:
                self._back_off(application)  # no thread can be started

    def _application(self, name: str) -> _Application:
        application = self._applications.get(name)
        if application is None:
            if len(self._applications) >= _MAX_APPLICATIONS:
                del self._applications[next(iter(self._applications))]
            application = self._applications[name] = _Application(name)
        return application

    def _list(self, application: _Application, room: int) -> None:
        """Read an application's devices into the cache, if there is room for all."""
        began = self._clock()
        try:
            pages, devices = self._read_pages(application.name, room, began)
        except (PermanentError, TransientError) as error:
            fields = {"application": application.name, "reason": error.reason}
            logger.warning("devices not read ahead", extra={"fields": fields})
            if isinstance(error, TransientError):
                self._back_off(application, error.retry_after or 0.0)
            else:
                self._back_off(application, _MAX_BACKOFF_SECONDS)
            return
        application.pages, application.devices = pages, devices
        application.not_before = began + self._seconds
        application.backoff_seconds = _FIRST_BACKOFF_SECONDS
        fields = {"application": application.name, "devices": str(devices), "pages": str(pages)}
        if devices > room:
            application.devices, application.not_before = 0, began + _TOO_LARGE_SECONDS
            logger.warning("too many devices to read ahead", extra={"fields": fields})
        else:
            logger.info("devices read ahead", extra={"fields": fields})

    def _read_pages(self, name: str, room: int, began: float) -> tuple[int, int]:
        """Read pages while there is room; return the numbers of pages and devices.

        Raises:
            PermanentError, TransientError: a page cannot be had, or comes late.

        """
        objects = list_objects(self._upstream, name)
        pages = devices = 0
        while True:
            asked = self._clock()
            with self._devices.look_up_many() as keep:
                page = next(objects, None)
                if page is None:
                    return pages, devices
                for found in page:
                    self._keep(found, name, keep)
            pages, devices = pages + 1, devices + len(page)
            if devices > room:
                return pages, devices
            now = self._clock()
            if now - began > _LONGEST_SHARE * self._seconds:
                raise TransientError(f"{DEVICE_REGISTRY}: lists devices too slowly")
            self._background.pause(max(_PAUSE_SECONDS, 2 * (now - asked)))

    def _keep(self, found: Any, application: str, keep: Keep) -> None:
        metadata = found.get("metadata") if isinstance(found, dict) else None
        fields: Mapping[str, Any] = metadata if isinstance(metadata, dict) else {}
        name = fields.get("name")
        if not isinstance(name, str) or fields.get("application") != application:
            # This answers another request. The kept connections may hold more of such answers.
            self._upstream.close()
            raise PermanentError(f"{DEVICE_REGISTRY}: answer for the devices has an entry that is none of them")
        try:
            keep((application, name), read_object(found, "device"))
        except ValueError:
            self._devices.invalidate((application, name))  # an event that needs it says what is wrong

    def _back_off(self, application: _Application, at_least: float = 0.0) -> None:
        application.not_before = self._clock() + max(application.backoff_seconds, at_least)
        application.backoff_seconds = min(2 * application.backoff_seconds, _MAX_BACKOFF_SECONDS)
