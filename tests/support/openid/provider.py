"""The provider at its socket: discovery, keys, the form for signing in, and what tests change."""

import html
import secrets
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

from authlib.oauth2 import OAuth2Error
from flask import Flask, jsonify, make_response, redirect, request
from joserfc import jwt
from joserfc.jwk import ECKey, Key, RSAKey

from tests.support.http import Request, Response, Server
from tests.support.openid.grants import SSO_COOKIE, make_server
from tests.support.openid.models import Client, Code, Memory, Session, User

#: The realm's path, as at Keycloak.
REALM = "/realms/drogue"
_ENDPOINTS = f"{REALM}/protocol/openid-connect"
_FORM = (
    "<!doctype html><html lang=en><title>Sign in</title>"
    '<form method=post action="{}"><label>Name <input name=username autofocus></label><button>Sign in</button>'
    "</form></html>"
)
Claims = dict[str, Any]


def _unchanged(claims: Claims) -> Claims:
    return claims


@dataclass
class Knobs:
    """What tests change while the provider runs."""

    #: Seconds for which an access token is valid.
    lifetime: int = 300
    #: What to answer instead, by the request; None answers as usual.
    answer_instead: Callable[[Request], Response | None] | None = None
    #: Make the claims of tokens, the answer of the token endpoint and the discovery document other ones.
    id_token: Callable[[Claims], Claims] = _unchanged
    access_token: Callable[[Claims], Claims] = _unchanged
    token_answer: Callable[[Claims], Claims] = _unchanged
    metadata: Callable[[Claims], Claims] = _unchanged
    #: The error with which each sign-in ends, e.g. `access_denied`; None lets users in.
    refuses_with: str | None = None
    #: Signs ID tokens instead of the key that is published, by this algorithm.
    forger: tuple[Key, str] | None = None


class OpenIdProvider:
    """The provider, at a real socket while its context lasts; with a `tls` context, by https."""

    def __init__(self, *, algorithm: str = "RS256", tls: ssl.SSLContext | None = None) -> None:
        self.knobs = Knobs()
        self.client = Client()
        self.memory = Memory()
        #: Seconds by which its clock is ahead.
        self.ahead = 0.0
        self.use_new_key(algorithm)
        self.server = Server(self._answer, tls)
        self._app = _make_app(self)

    def __enter__(self) -> "OpenIdProvider":
        self.server.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.__exit__()

    @property
    def issuer(self) -> str:
        return f"{self.server.url}{REALM}"

    def register(self, console_url: str) -> None:
        """Let a console send its users here and get them back."""
        self.client.redirect_uris = (f"{console_url}/sign-in/callback",)
        self.client.post_logout_redirect_uris = (f"{console_url}/signed-out",)

    def environment(self, console_url: str) -> dict[str, str]:
        """The settings of a console that signs its users in here."""
        return {
            "CONSOLE_OIDC_ISSUER": self.issuer,
            "CONSOLE_OIDC_CLIENT_ID": self.client.client_id,
            "CONSOLE_OIDC_CLIENT_SECRET": self.client.secret or "",
            "CONSOLE_SECRET_KEY": "k3y of cookies, with enough characters",
            "CONSOLE_URL": console_url,
        }

    def clock(self) -> float:
        return time.time() + self.ahead

    def asked(self, end: str) -> list[Request]:
        """The requests to an endpoint, by the end of its path."""
        return [each for each in self.server.requests if urlsplit(each.path).path.endswith(end)]

    @property
    def refreshes(self) -> int:
        """How often tokens were to be refreshed."""
        return sum(b"grant_type=refresh_token" in each.body for each in self.asked("/token"))

    @property
    def secrets(self) -> set[str]:
        """All codes, tokens and secrets so far, none of which may be told anywhere."""
        with self.memory.lock:
            return self.memory.secrets | ({self.client.secret} if self.client.secret else set())

    def use_new_key(self, algorithm: str) -> None:
        """Sign with another key from now on, and publish only that."""
        self.algorithm = algorithm
        is_elliptic = algorithm.startswith("ES")
        self.key: Key = (
            ECKey.generate_key("P-256", auto_kid=True) if is_elliptic else RSAKey.generate_key(2048, auto_kid=True)
        )

    def user_of(self, token: str) -> str | None:
        """The name of the user whose valid access token this is; None for any other."""
        given = self.memory.by_access_token(token)
        return None if given is None or given.is_expired() or given.is_revoked() else given.session.user.name

    def make_access_token(self, session: Session) -> str:
        claims = {**self._claims(session), "aud": [self.client.client_id, "account"], "jti": secrets.token_hex(16)}
        return self._sign(self.knobs.access_token(claims), self.key, self.algorithm)

    def make_id_token(self, session: Session, code: Code | None) -> str:
        claims = {**self._claims(session), "aud": self.client.client_id}
        if code:
            claims |= {"nonce": code.nonce, "auth_time": code.auth_time}
        token = self._sign(self.knobs.id_token(claims), *(self.knobs.forger or (self.key, self.algorithm)))
        self.memory.keep_secret(token)
        return token

    def _claims(self, session: Session) -> Claims:
        now = int(self.clock())
        lifetime = {"iat": now, "exp": now + self.knobs.lifetime}
        return {"iss": self.issuer, "azp": self.client.client_id, **lifetime, **session.user.info}

    def _sign(self, claims: Claims, key: Key, algorithm: str) -> str:
        return jwt.encode({"alg": algorithm, "kid": self.key.kid}, claims, key, [algorithm])

    def _answer(self, asked: Request) -> Response | None:
        if self.knobs.answer_instead and (instead := self.knobs.answer_instead(asked)):
            return instead
        client = self._app.test_client(use_cookies=False)
        headers = {name: value for name, value in asked.headers.items() if name.lower() != "content-length"}
        url = self.server.url
        answer = client.open(asked.path, base_url=url, method=asked.method, headers=headers, data=asked.body)
        return Response(answer.status_code, answer.data, dict(answer.headers.items()))


