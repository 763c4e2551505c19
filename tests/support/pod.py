"""A process of the function without its HTTP face, on a clock that a test sets."""

from collections.abc import Mapping
from datetime import UTC, datetime

from fleet_fn.concurrency.single_flight import SingleFlight
from fleet_fn.deadline import Deadline
from fleet_fn.drogue.commands import Commands
from fleet_fn.drogue.device_registry import DeviceRegistry
from fleet_fn.drogue.events import read_event
from fleet_fn.firmware.cache import Cache
from fleet_fn.firmware.registry_store import RegistryStore
from fleet_fn.firmware.resolver import Resolver
from fleet_fn.firmware.shapes import Shapes
from fleet_fn.firmware.verified import VerifiedFiles
from fleet_fn.oci.registry_client import RegistryClient
from fleet_fn.parts import make_drogue
from fleet_fn.settings import Settings
from fleet_fn.update.handler import UpdateHandler
from fleet_fn.update.outcome import Outcome
from tests.support.timing import Clock

#: What the clock showed when it was 0.
_EPOCH = datetime(2026, 3, 1, tzinfo=UTC).timestamp()
#: Seconds: so many that no upstream which answers at all is too late.
_DEADLINE = 60.0


class Pod:
    """What a pod remembers, and what it answers. It reads from a registry by plain HTTP that wants no credentials."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        single_flight = SingleFlight()
        self._drogue = make_drogue(settings, single_flight)
        host = settings.firmware_prefix.partition("/")[0]
        self._images = RegistryClient(
            host, credentials=lambda _: None, plain_http=True, ca_file=None, single_flight=single_flight
        )
        files = VerifiedFiles(single_flight)
        cache = Cache(settings.firmware_cache_dir, settings.firmware_cache_bytes, files, single_flight, clock=clock)
        store = RegistryStore(self._images, Shapes(cache, single_flight), cache)
        self._updater = UpdateHandler(
            settings,
            DeviceRegistry(self._drogue, clock=clock),
            Resolver(store, single_flight, clock=clock),
            None,
            Commands(self._drogue),
            now=lambda: wall(clock).timestamp(),
        )

    def answer(self, attributes: Mapping[str, str | None], payload: bytes) -> Outcome:
        """What comes of an event, given as `tests.support.function.event` makes it."""
        headers = [
            ("content-type" if name == "datacontenttype" else f"ce-{name}", value)
            for name, value in attributes.items()
            if value is not None
        ]
        return self._updater.answer(read_event(headers, payload), Deadline(_DEADLINE))

    def close(self) -> None:
        self._drogue.close()
        self._images.close()


def wall(clock: Clock) -> datetime:
    """What a wall clock shows at that moment."""
    return datetime.fromtimestamp(_EPOCH + clock(), UTC)
