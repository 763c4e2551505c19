"""Change many devices, with a progress bar."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from fleet_fn.cli.rollout.shared import warn
from fleet_fn.fleet.rollout.actions import Object
from fleet_fn.fleet.rollout.devices import DeviceEdit, describe_problems, edit_devices
from fleet_fn.fleet.rollout.session import RolloutSession

#: Problems of devices that are listed.
_MAX_PROBLEMS: Final = 10


def change_devices(
    session: RolloutSession, names: Sequence[str], change: Callable[[Object], Object | None], doing: str
) -> list[DeviceEdit]:
    """Change devices one by one, and warn of those that could not be changed.

    Raises:
        PermanentError: the credentials are refused.
        TransientError: the registry is unavailable.

    """
    edits = list(_with_progress(edit_devices(session, names, change), len(names), doing))
    for problem in describe_problems(edits, _MAX_PROBLEMS):
        warn(problem)
    return edits


def _with_progress(edits: Iterable[DeviceEdit], count: int, doing: str) -> Iterator[DeviceEdit]:
    """Yield what `edits` yields, below a progress bar if stderr is a terminal."""
    if not sys.stderr.isatty():
        yield from edits
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(edits, doing, total=count, console=Console(stderr=True), transient=True)
