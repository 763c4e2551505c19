"""The entry point that `func` imports: its ASGI middleware serves the function."""

import os
import sys

from fleet_fn.app import create_app
from fleet_fn.observability.log import logger
from fleet_fn.settings import Settings, SettingsError
from fleet_fn.web.asgi import ASGIFunction


def new() -> ASGIFunction:
    """Return an instance of the function, configured by the environment.

    If HOST is set, `func`'s server listens there, on PORT. That server reads LISTEN_ADDRESS after this call; a value
    set before wins. Without HOST, the server keeps its own default, which includes IPv6.

    Raises:
        SystemExit: a setting is missing or invalid; one line on stderr names it.

    """
    try:
        settings = Settings.from_environment()
    except SettingsError as error:
        sys.exit(f"fleet_fn: {error}")
    if os.environ.get("HOST"):
        os.environ.setdefault("LISTEN_ADDRESS", settings.address)
    application = create_app(settings)
    if settings.mqtt_applications:
        logger.warning("MQTT_APPLICATIONS has no effect under func, which takes no events over MQTT")
    return ASGIFunction(application, settings)
