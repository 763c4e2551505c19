"""The provider's grants and endpoints, on Authlib's classes."""

import secrets
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_plus

from authlib.integrations.flask_oauth2 import AuthorizationServer, ResourceProtector
from authlib.oauth2.rfc6749.errors import InvalidRequestError
from authlib.oauth2.rfc6749.grants import AuthorizationCodeGrant, RefreshTokenGrant
from authlib.oauth2.rfc6749.util import extract_basic_authorization
from authlib.oauth2.rfc6750 import BearerTokenGenerator, BearerTokenValidator
from authlib.oauth2.rfc7009 import RevocationEndpoint
from authlib.oauth2.rfc7636 import CodeChallenge
from authlib.oidc.core import UserInfo, UserInfoEndpoint
from authlib.oidc.core.grants import OpenIDCode, OpenIDToken
from authlib.oidc.rpinitiated import EndSessionEndpoint
from flask import Flask, request
from joserfc.jwk import KeySet

from tests.support.openid.models import Client, Code, Given, Session

if TYPE_CHECKING:
    from tests.support.openid.provider import OpenIdProvider

METHODS = ["client_secret_basic", "client_secret_post", "none"]
#: The cookie with which the provider knows a browser again.
SSO_COOKIE = "sso"


def make_server(app: Flask, provider: "OpenIdProvider") -> Any:
    """Return Authlib's server, with all that this provider offers."""

    def find_client(client_id: str) -> Client | None:
        return provider.client if client_id == provider.client.client_id else None

    def save_token(token: dict[str, Any], asked: Any) -> None:
        until = provider.clock() + provider.knobs.lifetime
        tokens = token["access_token"], token.get("refresh_token")
        given = Given(asked.client, asked.user, *tokens, token["scope"], until, provider.clock)
        provider.memory.keep_secret(*tokens)
        with provider.memory.lock:
            provider.memory.given.append(given)

    server: Any = AuthorizationServer(app, find_client, save_token)
    server.register_token_generator(
        "default",
        BearerTokenGenerator(
            lambda user, **_: provider.make_access_token(user),
            lambda **_: secrets.token_urlsafe(48),
            lambda *_: provider.knobs.lifetime,
        ),
    )
    server.register_client_auth_method("client_secret_basic", _authenticate)
    _register_code(server, provider)
    _register_refresh(server, provider)
    _register_endpoints(server, provider)
    return server


def _authenticate(find_client: Any, asked: Any) -> Any:
    """The client of Basic credentials, which are form-encoded before they are joined (RFC 6749, section 2.3.1)."""
    client_id, secret = extract_basic_authorization(asked.headers)
    client = find_client(unquote_plus(client_id)) if client_id and secret else None
    return client if client and client.check_client_secret(unquote_plus(secret or "")) else None


class _S256(CodeChallenge):
    """PKCE, which each client has to use."""

    SUPPORTED_CODE_CHALLENGE_METHOD = ["S256"]  # noqa: RUF012

    def validate_code_challenge(self, grant: Any, redirect_uri: str) -> None:
        data = grant.request.payload.data
        if not data.get("code_challenge") or data.get("code_challenge_method") != "S256":
            raise InvalidRequestError("Missing parameter: code_challenge_method")
        super().validate_code_challenge(grant, redirect_uri)


class _IdTokens:
    """Makes ID tokens that tests can change; goes before one of Authlib's classes."""

    def __init__(self, provider: "OpenIdProvider") -> None:
        super().__init__()
        self.provider = provider

    def encode_id_token(self, _: Any, asked: Any) -> str:
        return self.provider.make_id_token(asked.user, asked.authorization_code)

    def process_token(self, grant: Any, response: Any) -> dict[str, Any]:
        answer: dict[str, Any] = super().process_token(grant, response)  # type: ignore[misc]
        changed = self.provider.knobs.token_answer(dict(answer))
        answer.clear()
        answer.update(changed)
        return answer


