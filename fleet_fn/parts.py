"""Parts of the function, made from the settings for the composition root, `app`."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from fleet_fn.clocks import SYSTEM_CLOCKS, Clocks
from fleet_fn.concurrency.single_flight import SingleFlight
from fleet_fn.concurrency.ttl_cache import Count as LookupCount
from fleet_fn.deadline import Deadline
from fleet_fn.drogue.commands import Commands
from fleet_fn.drogue.device_registry import DeviceRegistry
from fleet_fn.drogue.events import Event
from fleet_fn.drogue.refusals import COMMAND_API
from fleet_fn.firmware.cache import Cache
from fleet_fn.firmware.file_store import FileStore
from fleet_fn.firmware.layout_store import LayoutStore
from fleet_fn.firmware.no_images import NoImages
from fleet_fn.firmware.registry_store import RegistryStore
from fleet_fn.firmware.resolver import ImageResolver, Resolver
from fleet_fn.firmware.shapes import Shapes
from fleet_fn.firmware.store import ImageStore, Store
from fleet_fn.firmware.trust import Trust
from fleet_fn.firmware.verified import VerifiedFiles
from fleet_fn.http.client import Count as RequestCount
from fleet_fn.observability import metrics
from fleet_fn.oci.docker_config import Credentials, from_docker_config
from fleet_fn.oci.registry_client import RegistryClient
from fleet_fn.oci.token_file import (
    read_token_file,
    service_account_token,
    service_authority,
    takes_service_accounts,
)
from fleet_fn.settings import Settings
from fleet_fn.update.failure_log import log_failures
from fleet_fn.update.handler import Consumer, UpdateHandler
from fleet_fn.update.target import Resolvers
from fleet_fn.update.transitions import Subject, Transition
from fleet_fn.upstreams import make_drogue, make_sink

if TYPE_CHECKING:
    from fleet_fn.ddi.client import DdiClient


class LookupCounts(NamedTuple):
    """Counters of the look-ups of events, by the name of the cache."""

    spec: LookupCount
    manifest: LookupCount
    signature: LookupCount


class DdiSource(NamedTuple):
    """A DDI server, and the cache of the firmware that it assigns."""

    client: "DdiClient"
    cache: Cache


class Stores(NamedTuple):
    """Stores of firmware by kind of source, and the trust in what they have."""

    images: ImageStore
    #: None if there are no files.
    files: Store | None
    trust: Trust
    #: None if there is no DDI server.
    hawkbit: DdiSource | None = None


class Parts:
    """Parts that the settings describe, up to the handlers of events and previews.

    Metrics count the upstream requests of both handlers, but only the cache look-ups of events.
    """

    def __init__(self, settings: Settings, clocks: Clocks = SYSTEM_CLOCKS) -> None:
        self._clocks = clocks
        self._single_flight = SingleFlight()
        files = VerifiedFiles(self._single_flight)
        self._drogue = make_drogue(settings)
        self._device_registry = self._drogue.with_count("registry", metrics.exchanges("registry"))
        self._command_api = self._drogue.with_name(COMMAND_API).with_count("command", metrics.exchanges("command"))
        counts = StoreCounts(metrics.exchanges("oci"), metrics.lookups("firmware"))
        self._images = make_image_store(settings, files, self._single_flight, counts, clocks.monotonic)
        self._files = FileStore(settings.firmware_dir, files) if settings.firmware_dir else None
        counts = counts._replace(requests=metrics.exchanges("hawkbit"))
        self._hawkbit = make_ddi_source(settings, files, self._single_flight, counts, clocks.monotonic)
        self._sink = make_sink(settings)
        #: Answers events.
        self.updater = self._make_updater(settings, LookupCounts(*map(metrics.lookups, LookupCounts._fields)))
        #: Answers previews; remembers neither specs nor manifests.
        self.previewer = make_previewer(
            settings,
            self._make_device_registry(settings, remember=False),
            make_resolvers(self._stores(settings), self._single_flight, remember=False, clock=clocks.monotonic),
            Commands(self._command_api),
            clocks,
        )

    def close(self) -> None:
        """Close idle connections; the handlers open new ones if they are used again."""
        self._drogue.close()
        self._images.close()
        if self._hawkbit:
            self._hawkbit.client.close()
        if self._sink:
            self._sink.close()

    def _consumers(self) -> Sequence[Consumer]:
        """Return the consumers of transitions."""
        if self._sink is None:
            return (_transition_counter(), log_failures)
        from fleet_fn.update.update_events import UpdateEvents

        return (_transition_counter(), log_failures, UpdateEvents(self._sink, self._clocks))

    def _make_updater(self, settings: Settings, counts: LookupCounts) -> UpdateHandler:
        stores, clock = self._stores(settings, counts.signature), self._clocks.monotonic
        device_registry = self._make_device_registry(settings, count=counts.spec)
        if settings.in_sync_ttl_seconds > settings.spec_ttl_seconds:
            device_registry.remember_in_sync(settings.in_sync_ttl_seconds)
        return UpdateHandler(
            settings,
            device_registry,
            make_resolvers(stores, self._single_flight, count=counts.manifest, clock=clock),
            Commands(self._command_api),
            self._clocks,
            self._consumers(),
        )

    def _make_device_registry(
        self, settings: Settings, *, remember: bool = True, count: LookupCount | None = None
    ) -> DeviceRegistry:
        return DeviceRegistry(
            self._device_registry,
            anonymous=settings.is_anonymous,
            labels=settings.device_labels or {},
            remember=remember,
            count=count,
            clock=self._clocks.monotonic,
        )

    def _stores(self, settings: Settings, count: LookupCount | None = None) -> Stores:
        return Stores(self._images, self._files, make_trust(settings, count, self._clocks.monotonic), self._hawkbit)


def make_previewer(
    settings: Settings,
    device_registry: DeviceRegistry,
    resolvers: Resolvers,
    commands: Commands,
    clocks: Clocks = SYSTEM_CLOCKS,
) -> UpdateHandler:
    """Return a handler for previews: `decide` on events of any age."""
    return UpdateHandler(replace(settings, event_max_age_seconds=0), device_registry, resolvers, commands, clocks)


def make_resolvers(
    stores: Stores,
    single_flight: SingleFlight,
    *,
    remember: bool = True,
    count: LookupCount | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Resolvers:
    """Return the resolvers of stores.

    Args:
        stores: resolve the references that are not cached.
        single_flight: runs look-ups that a stale firmware can replace.
        remember: cache resolved references.
        count: is called for each look-up of an image, or of an assignment.
        clock: monotonic seconds.

    """
    images, files, trust, ddi = stores
    hawkbit = None
    if ddi:
        from fleet_fn.firmware.hawkbit_store import HawkbitStore

        hawkbit = HawkbitStore(*ddi, remember=remember, count=count, clock=clock)
    return Resolvers(
        ImageResolver(images, single_flight, remember=remember, count=count, clock=clock),
        Resolver(files, single_flight, remember=remember, clock=clock) if files else None,
        trust,
        hawkbit,
    )


def _transition_counter() -> Consumer:
    """Return a consumer that counts transitions by subject."""
    count = metrics.updates(tuple(Subject))

    def consume(_event: Event, transitions: tuple[Transition, ...], _deadline: Deadline) -> None:
        for transition in transitions:
            count(transition.subject)

    return consume


def make_trust(
    settings: Settings, count: LookupCount | None = None, clock: Callable[[], float] = time.monotonic
) -> Trust:
    """Return what decides whether a firmware may be served."""
    return Trust(settings.firmware_verify_keys, settings.firmware_deny, count=count, clock=clock)


class StoreCounts(NamedTuple):
    """Counters of a store's requests, and of the look-ups in its cache."""

    requests: RequestCount
    lookups: LookupCount


