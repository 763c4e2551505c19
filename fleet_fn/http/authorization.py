"""The interface of credentials for the HTTP client, and unchanging credentials."""

import base64
from dataclasses import dataclass, field
from typing import Protocol

from fleet_fn.deadline import Deadline


class Authorization(Protocol):
    """The credentials of requests. Safe to use from several threads."""

    def header(self, deadline: Deadline) -> str | None:
        """Return the value of the header `Authorization`; None sends no such header.

        Raises:
            TransientError, PermanentError: the credentials cannot be had.

        """

    def refresh(self, refused: str, status: int, deadline: Deadline) -> str | None:
        """Return a value for one more try after a 401 or 403 to `refused`, or None.

        Raises:
            TransientError, PermanentError: as with `header`.

        """

    def close(self) -> None:
        """Close idle connections, if it has any; a later call opens new ones."""


@dataclass(frozen=True, slots=True)
class Fixed:
    """Credentials that never change, or none."""

    value: str | None = field(default=None, repr=False)

    def header(self, _: Deadline) -> str | None:
        """Return the value."""
        return self.value

    def refresh(self, _refused: str, _status: int, _deadline: Deadline) -> None:
        """Return None: there is no other value."""

    def close(self) -> None:
        """Do nothing: no connection is needed."""


def basic(user: str, password: str) -> str:
    """Return a header `Authorization` with Basic credentials (RFC 7617)."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode("ascii")


def secrets_of(authorization: str) -> list[str]:
    """Return the secrets in a header `Authorization`.

    They are the credentials, and the password of Basic credentials.
    """
    scheme, _, value = authorization.partition(" ")
    secrets = [value]
    if scheme == "Basic":
        secrets.append(base64.b64decode(value).decode().partition(":")[2])
    return [secret for secret in secrets if secret]
