"""`serve`: run the function under gunicorn, with the recommended settings."""

import sys

import click

from fleet_fn.settings import Settings, SettingsError


@click.command("serve")
def command() -> None:
    """Run the function, configured by the environment.

    DROGUE_API_URL and FIRMWARE_REGISTRY are required; docs/settings.md lists all variables. The function listens on
    HOST (0.0.0.0) and PORT (8080). On your own computer, let it listen on loopback only:

        HOST=127.0.0.1 fleet-fn serve

    Exits with 2 if a setting is missing or invalid, or if the function cannot listen on the address.
    """
    try:
        Settings.from_environment()
    except SettingsError as error:
        click.echo(f"fleet_fn: {error}", err=True)
        sys.exit(2)
    # Late: gunicorn reads its own variables, and ours, when it is loaded.
    from gunicorn import __main__ as gunicorn

    # In this process: a second start of Python would double the time.
    sys.argv = [str(gunicorn.__file__), "--config", "python:fleet_fn.web.server", "fleet_fn.app:create_app()"]
    gunicorn.run(prog="gunicorn")
