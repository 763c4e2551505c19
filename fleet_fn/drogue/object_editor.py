"""Change an object of the device registry while others change it too."""

import random
import time
from collections.abc import Callable
from typing import Any, Final

from fleet_fn.deadline import Deadline
from fleet_fn.drogue.device_registry_api import DeviceRegistryAPI, kind_of
from fleet_fn.drogue.refusals import DEVICE_REGISTRY
from fleet_fn.errors import TransientError

#: Attempts to write an object that other processes write at the same time.
_MAX_ATTEMPTS: Final = 50
#: The longest pause before another attempt.
_MAX_PAUSE_SECONDS: Final = 0.02

Change = Callable[[dict[str, Any]], dict[str, Any] | None]


def edit_object(api: DeviceRegistryAPI, names: tuple[str, ...], change: Change, deadline: Deadline) -> dict[str, Any]:
    """Read an object, and write it back changed; begin again if it changes meanwhile.

    Args:
        api: the device registry.
        names: the application's name, or the application's and the device's.
        change: returns the changed object, or None if there is nothing to change. It is called for each version that is
            read, and leaves its argument as it is.
        deadline: for all attempts together.

    Returns:
        The object as it was written, or as it was read if there was nothing to change.

    Raises:
        DeviceNotFoundError: the registry refuses the credentials or the object.
        PermanentError: the registry refuses the change, or its answer is malformed.
        TransientError: the registry is unavailable, or the object keeps changing.

    """
    for attempt in range(_MAX_ATTEMPTS):
        if attempt:
            pause_before_retry(deadline)
        found, _ = api.fetch(names, deadline)
        changed = change(found)
        if changed is None:
            return found
        if api.put(names, changed, deadline):
            return changed
    raise TransientError(f"{DEVICE_REGISTRY}: others keep changing the {kind_of(names)}").without_effect()


def pause_before_retry(deadline: Deadline) -> None:
    """Wait for a moment by chance, so that two writers of an object do not keep step."""
    pause = random.uniform(0, _MAX_PAUSE_SECONDS)  # noqa: S311 - nothing depends on it being secret
    time.sleep(min(pause, deadline.remaining))
