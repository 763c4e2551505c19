"""Tables of environment variables, as fields of a dataclass, and their reader."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final, TypeVar

from fleet_fn.setting_values import Kind, UnfitError, quote

T = TypeVar("T")

_ROW: Final = "setting"


class SettingsError(Exception):
    """Settings are missing or invalid.

    The text, one line, names each, its value, and what to set it to.
    """


@dataclass(frozen=True, slots=True)
class Setting:
    """One environment variable: a row of the table."""

    variable: str
    #: The value if the variable is not set, or empty.
    default: object
    kind: Kind[object]
    #: Markdown for the documentation, like `default_text`.
    meaning: str
    default_text: str
    is_required: bool = False


def row(variable: str, default: T, kind: Kind[T], meaning: str, *, default_text: str = "") -> T:
    """Return a field with a default; secrets do not show in `repr`."""
    setting = Setting(variable, default, kind, meaning, default_text or _markdown(default))
    return field(default=default, repr=not kind.is_secret, metadata={_ROW: setting})


def required(variable: str, kind: Kind[str], meaning: str) -> Any:
    """Return a field without a default."""
    return field(
        repr=not kind.is_secret, metadata={_ROW: Setting(variable, "", kind, meaning, "required", is_required=True)}
    )


def rows_of(table: type) -> Mapping[str, Setting]:
    """Return the rows of a dataclass by field."""
    return {each.name: each.metadata[_ROW] for each in fields(table) if _ROW in each.metadata}


def _markdown(default: object) -> str:
    if default is None:
        return "none"
    shown = f"{default:g}" if isinstance(default, float) else str(default)
    return f"`{shown.lower() if isinstance(default, bool) else shown}`"


class Reader:
    """Reads variables and collects all violations.

    An operator can then correct them all at once.
    """

    def __init__(self, environment: Mapping[str, str], rows: Mapping[str, Setting]) -> None:
        self._environment = environment
        self._by_variable = {setting.variable: setting for setting in rows.values()}
        self._violations: list[str] = []

    def value(self, setting: Setting) -> Any:
        """Return a variable's value, or the default if it is not set or invalid."""
        text = self.text(setting.variable)
        if text is None:
            if setting.is_required:
                self.violate(setting.variable, "is not set")
            return setting.default
        try:
            return setting.kind.parse(text)
        except ValueError as error:
            self.violate(setting.variable, _problem(setting.kind, text, error))
        return setting.default

    def check_together(self, *variables: str) -> None:
        """Require all variables if one of them is set."""
        for variable in variables:
            if self.text(variable) is not None:
                self.check_needs(variable, *variables)
                return

    def check_any(self, variable: str, *others: str) -> None:
        """Require a variable unless one of the others is set."""
        if not any(self.text(each) is not None for each in (variable, *others)):
            instead = f", or set {' or '.join(others)} instead" if others else ""
            self.violate(variable, "is not set", f"{self._by_variable[variable].kind.takes}{instead}")

    def check_needs(self, variable: str, *needed: str) -> None:
        """Require the variables that another one needs."""
        for other in needed if self.text(variable) is not None else ():
            if self.text(other) is None:
                takes = f"{self._by_variable[other].kind.takes}, or unset {variable}"
                self.violate(other, f"is not set, although {variable} is", takes)

    def check_apart(self, variable: str, other: str) -> None:
        """Refuse variables that exclude each other."""
        text = self.text(variable)
        if text is not None and self.text(other) is not None:
            is_secret = self._by_variable[variable].kind.is_secret
            named = f"{variable} is set" if is_secret else f"{variable} is {quote(text)}"
            self._violations.append(f"{named}, although {other} is set. Unset one of them")

    def check_bearer(self, variable: str, unless: str) -> None:
        """Require a token without a user to be valid for the Bearer scheme."""
        token = self.text(variable)
        if token and token.isprintable() and self.text(unless) is None and not re.fullmatch(r"[!-~]+", token):
            problem = "contains a character that no bearer token can have (RFC 6750)"
            self.violate(variable, problem, f"ASCII characters without spaces, or set {unless} as well")

    def finish(self) -> None:
        """Raise SettingsError if there were violations."""
        if self._violations:
            raise SettingsError("; ".join(self._violations))

    def text(self, variable: str) -> str | None:
        """Return the text of a variable; None if it is not set, or empty."""
        return self._environment.get(variable) or None

    def violate(self, variable: str, problem: str, takes: str | None = None) -> None:
        """Note that a variable has a problem, and what it takes instead."""
        self._violations.append(f"{variable} {problem}. Set it to {takes or self._by_variable[variable].kind.takes}")


def _problem(kind: Kind[object], text: str, error: ValueError) -> str:
    """Return the problem with an invalid text, with the text unless it is a secret."""
    why = str(error) if isinstance(error, UnfitError) else ""
    if kind.is_secret:
        return why or "is invalid"
    return f"is {quote(text)}, which {why}" if why else f"is {quote(text)}"
