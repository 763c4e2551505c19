"""`serve`: run the function under gunicorn, with the recommended settings."""

import click

from fleet_fn.web.serve import serve


@click.command("serve")
def command() -> None:
    """Run the function, configured by the environment.

    DROGUE_API_URL and FIRMWARE_REGISTRY are required, or FIRMWARE_DIR instead of the latter; docs/settings.md lists all
    variables. The function listens on HOST (0.0.0.0) and PORT (8080). On your own computer, let it listen on loopback
    only:

        HOST=127.0.0.1 fleet-fn serve

    Exits with 2 if a setting is missing or invalid, or if the function cannot listen on the address.
    """
    serve()
