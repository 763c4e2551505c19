"""The users of the console, and the credentials that they act with."""

from dataclasses import dataclass
from typing import Protocol

from fleet_fn.http.client import HttpClient


@dataclass(frozen=True, slots=True)
class User:
    """A user, with a client of Drogue Cloud that acts for them alone."""

    #: Unlike that of any other session; for caches.
    key: str
    #: For people, and for the events of rollouts.
    name: str
    #: Drogue Cloud, with the user's own credentials.
    upstream: HttpClient


class Users(Protocol):
    """Tells whose request is being served."""

    @property
    def has_sessions(self) -> bool:
        """Whether users sign in and out; else there is one user, the operator."""

    def current(self) -> User | None:
        """Return the user of the request that is being served.

        None if they have to sign in.
        """


@dataclass(frozen=True, slots=True)
class LocalUser:
    """The operator who runs the console on their own machine."""

    user: User
    has_sessions: bool = False

    def current(self) -> User:
        """Return the operator."""
        return self.user
