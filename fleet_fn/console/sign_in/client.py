"""The console as a client of the provider (RFC 6749, OpenID Connect Core 1.0)."""

import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote_plus, urlsplit

from authlib.common.urls import add_params_to_uri
from authlib.oauth2.rfc6749.parameters import prepare_grant_uri
from authlib.oauth2.rfc7636 import create_s256_code_challenge
from authlib.oidc.core import CodeIDToken

from fleet_fn.console.settings import SignInSettings
from fleet_fn.console.sign_in.names import name_of
from fleet_fn.deadline import Deadline
from fleet_fn.errors import PermanentError
from fleet_fn.http.authorization import basic
from fleet_fn.http.bearer_tokens import Token, read_token
from fleet_fn.http.messages import Answer
from fleet_fn.openid.provider import PROVIDER, Provider
from fleet_fn.openid.verification import check_claims, read_signed
from fleet_fn.strict_json import parse_json

#: Where the provider sends users back to, below CONSOLE_URL; and where it sends them when they have signed out.
CALLBACK_PATH: Final = "/sign-in/callback"
SIGNED_OUT_PATH: Final = "/signed-out"
#: `profile` has the user's name; Drogue Cloud's own console asks for the same.
_SCOPES: Final = "openid profile email"
_ID_TOKEN: Final = "the ID token"  # noqa: S105 - its name
#: An error code of RFC 6749, section 5.2, or of an extension.
_ERROR_CODE: Final = re.compile(r"[a-z_]{1,60}")


class GrantRefusedError(PermanentError):
    """The provider refuses a code or a refresh token: the user must sign in again."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """The secrets of one sign-in; the cookie keeps them until the user is back."""

    #: Ties the answer to the browser.
    state: str
    #: Ties the ID token to the request.
    nonce: str = field(repr=False)
    #: Proves that who brings the code also asked for it (PKCE, RFC 7636).
    verifier: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens that the provider gave for a user."""

    access: Token
    refresh: str | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Identity:
    """The user whom the provider vouches for."""

    name: str
    #: Tells the provider whom to sign out.
    id_token: str = field(repr=False)


