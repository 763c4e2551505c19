"""Whether a change still is what an operator was shown of it.

The function itself writes into an application's status: failures, for instance. Such news must not keep an operator
from stopping a rollout. So a review is about what the change changes, not about the whole object.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from fleet_fn.fleet.rollout.actions import Actor, Object
from fleet_fn.fleet.rollout.application import Application, RefusedError
from fleet_fn.fleet.rollout.diff import parts_of
from fleet_fn.fleet.rollout.plans import Make

#: Parts of `status.firmware.rollout` that tell when and by whom it was changed.
_OF_MOMENT: Final = (("status.firmware.rollout", "last"), ("status.firmware.rollout", "since"))


class ChangedMeanwhileError(RefusedError):
    """The change is not any more what the operator was shown."""


def fingerprint(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Return a text that is equal for equal changes, whenever they are made."""
    old, new = dict(_leaves((), parts_of(before))), dict(_leaves((), parts_of(after)))
    changes = {
        json.dumps(path): [old.get(path), new.get(path)]
        for path in {*old, *new}
        if path[:2] not in _OF_MOMENT and old.get(path) != new.get(path)
    }
    return hashlib.sha256(json.dumps(changes, sort_keys=True).encode()).hexdigest()


def only_as_shown(make: Make, shown: str) -> Make:
    """Return a change of an application that is made only if it has a fingerprint.

    Otherwise it raises `ChangedMeanwhileError`.

    Args:
        make: makes the change.
        shown: the fingerprint of the change that the operator was shown.

    """

    def make_as_shown(found: Application, actor: Actor) -> Object | None:
        changed = make(found, actor)
        if changed is not None and fingerprint(found.found, changed) != shown:
            raise ChangedMeanwhileError("by now the change is another one, because the application has changed")
        return changed

    return make_as_shown


def _leaves(path: tuple[str, ...], value: Any) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the values below a path that are no maps, as JSON, by their paths."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _leaves((*path, key), each)
    elif value is not None:
        yield path, json.dumps(value, sort_keys=True)
