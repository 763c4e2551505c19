"""What the provider knows: its client, users and their sessions, codes and tokens."""

import secrets
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from authlib.oauth2.rfc6749 import AuthorizationCodeMixin, ClientMixin, TokenMixin
from authlib.oauth2.rfc6749.errors import InvalidRequestError

CLIENT, SECRET = "fleet-console", "s3cret & more"  # what form encoding is for


@dataclass
class Client(ClientMixin):
    """The console, as the provider knows it."""

    client_id: str = CLIENT
    #: None makes it a public client.
    secret: str | None = SECRET
    redirect_uris: tuple[str, ...] = ()
    post_logout_redirect_uris: tuple[str, ...] = ()
    #: Without `refresh_token`, it gets no refresh tokens.
    grants: tuple[str, ...] = ("authorization_code", "refresh_token")

    @property
    def client_metadata(self) -> dict[str, Any]:
        return {"post_logout_redirect_uris": self.post_logout_redirect_uris}

    def get_client_id(self) -> str:
        return self.client_id

    def get_default_redirect_uri(self) -> str:
        raise InvalidRequestError("Missing 'redirect_uri'.")

    def get_allowed_scope(self, scope: Any) -> str:
        return " ".join(each for each in (scope or "").split() if each in ("openid", "profile", "email"))

    def check_redirect_uri(self, redirect_uri: str) -> bool:
        return redirect_uri in self.redirect_uris

    def check_client_secret(self, client_secret: str) -> bool:
        return self.secret is not None and secrets.compare_digest(self.secret.encode(), client_secret.encode())

    def check_endpoint_auth_method(self, method: str, _: str) -> bool:
        return (method == "none") == (self.secret is None)

    def check_response_type(self, response_type: str) -> bool:
        return response_type == "code"

    def check_grant_type(self, grant_type: str) -> bool:
        return grant_type in self.grants


@dataclass(frozen=True)
class User:
    """A user of the provider."""

    name: str

    @property
    def id(self) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_URL, self.name))

    @property
    def info(self) -> dict[str, Any]:
        return {"sub": self.id, "preferred_username": self.name, "email": f"{self.id[:8]}@example.com"}


@dataclass
class Session:
    """A user's session at the provider, which ends for all of its tokens at once."""

    user: User
    is_over: bool = False


@dataclass
class Code(AuthorizationCodeMixin):
    """An authorization code."""

    code: str
    client_id: str
    redirect_uri: str
    scope: str
    nonce: str | None
    code_challenge: str
    code_challenge_method: str
    session: Session
    auth_time: int

    def get_redirect_uri(self) -> str:
        return self.redirect_uri

    def get_scope(self) -> str:
        return self.scope

    def get_nonce(self) -> str | None:
        return self.nonce

    def get_auth_time(self) -> int:
        return self.auth_time

    def get_acr(self) -> None:
        return None

    def get_amr(self) -> None:
        return None


@dataclass
class Given(TokenMixin):
    """An access token, and the refresh token that was given with it."""

    client: Client
    session: Session
    access_token: str
    refresh_token: str | None
    scope: str
    until: float
    clock: Callable[[], float]
    was_refreshed: bool = False

    def check_client(self, client: Any) -> bool:
        return self.client is client

    def get_scope(self) -> str:
        return self.scope

    def is_expired(self) -> bool:
        return self.clock() >= self.until

    def is_revoked(self) -> bool:
        return self.session.is_over

    def get_user(self) -> User:
        return self.session.user

    def get_client(self) -> Client:
        return self.client


@dataclass
class Memory:
    """What the provider gave out. Its lock may be taken again by its holder."""

    codes: dict[str, Code] = field(default_factory=dict)
    used_codes: dict[str, Session] = field(default_factory=dict)
    given: list[Given] = field(default_factory=list)
    #: The sessions of browsers, by their cookies.
    browsers: dict[str, Session] = field(default_factory=dict)
    #: All codes, tokens and secrets so far.
    secrets: set[str] = field(default_factory=set)
    #: How often a refresh token was used that did not hold any more.
    reuses: int = 0
    lock: threading.RLock = field(default_factory=threading.RLock)

    def by_access_token(self, token: str) -> Given | None:
        with self.lock:
            return next((given for given in self.given if given.access_token == token), None)

    def by_refresh_token(self, token: str) -> Given | None:
        with self.lock:
            return next((given for given in self.given if given.refresh_token == token), None)

    def keep_secret(self, *values: str | None) -> None:
        with self.lock:
            self.secrets.update(value for value in values if value)

    def end_sessions(self) -> None:
        with self.lock:
            for given in self.given:
                given.session.is_over = True
            for session in self.browsers.values():
                session.is_over = True
