"""The console's own environment variables, beside those of an operator's commands."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

from fleet_fn import setting_values as kinds
from fleet_fn.setting_table import Reader, Setting, SettingsError, required, row, rows_of
from fleet_fn.setting_values import Kind, UnfitError
from fleet_fn.settings import SETTINGS, Settings

#: Characters of CONSOLE_SECRET_KEY at least.
_MIN_KEY_CHARACTERS: Final = 32
_LOOPBACK_NAMES: Final = ("localhost", "127.0.0.1", "::1")


def _parse_key(value: str) -> str:
    if len(value) < _MIN_KEY_CHARACTERS:
        raise UnfitError(f"has fewer than {_MIN_KEY_CHARACTERS} characters")
    return value


def _parse_console_url(value: str) -> str:
    """Return the origin that browsers use.

    Cookies and tokens must not cross a network in the clear.
    """
    origin = kinds.base_url("").parse(value)
    if urlsplit(origin).path:
        raise UnfitError("has a path: the console needs a host name of its own")
    _check_private(origin)
    return origin


def _parse_issuer(value: str) -> str:
    """Return the issuer unchanged: a slash at its end is part of its name."""
    issuer = kinds.endpoint("").parse(value)
    _check_private(issuer)
    return issuer


def _check_private(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme != "https" and not is_loopback(parts.hostname or ""):
        raise UnfitError("is not https, and not of this machine")


def is_loopback(host: str) -> bool:
    """Return whether a host's name or address can be reached from this machine only."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host in _LOOPBACK_NAMES


@dataclass(frozen=True, slots=True, kw_only=True)
class SignInSettings:
    """What sign-in with OpenID Connect needs."""

    issuer: str = required(
        "CONSOLE_OIDC_ISSUER",
        Kind(_parse_issuer, "the issuer of Drogue Cloud's tokens, e.g. https://sso.example.com/realms/drogue"),
        "issuer (OpenID Connect) at which users sign in: the one whose tokens Drogue Cloud takes",
    )
    client_id: str = required(
        "CONSOLE_OIDC_CLIENT_ID", kinds.identifier("the id of the console's client"), "the console's client there"
    )
    secret_key: str = required(
        "CONSOLE_SECRET_KEY",
        Kind(_parse_key, f"at least {_MIN_KEY_CHARACTERS} random characters, as from: openssl rand -hex 32", True),
        "random characters that sign cookies; others sign all users out",
    )
    url: str = required(
        "CONSOLE_URL",
        Kind(_parse_console_url, "the console's URL in browsers, e.g. https://fleet.example.com"),
        "the console's URL in browsers; https, unless it is this machine's",
    )
    client_secret: str | None = row(
        "CONSOLE_OIDC_CLIENT_SECRET",
        None,
        kinds.secret("the secret of the console's client"),
        "the client's secret; none if it is a public client",
    )


#: Each variable, by the field of `SignInSettings`.
SIGN_IN_SETTINGS: Final[Mapping[str, Setting]] = rows_of(SignInSettings)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsoleSettings:
    """The console's settings."""

    #: Drogue Cloud, firmware and sink; without credentials for Drogue Cloud if users sign in.
    operator: Settings
    host: str = "127.0.0.1"
    port: int = 0
    #: None if the console acts with the operator's own credentials.
    sign_in: SignInSettings | None = None

    @classmethod
    def from_environment(
        cls, environment: Mapping[str, str] = os.environ, host: str = "127.0.0.1", port: int = 0
    ) -> "ConsoleSettings":
        """Return the settings for a console that listens on `host` and `port`.

        Raises:
            SettingsError: a variable is missing or invalid, or others could use the operator's credentials.

        """
        operator = Settings.for_operator(environment)
        sign_in = _read_sign_in(environment)
        if sign_in is None and not is_loopback(host):
            names = ", ".join(setting.variable for setting in SIGN_IN_SETTINGS.values() if setting.is_required)
            raise SettingsError(
                f"--host is {host}, so others could act with your credentials. Leave it out, or let users sign in: "
                f"set {names}"
            )
        return cls(operator=operator, host=host, port=port, sign_in=sign_in)


def _read_sign_in(environment: Mapping[str, str]) -> SignInSettings | None:
    """Return the settings of sign-in; None if none is set."""
    rows = SIGN_IN_SETTINGS
    if not any(environment.get(setting.variable) for setting in rows.values()):
        return None
    read = Reader(environment, {**SETTINGS, **rows})
    values = {name: read.value(setting) for name, setting in rows.items()}
    for credential in ("DROGUE_TOKEN", "DROGUE_OIDC_TOKEN_URL"):
        read.check_apart(credential, "CONSOLE_OIDC_ISSUER")  # users bring their own
    read.finish()
    return SignInSettings(**values)
