"""Refusals of the sandbox, worded as Drogue Cloud words them."""

from collections.abc import Mapping
from typing import Self


class RefusedError(Exception):
    """A refused request: an HTTP status, and the content of the answer.

    Drogue Cloud refuses in three ways: with an error and a message as JSON, with plain text, and without a body.
    """

    def __init__(
        self,
        status: int,
        error: str | None,
        message: str,
        headers: Mapping[str, str] | None = None,
        *,
        has_body: bool = True,
        has_code: bool = False,
    ) -> None:
        """Refuse with a status.

        Args:
            status: the HTTP status.
            error: the error's name; None makes the message plain text.
            message: what is wrong.
            headers: more headers.
            has_body: show the message in the answer.
            has_code: repeat the status in the JSON, like the device endpoint.

        """
        super().__init__(message)
        self.status = status
        self.error = error
        self.headers = headers or {}
        self.has_body = has_body
        self.has_code = has_code
        #: The application and the device that the sandbox was to be made with, or the application and None.
        self.about: tuple[str, str | None] | None = None

    @classmethod
    def bad_request(cls, message: str) -> Self:
        """Refuse a malformed request: 400, in plain text."""
        return cls(400, None, message)

    @classmethod
    def silently(cls, status: int, message: str) -> Self:
        """Refuse without a body; the message is for callers in Python."""
        return cls(status, None, message, has_body=False)

    @classmethod
    def not_found(cls) -> Self:
        """Refuse with 404: no such application or device, or another user's."""
        return cls(404, "NotFound", "Not found")

    @classmethod
    def conflict(cls) -> Self:
        """Refuse with 409: the object exists already, or has another version."""
        return cls(409, "Conflict", "Conflict")

    @classmethod
    def reference_not_found(cls) -> Self:
        """Refuse with 404: a device's application is missing, or another user's."""
        return cls(404, "ReferenceNotFound", "Referenced a non-existing entity")

    @classmethod
    def not_authorized(cls) -> Self:
        """Refuse with 403.

        The application is another user's, or the user's role has no such permission.
        """
        return cls(403, "AuthenticationError", "Not authorized")

    @classmethod
    def by_database(cls, problem: str) -> Self:
        """Refuse with 503: PostgreSQL refuses the value. No retry cures that."""
        return cls(503, "DatabaseError", f"Database error: db error: ERROR: {problem}")
