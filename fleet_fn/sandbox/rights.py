"""Users of the sandbox's APIs, and their rights."""

import base64
import binascii
import hmac
from collections.abc import Mapping
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from fleet_fn.sandbox.refusal import RefusedError
from fleet_fn.sandbox.tokens import Tokens

if TYPE_CHECKING:
    from fleet_fn.sandbox.openid import OpenIdUsers  # few sandboxes need what it imports


class Permission(IntEnum):
    """The permission that an operation needs; each includes those before it."""

    READ = 1
    WRITE = 2
    ADMIN = 3


#: Permissions of an application's members by role; its owner has all.
ROLES: Final[Mapping[str, int]] = {"none": 0, "reader": Permission.READ, "manager": Permission.WRITE, "admin": 3}


class Rights:
    """Knows users by their credentials, and their rights in applications."""

    def __init__(self, user: str, token: str, members: Mapping[str, str], openid: "OpenIdUsers | None" = None) -> None:
        """Know the owner of the first objects, and the members of all applications.

        Args:
            user: the owner's name.
            token: access token of all users; as a Bearer token, it is the owner's.
            members: roles by user name.
            openid: knows users by the access tokens of an OpenID provider, too.

        Raises:
            ValueError: a role or a name is invalid.

        """
        for name, role in members.items():
            if role not in ROLES:
                raise ValueError(f"unknown role {role!r}: use one of {', '.join(ROLES)}")
            if not name or ":" in name or name == user:
                raise ValueError(f"{name!r} cannot be a member: use a name without a colon, other than {user!r}")
        self._owner = user
        self._token = token.encode()
        self._members = members
        self._openid = openid
        self.tokens: Final = Tokens(dict.fromkeys((user, *members), token))

    def user(self, authorization: str | None) -> str | None:
        """Return the user of a header `Authorization`; None if missing or malformed.

        Raises:
            RefusedError: the credentials are unknown. Drogue Cloud never answers 401.

        """
        scheme, _, value = (authorization or "").partition(" ")
        if scheme.lower() == "bearer" and value.strip():
            user = self.bearer(value.strip())
        elif (login := basic(authorization)) is not None:
            name, separator, token = login.partition(":")
            if not separator:
                raise RefusedError(403, "Forbidden", "Invalid request: No access token provided.")
            user = self.login(name, token)
        else:
            return None
        if user is None:
            raise RefusedError(403, "Forbidden", "Forbidden")
        return user

    def bearer(self, token: str) -> str | None:
        """Return the user of a token that comes alone; None if it is unknown."""
        if hmac.compare_digest(token.encode(), self._token):
            return self._owner
        user = self.tokens.user(token)
        return self._openid.user(token) if user is None and self._openid else user

    def login(self, name: str, token: str) -> str | None:
        """Return the user of a name and an access token; None if they are unknown."""
        is_known = name == self._owner or name in self._members
        return name if hmac.compare_digest(token.encode(), self._token) and is_known else None

    def may(self, user: str | None, owner: str | None, permission: Permission) -> bool:
        """Return whether a user has a permission for an owner's application.

        Without an owner, every user has all permissions.
        """
        if owner is None or user == owner:
            return True
        return user is not None and ROLES[self._members.get(user, "none")] >= permission


def basic(authorization: str | None) -> str | None:
    """Return `USER:PASSWORD` of Basic credentials; None if there are none."""
    scheme, _, value = (authorization or "").partition(" ")
    if scheme.lower() != "basic" or not value.strip():
        return None
    try:
        return base64.b64decode(value.strip(), validate=True).decode()
    except (binascii.Error, ValueError):
        return None
