"""The devices that a rollout is to begin with, as the snapshot has them."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from fleet_fn.console.snapshot import Entry
from fleet_fn.fleet.rollout.actions import SELECTION_LABEL
from fleet_fn.fleet.rollout.application import RefusedError
from fleet_fn.fleet.rollout.devices import Selection


@dataclass(frozen=True, slots=True)
class Selected:
    """Devices of a selection, by name."""

    names: tuple[str, ...]
    #: Those without the rollout's label.
    unlabelled: tuple[str, ...]
    #: Devices that are left out, because they name a firmware of their own.
    own: tuple[str, ...]
    #: What selected them, in words.
    description: str

    @classmethod
    def of(cls, entries: Iterable[Entry], selection: Selection, label: str) -> Self:
        """Select devices.

        Args:
            entries: all devices.
            selection: selects some.
            label: value of the label that they get.

        Raises:
            RefusedError: no device is selected.

        """
        found = [entry for entry in entries if selection.matches(entry.row)]
        taken = [entry for entry in found if not entry.has_own_firmware]
        if not taken:
            raise RefusedError(f"no device is selected: {selection}")
        return cls(
            tuple(entry.row.device for entry in taken),
            tuple(entry.row.device for entry in taken if entry.labels.get(SELECTION_LABEL) != label),
            tuple(entry.row.device for entry in found if entry.has_own_firmware),
            str(selection),
        )

    @property
    def fingerprint(self) -> str:
        """A text that is equal for equal devices."""
        return fingerprint_of(self.names)


def fingerprint_of(names: Iterable[str]) -> str:
    """Return a text that is equal for equal names, in any order."""
    digest = hashlib.sha256()
    for name in sorted(names):
        digest.update(f"{len(name)}:{name}".encode(errors="surrogatepass"))
    return digest.hexdigest()
