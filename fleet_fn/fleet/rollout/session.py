"""Write changes of an application's rollout through the device registry."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from fleet_fn.deadline import Deadline
from fleet_fn.drogue.device_registry_api import DeviceRegistryAPI
from fleet_fn.drogue.object_editor import edit_object
from fleet_fn.errors import UpstreamError
from fleet_fn.fleet.rollout.actions import Actor, Object
from fleet_fn.fleet.rollout.application import Application
from fleet_fn.fleet.rollout.diff import change_of, diff_lines
from fleet_fn.http.client import HttpClient

if TYPE_CHECKING:
    from fleet_fn.sink.client import Sink

#: Time for reading an object, or for changing one however often others change it.
_OBJECT_SECONDS: Final = 15.0
#: Time for the sink.
_SINK_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Change:
    """A change of one object, written or only tried."""

    #: Kind and name of the object, for people.
    name: str
    before: Mapping[str, Any]
    #: The same as before if there was nothing to change.
    after: Mapping[str, Any]
    #: Why the sink was not told; empty if it was, or if there is none.
    sink_problem: str = ""

    @property
    def is_made(self) -> bool:
        """Is true if the object is different."""
        return self.before is not self.after

    def diff(self) -> list[str]:
        """Return the difference, line by line."""
        return diff_lines(self.before, self.after, self.name)


class RolloutSession:
    """Reads and changes one application's rollout."""

    def __init__(
        self,
        upstream: HttpClient,
        application: str,
        user: str,
        *,
        anonymous: bool = False,
        dry_run: bool = False,
        sink: "Sink | None" = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Create a session.

        Args:
            upstream: Drogue Cloud.
            application: the application's name.
            user: the operator's name; empty if unknown.
            anonymous: whether `upstream` sends no credentials; refusals say so.
            dry_run: write nothing.
            sink: takes an event for each change; None for none.
            now: tells the current time.

        """
        self.upstream = upstream
        # The command line may hand over bytes that are not UTF-8, as lone surrogates. No application has such a name.
        self.name = application.encode(errors="replace").decode()
        self.dry_run = dry_run
        self.api = DeviceRegistryAPI(upstream, anonymous=anonymous)
        self.now = now
        self._user = user
        self._sink = sink

    @property
    def actor(self) -> Actor:
        """The operator, now."""
        return Actor(self._user, self.now())

    def read(self) -> Application:
        """Return the application as it is now.

        Raises:
            PermanentError: it is unknown, or malformed, or the credentials are refused.
            TransientError: the registry is unavailable.

        """
        found, _ = self.api.fetch((self.name,), Deadline(_OBJECT_SECONDS))
        return Application.read(found)

    def change(self, action: str, change: Callable[[Application, Actor], Object | None]) -> Change:
        """Change the application, and tell the sink.

        Args:
            action: name of the command, for the sink.
            change: makes the change; it is called again if the object changes meanwhile.

        Raises:
            PermanentError: the change makes no sense, or the registry refuses it.
            TransientError: the registry is unavailable.

        """
        made = self.edit((self.name,), f"application {self.name}", lambda found: self._change(change, found))
        if not made.is_made or self.dry_run:
            return made
        problem = self.tell(action, change_of(made.before, made.after))
        return Change(made.name, made.before, made.after, problem)

    def _change(self, change: Callable[[Application, Actor], Object | None], found: Object) -> Object | None:
        return change(Application.read(found), self.actor)

    def edit(self, names: tuple[str, ...], name: str, change: Callable[[Object], Object | None]) -> Change:
        """Change an object, or only try to if this is a dry run.

        Raises:
            PermanentError: the change makes no sense, or the registry refuses it.
            TransientError: the registry is unavailable.

        """
        deadline = Deadline(_OBJECT_SECONDS)
        versions: list[tuple[Object, Object]] = []

        def make(found: Object) -> Object | None:
            changed = change(found)
            versions.append((found, found if changed is None else changed))
            return None if self.dry_run else changed

        edit_object(self.api, names, make, deadline)
        return Change(name, *versions[-1])

    def tell(self, action: str, change: object) -> str:
        """Send an event of a change to the sink, if there is one; return why that failed."""
        if self._sink is None:
            return ""
        from fleet_fn.sink.events import rollout_event

        user, now = self.actor
        try:
            self._sink.send(rollout_event(action, self.name, user, change, now), Deadline(_SINK_SECONDS))
        except UpstreamError as error:
            return error.reason
        return ""
