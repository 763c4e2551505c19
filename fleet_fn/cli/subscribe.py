"""`subscribe`: take events from Drogue Cloud's MQTT integration."""

import os
import signal
from collections.abc import Mapping
from threading import Event
from types import FrameType
from typing import TYPE_CHECKING

import click

from fleet_fn.cli.failures import WRONG_USAGE, fail
from fleet_fn.setting_values import ALL
from fleet_fn.settings import SETTINGS, Settings, SettingsError

if TYPE_CHECKING:
    from fleet_fn.subscription.subscription import Subscription


@click.command("subscribe")
@click.option(
    "--application",
    "applications",
    metavar="NAME",
    multiple=True,
    help="An application whose events are taken; may be repeated. Without it, MQTT_APPLICATIONS; without that, all "
    "that the token can see.",
)
@click.option(
    "--exclude",
    metavar="NAME",
    multiple=True,
    help="Leave an application out; may be repeated. [default: MQTT_EXCLUDE]",
)
@click.option(
    "--group", metavar="NAME", help="Group of subscribers that share the events. [default: MQTT_GROUP, or fleet-fn]"
)
@click.option(
    "--connections",
    metavar="N",
    help="Number of connections for each application. [default: MQTT_CONNECTIONS, or 1]",
)
@click.option("--sink", metavar="URL", help="Post the events to a function there instead of answering them here.")
def command(
    applications: tuple[str, ...],
    exclude: tuple[str, ...],
    group: str | None,
    connections: str | None,
    sink: str | None,
) -> None:
    """Take events from Drogue Cloud's MQTT integration. It needs no inbound route.

    The function answers them in this process, which opens no port; or, with --sink, a function elsewhere. The
    environment configures it as it does `fleet-fn serve`; DROGUE_MQTT_URL is required besides. With --sink,
    FIRMWARE_REGISTRY is not needed. Stop it with SIGTERM or Ctrl-C: it then finishes the events in progress.

        DROGUE_MQTT_URL=mqtts://mqtt.example.com:8883 fleet-fn subscribe

    Exits with 2 if a setting is missing or invalid.
    """
    given = {
        "MQTT_APPLICATIONS": ",".join(applications),
        "MQTT_EXCLUDE": ",".join(exclude),
        "MQTT_GROUP": group,
        "MQTT_CONNECTIONS": connections,
    }
    settings = _read_settings({name: value for name, value in given.items() if value}, sink)
    ended = Event()

    def end(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)  # a second one ends the process at once
        ended.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    subscription = _to_sink(settings, sink) if sink else _to_function(settings)
    subscription.start()
    ended.wait()
    subscription.stop(settings.event_deadline_seconds + 1)


def _read_settings(given: Mapping[str, str], sink: str | None) -> Settings:
    environment = {"MQTT_APPLICATIONS": ALL, **{name: value for name, value in os.environ.items() if value}, **given}
    url = SETTINGS["mqtt_url"]
    if url.variable not in environment:
        fail("subscribe", f"{url.variable} is not set. Set it to {url.kind.takes}", WRONG_USAGE)
    try:
        if sink is None:
            return Settings.from_environment(environment)
        SETTINGS["sink_url"].kind.parse(sink)
        return Settings.for_sink(environment)
    except SettingsError as error:
        fail("subscribe", str(error), WRONG_USAGE)
    except ValueError:
        fail("subscribe", "--sink takes an http or https URL, without credentials and query", WRONG_USAGE)


def _to_sink(settings: Settings, sink: str) -> "Subscription":
    from fleet_fn.observability import log
    from fleet_fn.subscription.sink import Sink
    from fleet_fn.subscription.subscription import Subscription
    from fleet_fn.web.arrival import MAX_BODY_BYTES

    log.keep_pipes_from_blocking()
    log.configure(settings.log_level, settings.log_format)
    return Subscription(settings, Sink(sink, settings), MAX_BODY_BYTES)


def _to_function(settings: Settings) -> "Subscription":
    from fleet_fn.app import create_app
    from fleet_fn.subscription.subscription import Subscription
    from fleet_fn.web.arrival import MAX_BODY_BYTES
    from fleet_fn.web.subscriber import Function

    return Subscription(settings, Function(create_app(settings), settings), MAX_BODY_BYTES)
