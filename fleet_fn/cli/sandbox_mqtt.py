"""The sandbox's MQTT integration on the command line: its options."""

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from fleet_fn.cli.sandbox_objects import UnusableError
from fleet_fn.sandbox.mqtt.endpoint import MqttOptions

_OPTIONS = (
    click.option(
        "--mqtt-port",
        type=click.IntRange(0, 65535),
        metavar="PORT",
        help="Serve the MQTT integration, too, on this port. 0 takes a free one.",
    ),
    click.option(
        "--mqtt-partitions",
        type=click.IntRange(1),
        metavar="COUNT",
        help="Partitions of an application's events: as many members of a group get some.  [default: 1]",
    ),
    click.option(
        "--mqtt-cert",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Certificate of the MQTT integration, PEM. It speaks TLS then.",
    ),
    click.option(
        "--mqtt-key",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Key of that certificate, PEM, if it is in another file.",
    ),
)


def mqtt_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of the MQTT integration to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def read_mqtt(port: int | None, partitions: int | None, cert: Path | None, key: Path | None) -> MqttOptions | None:
    """Return how to serve the MQTT integration; None if the options leave it out.

    Raises:
        UnusableError: the options make no sense.

    """
    if port is None:
        given = {"--mqtt-partitions": partitions, "--mqtt-cert": cert, "--mqtt-key": key}
        if name := next((name for name, value in given.items() if value is not None), None):
            raise UnusableError(f"{name} is for the MQTT integration: give --mqtt-port, too")
        return None
    if cert is None and key is not None:
        raise UnusableError("--mqtt-key is the key of a certificate: give --mqtt-cert, too")
    return MqttOptions(port, partitions or 1, None if cert is None else _context(cert, key))


def _context(cert: Path, key: Path | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(cert, key, password="")  # no prompt for one
    except ssl.SSLError as error:
        files = f"{cert} and {key} hold" if key else f"{cert} holds"
        raise UnusableError(f"--mqtt-cert: {files} no certificate with its unencrypted key, as PEM") from error
    except OSError as error:
        raise UnusableError(f"--mqtt-cert: {cert if key is None else f'{cert}, {key}'}: {error.strerror}") from error
    return context
