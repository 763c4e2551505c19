"""The function under gunicorn, with the recommended settings."""

import importlib
import sys

from fleet_fn.settings import Settings, SettingsError


def serve() -> None:
    """Run the function until a signal ends it.

    Raises:
        ModuleNotFoundError: gunicorn is not installed.
        SystemExit: always; with 2 after one line that names the setting, if one is missing or invalid.

    """
    importlib.import_module("gunicorn")  # name a missing dependency before a missing setting
    try:
        Settings.from_environment()
    except SettingsError as error:
        sys.stderr.write(f"fleet_fn: {error}\n")
        sys.exit(2)
    # Late: gunicorn reads its own variables, and ours, when it is loaded.
    from gunicorn import __main__ as gunicorn

    # In this process: a second start of Python would double the time.
    sys.argv = [str(gunicorn.__file__), "--config", "python:fleet_fn.web.server", "fleet_fn.app:create_app()"]
    gunicorn.run(prog="gunicorn")
