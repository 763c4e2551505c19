"""Store of firmware that a DDI server such as hawkBit assigns to controllers.

It remembers what it last read of each controller, and each installed deployment by its link. Open ones are read with
each reading of the controller. Bytes come through the cache, verified by SHA-256.
"""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Final

from fleet_fn.concurrency.circuit_breaker import CircuitBreaker
from fleet_fn.concurrency.ttl_cache import Count, TTLCache
from fleet_fn.ddi.client import DDI_SERVER, ActionChangedError, DdiClient
from fleet_fn.ddi.documents import Base, Deployment
from fleet_fn.deadline import Deadline
from fleet_fn.errors import PermanentError, negative_ttl
from fleet_fn.firmware.assignment import Assignment, Controller, Kind, choose, ends_with_download, may_swap, may_write
from fleet_fn.firmware.cache import Cache
from fleet_fn.firmware.conditions import read_conditions
from fleet_fn.firmware.store import Firmware, Reader

#: Bounds of what is remembered of controllers and of installed deployments: some 2 KB each.
_MAX_CONTROLLERS: Final = 20_000
_MAX_INSTALLED: Final = 4096
_MAX_INSTALLED_BYTES: Final = 16 * 1024 * 1024
#: How long an installed deployment is remembered by its link.
_MAX_INSTALLED_AGE_SECONDS: Final = 600.0
#: Size of each read from a download.
_CHUNK_BYTES: Final = 256 * 1024
#: The longest search for the place of bytes, in the background.
_FIND_TIMEOUT_SECONDS: Final = 30.0
#: Kind of content, for people.
_SHAPE: Final = "hawkBit artifact"


