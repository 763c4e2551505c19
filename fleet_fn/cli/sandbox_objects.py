"""Objects for the sandbox from files, and problems with them by file and object."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from fleet_fn.sandbox.objects import names
from fleet_fn.sandbox.refusal import RefusedError


class UnusableError(click.ClickException):
    """An option or a file that cannot be used; reported in one line."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


@dataclass(frozen=True, slots=True)
class Named:
    """An application or a device, and the file that it stands in."""

    file: Path
    application: str
    #: None for an application.
    device: str | None
    given: Mapping[str, Any]


def read_objects(file: Path) -> list[Named]:
    """Return the objects in a file.

    Raises:
        UnusableError: the file cannot be read, or contains something else.

    """
    try:
        text = file.read_text(encoding="utf-8")
        documents = _yaml(text) if file.suffix in (".yaml", ".yml") else [json.loads(text)]
    except OSError as error:
        raise UnusableError(f"{file}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UnusableError(f"{file}: {error}") from error
    given = [each for part in documents for each in (part if isinstance(part, list) else [part]) if each is not None]
    return [_named(file, number, each) for number, each in enumerate(given, start=1)]


def describe_refusal(refusal: RefusedError, found: Sequence[Named]) -> str:
    """Return the problem with an object that the sandbox refuses, by file and object."""
    if refusal.about is None:
        return str(refusal)
    alike = [named for named in found if (named.application, named.device) == refusal.about]
    application, device = refusal.about
    problem = _problem(refusal)
    if refusal.error == "ReferenceNotFound":
        problem = f"its application {application} is not among the objects"
    elif refusal.error == "Conflict":
        problem = "there are two of it" if len(alike) > 1 else "one of its aliases is another device's"
    what = f"application {application}" if device is None else f"device {device}"
    return ": ".join([*(str(named.file) for named in alike[-1:]), what, problem])


def _named(file: Path, number: int, given: object) -> Named:
    if not isinstance(given, dict):
        raise UnusableError(f"{file}: must contain applications and devices: maps with metadata")
    try:
        return Named(file, *names(given), given)
    except RefusedError as refusal:
        metadata = given.get("metadata")
        name = metadata.get("name") if isinstance(metadata, dict) else None
        which = f"object {number} ({name})" if isinstance(name, str) else f"object {number}"
        raise UnusableError(f"{file}: {which}: {_problem(refusal)}") from refusal


def _problem(refusal: RefusedError) -> str:
    return str(refusal).removeprefix("Json deserialize error: ")


def _yaml(text: str) -> list[Any]:
    """Return the documents in YAML text.

    Raises:
        ValueError: the text is not YAML.

    """
    try:
        import yaml
    except ImportError as error:
        raise UnusableError("YAML needs PyYAML (pip install PyYAML). Or use JSON") from error
    try:
        return list(yaml.safe_load_all(text))
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