def _make_app(provider: OpenIdProvider) -> Flask:
    app = Flask("openid")
    server = make_server(app, provider)

    def discover() -> Any:
        endpoints = {"authorization": "auth", "token": "token", "userinfo": "userinfo"}
        endpoints |= {"revocation": "revoke", "end_session": "logout"}
        metadata = {
            "issuer": provider.issuer,
            "jwks_uri": f"{provider.server.url}{_ENDPOINTS}/certs",
            **{f"{name}_endpoint": f"{provider.server.url}{_ENDPOINTS}/{end}" for name, end in endpoints.items()},
            "response_types_supported": ["code"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256", "ES256", "HS256"],
            "code_challenge_methods_supported": ["S256"],
        }
        return jsonify(provider.knobs.metadata(metadata))

    def publish_keys() -> Any:
        usable = {**provider.key.as_dict(private=False), "use": "sig", "alg": provider.algorithm}
        strange = {"kty": "AKP", "kid": "strange", "alg": "ML-DSA-44", "pub": "AAAA"}  # newer than its readers
        return jsonify({"keys": [strange, usable]})

    routes: dict[str, tuple[str, Callable[[], Any]]] = {
        f"{REALM}/.well-known/openid-configuration": ("GET", discover),
        f"{_ENDPOINTS}/certs": ("GET", publish_keys),
        f"{_ENDPOINTS}/auth": ("GET POST", lambda: _authorize(provider, server)),
        f"{_ENDPOINTS}/token": ("POST", server.create_token_response),
        f"{_ENDPOINTS}/revoke": ("POST", lambda: server.create_endpoint_response("revocation")),
        f"{_ENDPOINTS}/userinfo": ("GET", lambda: server.create_endpoint_response("userinfo")),
        f"{_ENDPOINTS}/logout": ("GET", lambda: _log_out(server)),
    }
    for path, (methods, view) in routes.items():
        app.add_url_rule(path, path, view, methods=methods.split())
    return app


def _authorize(provider: OpenIdProvider, server: Any) -> Any:
    """Show the form, unless the browser is known; then send the user back."""
    memory = provider.memory
    with memory.lock:
        session = memory.browsers.get(request.cookies.get(SSO_COOKIE, ""))
    session = None if session is None or session.is_over else session
    try:
        grant = server.get_consent_grant(end_user=session)
    except OAuth2Error as error:
        return server.handle_error_response(request, error)
    asked = grant.request.payload
    if provider.knobs.refuses_with:
        refusal = {"error": provider.knobs.refuses_with, "error_description": "<b>no</b>", "state": asked.state}
        return redirect(f"{asked.redirect_uri}?{urlencode(refusal)}")
    if session is None and not request.form.get("username"):
        return _FORM.format(html.escape(request.full_path))
    cookie = None
    if session is None:
        cookie, session = secrets.token_urlsafe(), Session(User(request.form["username"]))
        with memory.lock:
            memory.browsers[cookie] = session
    answer = server.create_authorization_response(grant_user=session, grant=grant)
    if cookie:
        answer.set_cookie(SSO_COOKIE, cookie, httponly=True, samesite="Lax", path=REALM)
    return answer


def _log_out(server: Any) -> Any:
    answer = server.create_endpoint_response("end_session") or make_response("<!doctype html><p>You are signed out.")
    answer.delete_cookie(SSO_COOKIE, path=REALM)
    return answer