class HawkbitStore:
    """Knows what a DDI server assigns to controllers, and serves it through the cache."""

    def __init__(
        self,
        client: DdiClient,
        cache: Cache,
        *,
        remember: bool = True,
        count: Count | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create a store.

        Args:
            client: asks the server.
            cache: has the verified bytes.
            remember: whether to remember what was read.
            count: is called with each look-up of a controller.
            clock: monotonic seconds.

        """
        self.client = client
        self._cache = cache
        #: Each controller is a look-up of its own. Without it, all threads would wait for a server that hangs.
        self._breaker = CircuitBreaker()
        size = _MAX_CONTROLLERS if remember else 0
        self._assignments: TTLCache[Controller, Assignment] = TTLCache(
            size, negative_ttl=negative_ttl, count=count, clock=clock
        )
        #: Controllers whose updates go on by their records; the value has no meaning.
        self._resumed: TTLCache[Controller, bool] = TTLCache(size, clock=clock)
        self._installed: TTLCache[str, Deployment] = TTLCache(
            _MAX_INSTALLED if remember else 0, max_bytes=_MAX_INSTALLED_BYTES, clock=clock
        )

    # --- Assignments --------------------------------------------------------------------------------------------------

    def assignment(self, controller: Controller, max_age: float, deadline: Deadline) -> Assignment:
        """Return what the server wants of a controller.

        It was read at most `max_age` seconds ago.

        Raises:
            PermanentError: the server refuses the controller or the token, or its answer is malformed.
            TransientError: the server does not answer in time.

        """

        def read() -> Assignment:
            return self._breaker.call(lambda: self._read(controller, deadline), deadline)

        return self._assignments.get(controller, max_age, read, deadline)

    def peek(self, controller: Controller, max_age: float) -> Assignment | None:
        """Return what was read of a controller within `max_age` seconds, or None."""
        return self._assignments.peek(controller, max_age)

    def is_known(self, controller: Controller) -> bool:
        """Return whether anything is known of a controller, however old."""
        return self.peek(controller, math.inf) is not None or self.is_resumed(controller, math.inf)

    def resume(self, controller: Controller) -> None:
        """Forget what was read of a controller: its update goes on by its record."""
        self._assignments.invalidate(controller)
        self._resumed.put(controller, self._resumed.now(), True)

    def is_resumed(self, controller: Controller, max_age: float) -> bool:
        """Return whether a controller's update was resumed at most `max_age` seconds ago."""
        return self._resumed.peek(controller, max_age) is not None

    def forget(self, controller: Controller) -> None:
        """Forget what was read of a controller: the server wants something else now.

        The controller stays known, so its update does not go on by its record before the server was asked.
        """
        self._assignments.invalidate(controller)
        self._resumed.put(controller, -math.inf, True)

    def close_action(self, controller: Controller, assignment: Assignment) -> None:
        """Note that the server was told that a deployment is installed."""
        installed = replace(assignment, kind=Kind.NOTHING, action="", attributes=None)
        self._assignments.replace(controller, installed)

    def _read(self, controller: Controller, deadline: Deadline) -> Assignment:
        base = self.client.base(controller.name, deadline)
        # A server gives one of the three links at most. Of several, the one that holds most back counts.
        if base.cancellation:
            cancellation = self.client.cancellation(base.cancellation, deadline)
            return Assignment(
                Kind.CANCELLATION, cancellation.stops, cancellation=cancellation.id, attributes=base.attributes
            )
        if base.confirmation or base.deployment:
            return self._read_action(controller, base, deadline)
        installed = self._read_installed(controller, base, deadline)
        return Assignment(firmware=installed, tells_installed=base.installed is not None, attributes=base.attributes)

    def _read_action(self, controller: Controller, base: Base, deadline: Deadline) -> Assignment:
        kind = Kind.CONFIRMATION if base.confirmation else Kind.DEPLOYMENT
        link = base.confirmation or base.deployment or ""
        # Read each time: its link changes with anything but the content of its modules.
        deployment = self.client.deployment(link, kind.value, deadline)
        firmware, path, problem = None, "", ""
        try:
            firmware, path = self._firmware(controller, deployment)
        except PermanentError as error:
            problem = error.reason
        return Assignment(
            kind,
            deployment.action,
            firmware,
            problem,
            may_write(deployment),
            may_swap(deployment),
            ends_with_download(deployment),
            path=path,
            attributes=base.attributes,
        )

    def _read_installed(self, controller: Controller, base: Base, deadline: Deadline) -> Firmware | None:
        """Return the firmware that the server takes for installed, if it tells."""
        link = base.installed
        if link is None:
            return None

        def read() -> Deployment:
            return self.client.deployment(link, Kind.DEPLOYMENT.value, deadline)

        try:
            deployment = self._installed.get(link, _MAX_INSTALLED_AGE_SECONDS, read, deadline)
            return self._firmware(controller, deployment)[0]
        except (PermanentError, ActionChangedError):
            return None  # an older one may have no SHA-256, or its file is gone

    # --- Firmware -----------------------------------------------------------------------------------------------------

    def recorded(self, controller: Controller, version: str, size: int, checksum: bytes, path: str) -> Firmware:
        """Return the firmware of an update that was begun; nothing is asked.

        Args:
            controller: the controller.
            version: the firmware's version.
            size: its bytes.
            checksum: their SHA-256.
            path: where they are at the server's own origin; empty if they are elsewhere.

        Raises:
            PermanentError: no firmware can be like that.

        """
        # A double slash would make it another host's.
        is_path = path.startswith("/") and not path.startswith("//")
        fill = (
            partial(self._fill, (path,), size) if is_path else partial(self._find_and_fill, controller, size, checksum)
        )
        return Firmware(version, size, checksum, _SHAPE, partial(self._open, size, checksum, fill))

    def _firmware(self, controller: Controller, deployment: Deployment) -> tuple[Firmware, str]:
        """Return a deployment's firmware, and its path if the server itself has it.

        Raises:
            PermanentError: it has none that can be served.

        """
        artifact = choose(deployment, controller)
        assert artifact.size is not None and artifact.checksum is not None  # noqa: S101, PT018 - `choose` checks it
        hardware, requires = read_conditions(artifact.metadata)
        firmware = Firmware(
            artifact.version,
            artifact.size,
            artifact.checksum,
            _SHAPE,
            partial(self._open, artifact.size, artifact.checksum, partial(self._fill, artifact.links, artifact.size)),
            hardware=hardware,
            requires=requires,
        )
        paths = (self.client.own_path(link) for link in artifact.links)
        return firmware, next((path for path in paths if path), "")

    def _open(
        self, size: int, checksum: bytes, fill: Callable[[Callable[[bytes], object]], None], deadline: Deadline
    ) -> AbstractContextManager[Reader]:
        return self._cache.open(size, checksum, self.client.place, fill, deadline)

    def _fill(self, links: tuple[str, ...], size: int, write: Callable[[bytes], object]) -> None:
        with self.client.stream(links, size) as download:
            while piece := download.read(_CHUNK_BYTES):
                write(piece)

    def _find_and_fill(
        self, controller: Controller, size: int, checksum: bytes, write: Callable[[bytes], object]
    ) -> None:
        """Fetch bytes whose place is not recorded.

        Links elsewhere may be secrets, and expire.
        """
        deadline = Deadline(_FIND_TIMEOUT_SECONDS)
        base = self.client.base(controller.name, deadline)
        link = base.deployment
        deployment = self.client.deployment(link, Kind.DEPLOYMENT.value, deadline) if link else None
        for artifact in deployment.artifacts if deployment else ():
            if (artifact.size, artifact.checksum) == (size, checksum) and artifact.links:
                self._fill(artifact.links, size, write)
                return
        raise PermanentError(f"{DDI_SERVER}: the firmware that the device has begun is assigned no more")
