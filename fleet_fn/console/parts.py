"""Parts of the console, made from its settings."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from flask import current_app, g

from fleet_fn.console.access import Access
from fleet_fn.console.checks import Checks
from fleet_fn.console.jobs import Jobs
from fleet_fn.console.next_command import NextCommands
from fleet_fn.console.repositories import Repositories
from fleet_fn.console.settings import ConsoleSettings
from fleet_fn.console.sign_in.client import Client
from fleet_fn.console.sign_in.users import OidcUsers
from fleet_fn.console.snapshots import Snapshots
from fleet_fn.console.users import LocalUser, User, Users
from fleet_fn.fleet.rollout.application import Application
from fleet_fn.fleet.rollout.session import RolloutSession
from fleet_fn.fleet.rollout.target import Finders, FirmwareFinder, FoundTarget, find_target
from fleet_fn.fleet.rollout.user import user_of
from fleet_fn.http.client import HttpClient
from fleet_fn.openid.provider import Provider
from fleet_fn.settings import Settings
from fleet_fn.upstreams import make_drogue, make_sink

if TYPE_CHECKING:
    from fleet_fn.sink.client import Sink


#: How long a page, or a reading of an application, waits for the OCI registry to name a firmware.
_QUICK_SECONDS: Final = 4.0
#: How long readings do not ask again after the registry kept one waiting.
_REGISTRY_PAUSE_SECONDS: Final = 30.0


@dataclass(slots=True)
class Firmware:
    """Finds firmware as the function would, if the settings say where."""

    finders: Finders | None
    #: Why the registry is not asked by readings, and until when.
    _problem: str = ""
    _asked_again: float = 0.0

    def finder(self, application: str) -> FirmwareFinder | None:
        """Return the finder of an application's firmware.

        It may take an hour. None without FIRMWARE_REGISTRY and FIRMWARE_DIR.
        """
        return self.finders.of(application) if self.finders else None

    def quick_finder(self, application: str) -> FirmwareFinder | None:
        """Return the finder for a page, which does not wait for long."""
        finder = self.finder(application)
        return replace(finder, patience=_QUICK_SECONDS) if finder else None

    def find_target(self, application: Application, *, strictly: bool = False) -> FoundTarget:
        """Return the firmware that an application names; see `find_target` of rollouts."""
        return find_target(application, self.quick_finder(application.name), strictly=strictly)

    def find_shown_target(self, application: Application) -> FoundTarget:
        """Return the same for a reading in the background.

        A registry that hangs must not keep users from seeing rollouts, so it is not asked again for a while.
        """
        began = time.monotonic()
        if application.rollout.version is not None and began < self._asked_again:
            return FoundTarget(find_target(application, None).target, self._problem)
        found = self.find_target(application)
        if found.problem and time.monotonic() - began > _QUICK_SECONDS / 2:
            self._problem, self._asked_again = found.problem, time.monotonic() + _REGISTRY_PAUSE_SECONDS
        return found


@dataclass(frozen=True, slots=True)
class Parts:
    """What the pages work with."""

    operator: Settings
    users: Users
    access: Access
    snapshots: Snapshots
    firmware: Firmware
    next_commands: NextCommands
    #: None without FIRMWARE_REGISTRY and FIRMWARE_DIR.
    repositories: Repositories | None
    sink: "Sink | None"
    checks: Checks = field(default_factory=Checks)
    jobs: Jobs = field(default_factory=Jobs)

    def session(self, application: str, *, dry_run: bool = False) -> RolloutSession:
        """Return a session that changes a rollout with the user's own credentials."""
        user: User = g.user
        return RolloutSession(user.upstream, application, user.name, dry_run=dry_run, sink=self.sink)


def parts() -> Parts:
    """Return the parts of the current app."""
    found: Parts = current_app.extensions["fleet"]
    return found


@contextmanager
def open_parts(settings: ConsoleSettings, folder: str, clock: Callable[[], float] = time.monotonic) -> Iterator[Parts]:
    """Yield the parts of a console.

    Args:
        settings: the console's settings.
        folder: takes the cache of firmware; the caller removes it.
        clock: seconds, never stepping; for the pauses between readings of Drogue Cloud.

    """
    operator = settings.operator
    with closing(make_drogue(operator)) as drogue, _open_users(settings, drogue) as users:
        firmware = Firmware(Finders(operator, folder) if operator.finds_firmware else None)
        sink = make_sink(operator)
        snapshots = Snapshots(firmware.find_shown_target, clock=clock)
        next_commands = NextCommands(operator, firmware.finders)
        repositories = Repositories(firmware.finders) if firmware.finders else None
        try:
            found = Parts(operator, users, Access(clock), snapshots, firmware, next_commands, repositories, sink)
            yield found
        finally:
            found.checks.close()
            snapshots.close()
            if repositories:
                repositories.close()
            if firmware.finders:
                firmware.finders.close()
            if sink:
                sink.close()


@contextmanager
def _open_users(settings: ConsoleSettings, drogue: HttpClient) -> Iterator[Users]:
    """Yield the users: those who sign in, or else the operator alone."""
    operator = settings.operator
    if settings.sign_in is None:
        yield LocalUser(User("operator", user_of(operator) or "operator", drogue))
        return
    with closing(Provider(settings.sign_in.issuer, ca_file=operator.drogue_ca_file)) as provider:
        yield OidcUsers(Client(provider, settings.sign_in), drogue)