def make_image_store(
    settings: Settings,
    files: VerifiedFiles,
    single_flight: SingleFlight,
    counts: StoreCounts | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> ImageStore:
    """Return the store that `FIRMWARE_REGISTRY` names: layouts, or an OCI registry.

    Without it, a store that has no images.
    """
    if not settings.has_images:
        return NoImages()
    cache = _make_cache(settings, files, single_flight, counts.lookups if counts else None, clock)
    shapes = Shapes(cache, single_flight)
    if settings.has_layouts:
        return LayoutStore(files, shapes)
    host = settings.firmware_prefix.partition("/")[0]
    is_clusters = takes_service_accounts(host) and not settings.firmware_registry_insecure
    authority = service_authority() if is_clusters else None
    registry = RegistryClient(
        host,
        credentials=_registry_credentials(settings, host, has_accounts=is_clusters),
        plain_http=settings.firmware_registry_insecure,
        ca_file=settings.firmware_registry_ca_file or (str(authority) if authority else None),
        count=counts.requests if counts else None,
    )
    return RegistryStore(registry, shapes, cache)


def make_ddi_source(
    settings: Settings,
    files: VerifiedFiles,
    single_flight: SingleFlight,
    counts: "StoreCounts | None" = None,
    clock: Callable[[], float] = time.monotonic,
) -> DdiSource | None:
    """Return the DDI server that `HAWKBIT_URL` names.

    Without it, return None, and load no module.
    """
    if settings.hawkbit_url is None:
        return None
    from fleet_fn.ddi.client import DdiClient

    client = DdiClient(
        settings.hawkbit_url,
        settings.hawkbit_tenant,
        settings.hawkbit_gateway_token or "",
        ca_file=settings.hawkbit_ca_file,
        count=counts.requests if counts else None,
    )
    return DdiSource(client, _make_cache(settings, files, single_flight, counts.lookups if counts else None, clock))


def _make_cache(
    settings: Settings,
    files: VerifiedFiles,
    single_flight: SingleFlight,
    count: LookupCount | None,
    clock: Callable[[], float],
) -> Cache:
    folder, bound = settings.firmware_cache_dir, settings.firmware_cache_bytes
    return Cache(folder, bound, files, single_flight, count=count, clock=clock)


def _registry_credentials(settings: Settings, host: str, *, has_accounts: bool) -> Callable[[str], Credentials | None]:
    """Return a function from repositories of the registry `host` to credentials.

    If the registry takes them (`has_accounts`), those of the pod's service account are the last resort.
    """
    user, token, file = (
        settings.firmware_registry_user,
        settings.firmware_registry_token,
        settings.firmware_registry_token_file,
    )
    if token is not None:
        configured = Credentials(user, token)
        return lambda _: configured
    if file is not None:
        return lambda _: read_token_file(file, user)

    def find(repository: str) -> Credentials | None:
        if settings.docker_config and (found := from_docker_config(settings.docker_config, host, repository)):
            return found
        mounted = service_account_token() if has_accounts else None
        return read_token_file(mounted) if mounted else None

    return find
