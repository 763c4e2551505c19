"""`serve`: the function under gunicorn, with the settings that we recommend."""

import os
import sys

import click

from fleet_fn.settings import Settings, SettingsError


@click.command("serve")
def command() -> None:
    """Run the function, configured by the environment.

    DROGUE_API_URL and FIRMWARE_REGISTRY are required; the README has them all. Exits with 2 when a setting is missing
    or invalid.
    """
    try:
        Settings.from_environment()
    except SettingsError as error:
        click.echo(f"fleet_fn: {error}", err=True)
        sys.exit(2)
    # What is freed stays with the arena it came from, of which glibc takes eight for each CPU: with as many threads as
    # these, memory would grow for hours. One at a time is what Python's threads need.
    os.environ.setdefault("MALLOC_ARENA_MAX", "2")
    gunicorn = [sys.executable, "-m", "gunicorn", "--config", "python:fleet_fn.server", "fleet_fn.app:create_app()"]
    os.execv(sys.executable, gunicorn)  # noqa: S606 - the process becomes gunicorn, which then gets its signals itself
