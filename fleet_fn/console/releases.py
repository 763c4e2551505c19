"""The firmware of a repository as a page shows it.

A release stands for all tags of a manifest.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from fleet_fn.console.repositories import Entry, Verdict
from fleet_fn.drogue.update_record import parse_timestamp
from fleet_fn.errors import PermanentError
from fleet_fn.firmware.store import Firmware
from fleet_fn.fleet.repository import version_order
from fleet_fn.fleet.rollout.target import refuse_long_version
from fleet_fn.fleet.totals import Totals
from fleet_fn.oci.manifest import CREATED_ANNOTATION, REVISION_ANNOTATION, SOURCE_ANNOTATION

#: Characters of a revision that are shown.
_REVISION_CHARS: Final = 12
#: The tag that names the last release rather than a version.
_LATEST: Final = "latest"


@dataclass(frozen=True, slots=True)
class Rollout:
    """What an application's rollout says of releases."""

    #: Version and manifest of the target; None if unknown.
    version: str | None = None
    digest: str | None = None
    #: Versions of which no device gets anything.
    halted: Sequence[str] = ()
    #: Tags in the range that the application names; None without a range.
    in_range: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Release:
    """A firmware, and all that a page tells about it."""

    firmware: Firmware
    #: All tags that name it, without attachments; empty for a file.
    tags: tuple[str, ...]
    verdict: Verdict
    is_target: bool = False
    is_halted: bool = False
    is_in_range: bool = False
    #: Why no device can be sent it, whatever its signature; empty if nothing is in the way.
    problem: str = ""
    #: Devices that run it, and that should.
    runs: int = 0
    should_run: int = 0

    @property
    def version(self) -> str:
        """Its version."""
        return self.firmware.version

    @property
    def tag(self) -> str:
        """The tag to name it by; empty for a file."""
        return next((tag for tag in self.tags if tag != _LATEST), next(iter(self.tags), ""))

    @property
    def other_tags(self) -> tuple[str, ...]:
        """Tags that do not repeat its version."""
        return tuple(tag for tag in self.tags if tag != self.version)

    @property
    def created(self) -> datetime | None:
        """When it was made, as its manifest tells; None if it does not."""
        return parse_timestamp(self.firmware.origin.get(CREATED_ANNOTATION))

    @property
    def revision(self) -> str:
        """The commit that it was built from, shortened; empty if unknown."""
        return self.firmware.origin.get(REVISION_ANNOTATION, "")[:_REVISION_CHARS]

    @property
    def source(self) -> str:
        """The repository that it was built from; empty if unknown."""
        return self.firmware.origin.get(SOURCE_ANNOTATION, "")

    @property
    def can_start(self) -> bool:
        """A rollout of it can be started, as far as is known."""
        return bool(self.tag) and self.verdict.is_served and not self.problem and not self.is_target

    def has(self, sought: str) -> bool:
        """Return whether a text in lower case is part of what a page tells about it."""
        told = (self.version, *self.tags, *self.firmware.hardware, self.firmware.requires, self.firmware.manifest or "")
        more = (self.revision, self.source, self.verdict.words)
        return any(sought in text.lower() for text in (*told, *more))


def make_releases(entries: Iterable[Entry], rollout: Rollout, totals: Totals | None) -> list[Release]:
    """Return the releases in a repository, the highest version first.

    Args:
        entries: its tags.
        rollout: the application's.
        totals: numbers of devices by version; None if they are not known yet.

    """
    by_manifest: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.tagged.firmware:
            by_manifest.setdefault(f"{entry.tagged.firmware.manifest} {entry.tagged.firmware.version}", []).append(
                entry
            )
    releases = [_release(found, rollout, totals) for found in by_manifest.values()]
    return sorted(releases, key=lambda release: version_order(release.version), reverse=True)


def _release(entries: Sequence[Entry], rollout: Rollout, totals: Totals | None) -> Release:
    firmware, verdict = entries[0].tagged.firmware, entries[0].verdict
    assert firmware is not None  # noqa: S101 - see `make_releases`
    assert verdict is not None  # noqa: S101 - it has firmware
    tags = tuple(entry.tagged.tag for entry in entries)
    return make_release(firmware, tags, verdict, rollout, totals)


def make_release(
    firmware: Firmware, tags: tuple[str, ...], verdict: Verdict, rollout: Rollout, totals: Totals | None
) -> Release:
    """Return a release."""
    version = firmware.version
    is_target = firmware.manifest == rollout.digest if rollout.digest else version == rollout.version
    return Release(
        firmware,
        tags,
        verdict,
        is_target=is_target and version == rollout.version,
        is_halted=version in rollout.halted,
        is_in_range=rollout.in_range is not None and any(tag in rollout.in_range for tag in tags),
        problem=_problem_of(firmware),
        runs=_count(totals.current, version) if totals else 0,
        should_run=_count(totals.target, version) if totals else 0,
    )


def _count(counts: Mapping[str, int], version: str) -> int:
    return counts.get(version, 0)


def _problem_of(firmware: Firmware) -> str:
    try:
        refuse_long_version(firmware)
    except PermanentError as error:
        return error.reason
    return ""