class _CodeIdTokens(_IdTokens, OpenIDCode):
    def exists_nonce(self, nonce: str, _: Any) -> bool:
        with self.provider.memory.lock:
            return any(code.nonce == nonce for code in self.provider.memory.codes.values())


class _RefreshedIdTokens(_IdTokens, OpenIDToken):
    pass


def _register_code(server: Any, provider: "OpenIdProvider") -> None:
    memory = provider.memory

    class CodeGrant(AuthorizationCodeGrant):
        TOKEN_ENDPOINT_AUTH_METHODS = METHODS

        def save_authorization_code(self, code: str, asked: Any) -> None:
            data = asked.payload.data
            challenge = data["code_challenge"], data["code_challenge_method"]
            memory.keep_secret(code)
            with memory.lock:
                memory.codes[code] = Code(
                    code,
                    asked.client.client_id,
                    asked.payload.redirect_uri,
                    asked.scope,
                    data.get("nonce"),
                    *challenge,
                    asked.user,
                    int(provider.clock()),
                )

        def query_authorization_code(self, code: str, client: Any) -> Any:
            with memory.lock:
                if code in memory.used_codes:  # RFC 6749, section 4.1.2: its tokens end, too
                    memory.used_codes[code].is_over = True
                known = memory.codes.get(code)
            return known if known and known.client_id == client.client_id else None

        def delete_authorization_code(self, authorization_code: Any) -> None:
            with memory.lock:
                del memory.codes[authorization_code.code]
                memory.used_codes[authorization_code.code] = authorization_code.session

        def authenticate_user(self, authorization_code: Any) -> Any:
            return authorization_code.session

    server.register_grant(CodeGrant, [_S256(required=True), _CodeIdTokens(provider)])


def _register_refresh(server: Any, provider: "OpenIdProvider") -> None:
    memory = provider.memory

    class RefreshGrant(RefreshTokenGrant):
        TOKEN_ENDPOINT_AUTH_METHODS = METHODS
        INCLUDE_NEW_REFRESH_TOKEN = True

        def authenticate_refresh_token(self, refresh_token: str) -> Any:
            with memory.lock:
                given = memory.by_refresh_token(refresh_token)
                if given and given.was_refreshed:
                    memory.reuses += 1
                    given.session.is_over = True
                if given is None or given.session.is_over:
                    return None
                given.was_refreshed = True
                return given

        def authenticate_user(self, refresh_token: Any) -> Session:
            session: Session = refresh_token.session
            return session

        def revoke_old_credential(self, _: Any) -> None:
            """It was marked when it was found, so that two requests at once cannot both use it."""

    server.register_grant(RefreshGrant, [_RefreshedIdTokens(provider)])


def _register_endpoints(server: Any, provider: "OpenIdProvider") -> None:
    memory = provider.memory

    class Revocation(RevocationEndpoint):
        CLIENT_AUTH_METHODS = METHODS

        def query_token(self, token_string: str, _: str | None) -> Any:
            return memory.by_refresh_token(token_string) or memory.by_access_token(token_string)

        def revoke_token(self, token: Any, _: Any) -> None:
            token.session.is_over = True

    class EndSession(EndSessionEndpoint):
        def get_server_jwks(self) -> KeySet:
            return KeySet([provider.key])

        def end_session(self, _: Any) -> None:
            with memory.lock:
                session = memory.browsers.pop(request.cookies.get(SSO_COOKIE, ""), None)
                if session:
                    session.is_over = True

    class Validator(BearerTokenValidator):
        def authenticate_token(self, token_string: str) -> Any:
            return memory.by_access_token(token_string)

    class Info(UserInfoEndpoint):
        def generate_user_info(self, user: Any, _: str) -> UserInfo:
            return UserInfo(user.info)

    protector = ResourceProtector()
    protector.register_token_validator(Validator())
    server.register_endpoint(Revocation)
    server.register_endpoint(EndSession)
    server.register_endpoint(Info(resource_protector=protector))
