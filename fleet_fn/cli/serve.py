"""`serve`: the function under gunicorn, with the settings that we recommend."""

import sys

import click

from fleet_fn.settings import Settings, SettingsError


@click.command("serve")
def command() -> None:
    """Run the function, configured by the environment.

    DROGUE_API_URL and FIRMWARE_REGISTRY are required; docs/settings.md has all variables. The function listens on HOST
    (0.0.0.0) and PORT (8080). On a computer of your own, let it listen on loopback alone:

        HOST=127.0.0.1 fleet-fn serve

    Exits with 2 if a setting is missing or invalid, or if the address cannot be listened on.
    """
    try:
        Settings.from_environment()
    except SettingsError as error:
        click.echo(f"fleet_fn: {error}", err=True)
        sys.exit(2)
    # Not before: it reads variables of its own, and ours, when it is loaded.
    from gunicorn import __main__ as gunicorn

    # In this process: starting Python a second time would take as long as gunicorn does.
    sys.argv = [str(gunicorn.__file__), "--config", "python:fleet_fn.web.server", "fleet_fn.app:create_app()"]
    gunicorn.run(prog="gunicorn")
