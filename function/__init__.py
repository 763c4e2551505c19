"""What `func` imports, to serve the function with its own ASGI middleware."""

import sys

from fleet_fn.asgi import ASGIFunction
from fleet_fn.settings import Settings, SettingsError


def new() -> ASGIFunction:
    """An instance of the function, configured by the environment.

    Raises:
        SystemExit: a setting is missing or invalid; one line on stderr names it.

    """
    try:
        return ASGIFunction(Settings.from_environment())
    except SettingsError as error:
        sys.exit(f"fleet_fn: {error}")