class Client:
    """The console's client at the provider. Safe to use from several threads."""

    def __init__(
        self,
        provider: Provider,
        settings: SignInSettings,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Create a client that has not asked the provider anything.

        Args:
            provider: the provider.
            settings: the client's id and secret, and the console's URL.
            clock: seconds, never stepping; for the lifetimes of tokens.
            now: seconds since 1970; for the claims of ID tokens.

        """
        self._provider = provider
        self._id = settings.client_id
        self._secret = settings.client_secret
        self._url = settings.url
        self._clock = clock
        self._now = now

    def authorization_url(self, attempt: Attempt, deadline: Deadline) -> str:
        """Return the provider's URL at which the user signs in.

        Raises:
            TransientError, PermanentError: the provider's metadata cannot be had.

        """
        url: str = prepare_grant_uri(
            self._provider.metadata(deadline).authorization_endpoint,
            self._id,
            "code",
            redirect_uri=self._url + CALLBACK_PATH,
            scope=_SCOPES,
            state=attempt.state,
            nonce=attempt.nonce,
            code_challenge=create_s256_code_challenge(attempt.verifier),  # type: ignore[no-untyped-call]
            code_challenge_method="S256",
        )
        return url

    def exchange(self, code: str, attempt: Attempt, deadline: Deadline) -> tuple[Tokens, Identity]:
        """Return the user's tokens for a code, and the user, verified.

        Raises:
            GrantRefusedError: the provider does not accept the code.
            TransientError: the provider does not answer.
            PermanentError: its answer, or the ID token, is not acceptable.

        """
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self._url + CALLBACK_PATH,
            "code_verifier": attempt.verifier,
        }
        tokens, answer = self._ask_for_tokens(form, deadline)
        id_token = answer.get("id_token")
        if not isinstance(id_token, str):
            raise PermanentError(f"{PROVIDER}: the answer has no ID token")
        return tokens, self._verify(id_token, tokens.access, attempt.nonce, deadline)

    def refresh(self, refresh_token: str, deadline: Deadline) -> Tokens:
        """Return new tokens for a refresh token, which holds only once at many providers.

        Raises:
            GrantRefusedError: the provider does not accept it.
            TransientError, PermanentError: as with `exchange`.

        """
        form = {"grant_type": "refresh_token", "refresh_token": refresh_token}
        tokens, _ = self._ask_for_tokens(form, deadline)
        return Tokens(tokens.access, tokens.refresh or refresh_token)

    def revoke(self, refresh_token: str, deadline: Deadline) -> None:
        """Tell the provider that a refresh token is not needed any more (RFC 7009).

        Raises:
            TransientError, PermanentError: the provider does not answer, or refuses.

        """
        endpoint = self._provider.metadata(deadline).revocation_endpoint
        if endpoint:
            form = {"token": refresh_token, "token_type_hint": "refresh_token"}
            answer = self._post(endpoint, form, deadline)
            if answer.status != HTTPStatus.OK:
                raise PermanentError(f"{PROVIDER}: answered {answer.status} to a revocation")

    def sign_out_url(self, id_token: str, deadline: Deadline) -> str | None:
        """Return the provider's URL that signs a user out there; None if it has none.

        Raises:
            TransientError, PermanentError: the provider's metadata cannot be had.

        """
        endpoint = self._provider.metadata(deadline).end_session_endpoint
        if endpoint is None:
            return None
        parameters = {
            "id_token_hint": id_token,
            "client_id": self._id,
            "post_logout_redirect_uri": self._url + SIGNED_OUT_PATH,
        }
        url: str = add_params_to_uri(endpoint, list(parameters.items()))
        return url

    def sign_out_origins(self) -> list[str]:
        """Return the origins to which a sign-out may lead, as far as they are known."""
        known = self._provider.known_metadata
        urls = (self._provider.issuer, known.end_session_endpoint if known else None)
        parts = [urlsplit(url) for url in urls if url]
        return sorted({f"{each.scheme}://{each.netloc}" for each in parts})

    def _ask_for_tokens(self, form: Mapping[str, str], deadline: Deadline) -> tuple[Tokens, Mapping[str, Any]]:
        since = self._clock()
        answer = self._post(self._provider.metadata(deadline).token_endpoint, form, deadline)
        if answer.status != HTTPStatus.OK:
            raise _refusal(answer)
        token, members = read_token(answer.body, f"{PROVIDER}: the answer", ["access_token"])
        kind, lifetime, refresh = members.get("token_type"), members.get("expires_in"), members.get("refresh_token")
        if not isinstance(kind, str) or kind.lower() != "bearer":
            raise PermanentError(f"{PROVIDER}: the access token is not of type Bearer")
        access = Token.issued(token, int(lifetime) if isinstance(lifetime, float) else lifetime, since)
        return Tokens(access, refresh if isinstance(refresh, str) and refresh else None), members

    def _post(self, url: str, form: Mapping[str, str], deadline: Deadline) -> Answer:
        """Send a form with the client's own credentials (RFC 6749, section 2.3.1)."""
        if self._secret is None:
            return self._provider.post(url, {**form, "client_id": self._id}, deadline)
        credentials = basic(quote_plus(self._id), quote_plus(self._secret))
        return self._provider.post(url, form, deadline, {"Authorization": credentials})

    def _verify(self, id_token: str, access: Token, nonce: str, deadline: Deadline) -> Identity:
        """Return the user of an ID token (OpenID Connect Core 1.0, section 3.1.3.7)."""
        signed = read_signed(self._provider, id_token, _ID_TOKEN, deadline)
        expected = {"iss": {"value": self._provider.issuer}, "aud": {"values": [self._id]}}
        access_token = access.header.removeprefix("Bearer ")
        parameters = {"nonce": nonce, "client_id": self._id, "access_token": access_token}
        claims = CodeIDToken(signed.claims, signed.header, expected, parameters)
        check_claims(claims, _ID_TOKEN, self._now())
        return Identity(name_of(claims), id_token)


def _refusal(answer: Answer) -> PermanentError:
    """Return the error for a refused request for tokens.

    The provider's description may quote the request, so it is dropped.
    """
    found: object = None
    with suppress(ValueError):
        found = parse_json(answer.body)
    code = found.get("error") if isinstance(found, dict) else None
    if code == "invalid_grant":
        return GrantRefusedError(f"{PROVIDER}: the sign-in does not hold any more")
    if code in ("invalid_client", "unauthorized_client") or answer.status == HTTPStatus.UNAUTHORIZED:
        return PermanentError(
            f"{PROVIDER}: our client was refused (CONSOLE_OIDC_CLIENT_ID, CONSOLE_OIDC_CLIENT_SECRET)"
        )
    told = f" ({code})" if isinstance(code, str) and _ERROR_CODE.fullmatch(code) else ""
    return PermanentError(f"{PROVIDER}: answered {answer.status} to a request for tokens{told}")
