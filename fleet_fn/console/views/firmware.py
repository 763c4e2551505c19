"""The page with the firmware that an application can be given."""

from dataclasses import dataclass, field
from typing import Final

from flask import Blueprint, Response, g, request

from fleet_fn.console.command_line import command_line
from fleet_fn.console.next_command import NO_REGISTRY
from fleet_fn.console.parts import parts
from fleet_fn.console.releases import Release, Rollout, make_release, make_releases
from fleet_fn.console.rendering import render
from fleet_fn.console.repositories import Listing, judge
from fleet_fn.console.snapshot import Snapshot
from fleet_fn.deadline import Deadline
from fleet_fn.drogue.device_registry_api import DeviceRegistryAPI
from fleet_fn.drogue.spec_source import File, HawkBit, Image, Source
from fleet_fn.errors import PermanentError
from fleet_fn.firmware.tag_list import TagList
from fleet_fn.fleet.cures import cure_of_registry
from fleet_fn.fleet.repository import MAX_TAGS, Tagged
from fleet_fn.fleet.rollout.actions import halted_versions
from fleet_fn.fleet.rollout.application import Application, RefusedError
from fleet_fn.fleet.rollout.target import Finders
from fleet_fn.oci.layout import NO_LAYOUT
from fleet_fn.oci.reference import LAYOUT_SCHEME
from fleet_fn.settings import Settings
from fleet_fn.version_range import parse_range

blueprint = Blueprint("firmware", __name__)

#: How long the page waits for the application's object, and for a file.
_WAIT_SECONDS: Final = 4.0


@dataclass(slots=True)
class _Shown:
    """What the page shows."""

    #: The place, for people; empty if the application names none.
    place: str = ""
    #: Name of the repository, which references begin with; empty without one.
    repository: str = ""
    releases: list[Release] = field(default_factory=list)
    #: Tags without firmware, and why.
    others: list[Tagged] = field(default_factory=list)
    listing: Listing | None = None
    #: The same on the command line; empty if there is no such command.
    equivalent: str = ""
    #: What to know about the place.
    note: str = ""
    #: Why firmware is missing; empty if none is.
    problem: str = ""

    @property
    def unread(self) -> int:
        """Number of tags that are not looked at."""
        tags = self.listing.tags if self.listing else None
        return max(0, len(tags) - MAX_TAGS) if tags else 0


@blueprint.get("/applications/<name>/firmware")
def show(name: str) -> Response:
    """Show the versions in the repository that an application names."""
    parts().access.check(g.user, name)
    snapshot = parts().snapshots.look(g.user, name)
    application = snapshot.overview.application if snapshot.overview else _read(name)
    shown = _find(application, snapshot)
    sought = request.args.get("q", "").strip().lower()
    found = [release for release in shown.releases if release.has(sought)]
    return render(
        "firmware.html",
        name=name,
        shown=shown,
        found=found,
        others=[tagged for tagged in shown.others if sought in tagged.tag.lower()],
        sought=sought,
        has_counts=snapshot.devices is not None,
        rows=MAX_TAGS,
    )


def _read(name: str) -> Application:
    api = DeviceRegistryAPI(g.user.upstream)
    found, _ = parts().access.ask(g.user, lambda: api.fetch((name,), Deadline(_WAIT_SECONDS)))
    return Application.read(found)


def _find(application: Application, snapshot: Snapshot) -> _Shown:
    """Return the firmware that an application can be given."""
    try:
        source = application.source
    except RefusedError as error:
        return _Shown(problem=error.reason)
    if isinstance(source, HawkBit):
        return _Shown(problem="hawkBit assigns the application's firmware, to each device its own. See it there.")
    finders = parts().firmware.finders
    if finders is None:
        return _Shown(problem=NO_REGISTRY)
    try:
        if isinstance(source, File):
            return _find_file(finders, application, source, snapshot)
        return _find_repository(application, source, snapshot)
    except PermanentError as error:
        return _Shown(problem=_explain(error.reason, source))


def _find_repository(application: Application, source: Source | None, snapshot: Snapshot) -> _Shown:
    """Return the releases in an application's repository.

    Raises:
        PermanentError: it names none.

    """
    repositories = parts().repositories
    assert repositories is not None  # noqa: S101 - there are finders
    listing = repositories.look(application.name, source)
    reference, settings = listing.reference, parts().operator
    totals = snapshot.devices.totals if snapshot.devices else None
    place = f"{LAYOUT_SCHEME if settings.has_layouts else ''}{reference.prefix}{reference.name}"
    return _Shown(
        place=place,
        repository=reference.name,
        releases=make_releases(listing.entries, _rollout(application, source, listing, snapshot), totals),
        others=[entry.tagged for entry in listing.entries if entry.tagged.firmware is None],
        listing=listing,
        equivalent=command_line("inspect", place),
        note="" if source else "The application names no firmware, so devices get FIRMWARE_DEFAULT_IMAGE.",
        problem=_with_cure(listing.problem, reference.prefix, settings),
    )


def _find_file(finders: Finders, application: Application, source: File, snapshot: Snapshot) -> _Shown:
    """Return the firmware in a file.

    Raises:
        PermanentError: there is none.

    """
    store, reference = finders.of(application.name).place(source)
    firmware = store.resolve(reference, Deadline(_WAIT_SECONDS))
    verdict = judge(finders.trust, firmware, application.name)
    totals = snapshot.devices.totals if snapshot.devices else None
    release = make_release(firmware, (), verdict, Rollout(firmware.version), totals)
    return _Shown(
        place=f"{source.name}.bin in FIRMWARE_DIR",
        releases=[release],
        note="A file has one version. To choose among versions, roll out an image of a repository.",
    )


def _rollout(application: Application, source: Source | None, listing: Listing, snapshot: Snapshot) -> Rollout:
    target = snapshot.overview.target if snapshot.overview else None
    wanted = source.version if isinstance(source, Image) else None
    in_range = None
    if wanted is not None and listing.tags is not None:
        in_range = frozenset(TagList.of(listing.tags).within(parse_range(wanted)))
    return Rollout(
        target.version if target else None,
        target.image.partition("@")[2] if target and target.image else None,
        halted_versions(application),
        in_range,
    )


def _explain(reason: str, source: Source | None) -> str:
    """Return a reason with what to do, for people."""
    if source is None:
        return "The application names no firmware. Roll out a version to name one."
    return reason


def _with_cure(reason: str, prefix: str, settings: Settings) -> str:
    if reason.startswith(NO_LAYOUT):
        return f"{reason} in {prefix}: publish one there, or correct the image or FIRMWARE_REGISTRY"
    cure = cure_of_registry(reason, prefix.partition("/")[0], is_insecure=settings.firmware_registry_insecure)
    return f"{reason}{cure}"
