"""Options that several commands have."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def access_options(command: F) -> F:
    """The options of every command that talks to a registry: `insecure` and `ca_file`."""
    insecure = click.option(
        "--insecure", is_flag=True, envvar="FIRMWARE_REGISTRY_INSECURE", help="Talk plain HTTP to the registry."
    )
    ca_file = click.option(
        "--ca-file", metavar="FILE", envvar="FIRMWARE_REGISTRY_CA_FILE", help="Trust anchors for the registry (PEM)."
    )
    return insecure(ca_file(command))
