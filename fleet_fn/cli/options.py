"""Options that several commands share."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def access_options(command: F) -> F:
    """Add `insecure` and `ca_file`, the options for access to an OCI registry."""
    insecure = click.option(
        "--insecure",
        is_flag=True,
        envvar="FIRMWARE_REGISTRY_INSECURE",
        show_envvar=True,
        help="Use plain HTTP for the registry.",
    )
    ca_file = click.option(
        "--ca-file",
        metavar="FILE",
        envvar="FIRMWARE_REGISTRY_CA_FILE",
        show_envvar=True,
        help="PEM file with the registry's trusted CAs.",
    )
    return insecure(ca_file(command))
