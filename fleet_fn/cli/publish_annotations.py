"""Annotations of a firmware to publish: its version, its hardware, its origin.

They are part of the manifest, so the same firmware with the same options has to get the same ones: there is no time of
publishing among them.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from fleet_fn.cli.checkout import Checkout, find_checkout
from fleet_fn.errors import PermanentError
from fleet_fn.oci.manifest import (
    AUTHORS_ANNOTATION,
    CREATED_ANNOTATION,
    HARDWARE_ANNOTATION,
    REQUIRES_ANNOTATION,
    REVISION_ANNOTATION,
    SOURCE_ANNOTATION,
    VERSION_ANNOTATION,
)
from fleet_fn.version_range import MalformedRangeError, parse_range

#: Annotations whose value an option checks, and the option.
_CHECKED: Final = {
    VERSION_ANNOTATION: "--version",
    HARDWARE_ANNOTATION: "--hardware",
    REQUIRES_ANNOTATION: "--requires",
}


@dataclass(frozen=True, slots=True)
class Description:
    """What the options of `publish` say of a firmware."""

    version: str
    #: Each may name several, separated by commas.
    hardware: Sequence[str] = ()
    requires: str | None = None
    revision: str | None = None
    source: str | None = None
    #: `KEY=VALUE`; they win over all but the version, hardware and requirements.
    annotations: Sequence[str] = ()

    def annotate(self, folder: Path | None) -> dict[str, str]:
        """Return the annotations of a firmware from `folder`; None for a pipe.

        Raises:
            PermanentError: an option or a variable is malformed; the reason names it.

        """
        given = _parse_pairs(self.annotations)
        annotations = {VERSION_ANNOTATION: _shown("the version", self.version), **self._origin(folder, given)}
        if user := os.environ.get("DROGUE_USER"):
            if not user.isprintable():
                raise PermanentError(f"DROGUE_USER {user!r}: has characters that cannot be shown")
            annotations[AUTHORS_ANNOTATION] = user
        if self.hardware:
            annotations[HARDWARE_ANNOTATION] = ",".join(_parse_hardware(self.hardware))
        if self.requires is not None:
            annotations[REQUIRES_ANNOTATION] = _parse_requires(self.requires)
        return dict(sorted({**annotations, **given}.items()))

    def _origin(self, folder: Path | None, given: Mapping[str, str]) -> dict[str, str]:
        """Return where the firmware came from: as the options say, or as git does."""
        is_told = (self.revision, self.source) != (None, None) or {
            REVISION_ANNOTATION,
            SOURCE_ANNOTATION,
        } & given.keys()
        checkout = None if is_told or folder is None else find_checkout(folder)
        found = {
            REVISION_ANNOTATION: _shown("--revision", self.revision) if self.revision is not None else None,
            SOURCE_ANNOTATION: _parse_source(self.source) if self.source is not None else None,
            CREATED_ANNOTATION: _created(checkout),
        }
        if checkout:
            found |= {REVISION_ANNOTATION: checkout.revision, SOURCE_ANNOTATION: checkout.source}
        return {name: value for name, value in found.items() if value is not None}


def _created(checkout: Checkout | None) -> str | None:
    """Return the time in SOURCE_DATE_EPOCH, else that of the commit.

    See https://reproducible-builds.org/specs/source-date-epoch/.
    """
    epoch = os.environ.get("SOURCE_DATE_EPOCH") or (str(checkout.committed) if checkout else None)
    if epoch is None:
        return None
    try:
        return datetime.fromtimestamp(int(epoch), UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError) as error:
        raise PermanentError(f"SOURCE_DATE_EPOCH {epoch!r}: expected seconds since 1970") from error


def _parse_hardware(given: Sequence[str]) -> list[str]:
    names = [name.strip() for text in given for name in text.split(",")]
    for name in names:
        _shown("--hardware", name)
    return list(dict.fromkeys(names))


def _parse_requires(text: str) -> str:
    try:
        parse_range(text)
    except MalformedRangeError as error:
        raise PermanentError(f"--requires {text!r}: it {error}") from error
    return _shown("--requires", text)


def _parse_source(text: str) -> str:
    """Return a URL that holds no secret, unchanged."""
    try:
        url = urlsplit(_shown("--source", text))
        has_secret = url.password is not None or (url.username is not None and url.scheme in ("http", "https"))
    except ValueError as error:
        raise PermanentError("--source: is no URL") from error
    if has_secret:  # not quoted, for this reason
        raise PermanentError("--source: the URL has a user name or a password in it, and an annotation is public")
    return text


def _parse_pairs(given: Sequence[str]) -> dict[str, str]:
    annotations = {}
    for annotation in given:
        key, equals, value = annotation.partition("=")
        if not key or not equals:
            raise PermanentError(f"--annotation {annotation!r}: expected KEY=VALUE")
        if key in _CHECKED:
            raise PermanentError(f"--annotation {annotation!r}: that is what {_CHECKED[key]} says")
        if not annotation.isprintable():
            raise PermanentError(f"--annotation {annotation!r}: has characters that cannot be shown")
        annotations[key] = value
    return annotations


def _shown(what: str, value: str) -> str:
    """Return a value that people can read, unchanged."""
    if not value or not value.isprintable():
        raise PermanentError(f"{what} {value!r} is empty, or has characters that cannot be shown")
    return value
