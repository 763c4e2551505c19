"""`serve`: run the function under gunicorn, with the recommended settings."""

import os

import click

from fleet_fn.setting_values import ALL
from fleet_fn.web.serve import serve


@click.command("serve")
@click.option(
    "--subscribe",
    "applications",
    metavar="[APPLICATION]",
    multiple=True,
    is_flag=False,
    flag_value=ALL,
    help="Also take an application's events from the MQTT integration at DROGUE_MQTT_URL; may be repeated. Without a "
    "name: all that the token can see.",
)
def command(applications: tuple[str, ...]) -> None:
    """Run the function, configured by the environment.

    DROGUE_API_URL and FIRMWARE_REGISTRY are required, or FIRMWARE_DIR or HAWKBIT_URL instead of the latter;
    docs/settings.md lists all variables. The function listens on HOST (0.0.0.0) and PORT (8080). On your own computer,
    let it listen on loopback only:

        HOST=127.0.0.1 fleet-fn serve

    Exits with 2 if a setting is missing or invalid, or if the function cannot listen on the address.
    """
    if applications:
        os.environ["MQTT_APPLICATIONS"] = ",".join(applications)  # the workers read it, too
    serve()
