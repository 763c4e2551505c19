"""One reading of a fleet: its devices page by page, and its numbers."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from fleet_fn.deadline import Deadline
from fleet_fn.drogue.device_registry_api import DeviceRegistryAPI
from fleet_fn.drogue.device_registry_object import RegistryObject, read_object
from fleet_fn.drogue.listing import list_devices
from fleet_fn.errors import UpstreamError
from fleet_fn.fleet.rollout_numbers import RolloutCount, RolloutNumbers
from fleet_fn.fleet.rows import STALLED_AFTER, Row, read_row
from fleet_fn.fleet.totals import Totals
from fleet_fn.http.client import HttpClient

#: Time for the application's object.
_APPLICATION_SECONDS: Final = 15.0


@dataclass(frozen=True, slots=True)
class Summary:
    """The numbers of a fleet."""

    totals: Totals
    rollout: RolloutNumbers | None = None
    #: Why there are no numbers of the rollout; empty if nothing is in their way.
    rollout_problem: str = ""


class Survey:
    """Reads an application's devices once.

    Its memory hardly grows with their number.
    """

    def __init__(
        self,
        upstream: HttpClient,
        application: str,
        labels: str | None = None,
        *,
        stalled_after: timedelta = STALLED_AFTER,
        now: datetime | None = None,
    ) -> None:
        """Create a survey.

        Args:
            upstream: Drogue Cloud.
            application: the application's name.
            labels: label selector; only devices that it matches are read.
            stalled_after: silence after which an update counts as stalled.
            now: the current time; None asks the clock.

        """
        self._upstream = upstream
        self._application = application
        self._labels = labels
        self._stalled_after = stalled_after
        self._count: RolloutCount | None = None
        self._problem = ""
        #: The time of the survey.
        self.now = now or datetime.now(UTC)
        #: Numbers of the devices that were read so far.
        self.totals = Totals()

    def pages(self) -> Iterator[list[Row]]:
        """Yield the devices page by page, an empty first page included.

        Raises:
            PermanentError: the application is unknown, our credentials are refused, or an answer is malformed.
            TransientError: the registry is unavailable.

        """
        for number, devices in enumerate(list_devices(self._upstream, self._application, self._labels)):
            if number == 0:
                self._read_application()
            rows = [read_row(device, self.now, self._stalled_after) for device in devices]
            self.totals.add(rows)
            if self._count:
                for device, row in zip(devices, rows, strict=True):
                    self._count.add(device, row)
            yield rows

    def _read_application(self) -> None:
        """Read the application; without it the devices can be shown, but not the rollout."""
        names = (self._application,)
        try:
            found, _ = DeviceRegistryAPI(self._upstream).fetch(names, Deadline(_APPLICATION_SECONDS))
            application: RegistryObject = read_object(found, "application")
        except UpstreamError as error:
            self._problem = error.reason
        except ValueError as error:
            self._problem = f"the application's {error}"
        else:
            self._count = RolloutCount(application)

    def summary(self) -> Summary:
        """Return the numbers of the devices read so far."""
        if self._count is None:
            return Summary(self.totals, rollout_problem=self._problem)
        return Summary(self.totals, self._count.numbers(self.now), self._count.problem)
