"""Change many devices, with a progress bar."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from fleet_fn.cli.rollout.shared import warn
from fleet_fn.fleet.rollout.actions import Object
from fleet_fn.fleet.rollout.application import RefusedError
from fleet_fn.fleet.rollout.devices import DeviceEdit, edit_devices
from fleet_fn.fleet.rollout.session import Change, RolloutSession

#: Problems of devices that are listed.
_MAX_PROBLEMS: Final = 10


@dataclass(slots=True)
class Changed:
    """Devices that were changed, or would be."""

    names: list[str] = field(default_factory=list)
    #: The change of the first one.
    first: Change | None = None


def change_devices(
    session: RolloutSession,
    names: Sequence[str],
    change: Callable[[Object], Object | None],
    doing: str,
    changed: Changed,
) -> None:
    """Change devices, and warn of those that could not be changed.

    A dry run tries only the first.

    Args:
        session: of the application.
        names: the devices.
        change: changes one.
        doing: what is being done, for people.
        changed: takes the devices that were changed, also if an error ends it midway.

    Raises:
        RefusedError: none of the first devices can be changed; the role may not write, for instance.
        TransientError: the registry is unavailable.

    """
    problems = 0
    tried = names[:1] if session.dry_run else names
    for edit in _with_progress(edit_devices(session, tried, change), len(tried), doing):
        if edit.change:
            changed.names.append(edit.device)
            changed.first = changed.first or edit.change
        else:
            problems += 1
            if problems == _MAX_PROBLEMS and not changed.names:
                raise RefusedError(f"no device can be changed: {edit.problem}")
            if problems <= _MAX_PROBLEMS:
                warn(f"{edit.device}: {edit.problem}")
    if problems > _MAX_PROBLEMS:
        warn(f"… and {problems - _MAX_PROBLEMS} more")
    changed.names.extend(names[len(tried) :])


def _with_progress(edits: Iterable[DeviceEdit], count: int, doing: str) -> Iterator[DeviceEdit]:
    """Yield what `edits` yields, below a progress bar if stderr is a terminal."""
    if not sys.stderr.isatty():
        yield from edits
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(edits, doing, total=count, console=Console(stderr=True), transient=True)
