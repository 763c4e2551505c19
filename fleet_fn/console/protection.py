"""Protection of the console in browsers: headers, hosts and forged requests."""

from collections.abc import Callable, Iterable
from typing import Final
from urllib.parse import urlsplit

from flask import Flask, Response, abort, request
from flask_wtf.csrf import CSRFProtect

from fleet_fn.console.settings import ConsoleSettings, is_loopback

#: Nothing is loaded from elsewhere, and no page has code of its own.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "frame-ancestors 'none'; form-action 'self'"
)
_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
#: Seconds in which a browser that has seen the console by https asks for nothing else.
_HTTPS_ONLY_SECONDS: Final = 31_536_000
#: Bytes of a form.
_MAX_FORM_BYTES: Final = 64 * 1024
#: Seconds for which a form can be sent.
_FORM_SECONDS: Final = 24 * 60 * 60


def protect(app: Flask, settings: ConsoleSettings, form_targets: Callable[[], Iterable[str]] = lambda: ()) -> None:
    """Protect an app's users.

    Args:
        app: the app; its secret key is set.
        settings: tell the console's URL.
        form_targets: tells further origins that the answer to a form may redirect to: the OpenID provider's.

    """
    is_https = settings.sign_in is not None and settings.sign_in.url.startswith("https:")
    app.config.update(
        MAX_CONTENT_LENGTH=_MAX_FORM_BYTES,
        SESSION_COOKIE_NAME="__Host-fleet" if is_https else "fleet",
        SESSION_COOKIE_SECURE=is_https,
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_COOKIE_SAMESITE="Lax",
        WTF_CSRF_TIME_LIMIT=_FORM_SECONDS,
        # A proxy may end TLS. The token, the cookie's SameSite and Sec-Fetch-Site protect without the referrer.
        WTF_CSRF_SSL_STRICT=False,
    )
    CSRFProtect(app)
    headers = dict(_HEADERS)
    if is_https:
        headers["Strict-Transport-Security"] = f"max-age={_HTTPS_ONLY_SECONDS}"

    @app.before_request
    def refuse_others() -> None:
        if request.endpoint != "health":  # the platform asks by the pod's address
            _check_host(settings)
        if any("\0" in text for text in (request.path, *request.values.values())):
            abort(400, "No name has a NUL character.")  # Drogue Cloud would answer as if it were down
        if request.method == "POST" and request.headers.get("Sec-Fetch-Site", "same-origin") != "same-origin":
            abort(403, "The request comes from another site.")

    @app.after_request
    def add_headers(response: Response) -> Response:
        response.headers.update(headers)
        response.headers["Content-Security-Policy"] = " ".join((_POLICY, *form_targets()))
        if request.endpoint != "static":
            response.headers["Cache-Control"] = "no-store"
        return response


def _check_host(settings: ConsoleSettings) -> None:
    """Refuse a request by another host's name.

    A page of another site could make its own name point here (DNS rebinding), and act as the user then.
    """
    asked = urlsplit(f"//{request.host}")
    if settings.sign_in is None:
        if not is_loopback(asked.hostname or ""):
            abort(421, f"This console answers at localhost only, not at {request.host}.")
    elif request.host != urlsplit(settings.sign_in.url).netloc:
        abort(421, f"This console answers at {settings.sign_in.url} only (CONSOLE_URL).")
