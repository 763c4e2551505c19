"""The function as a WSGI application: `gunicorn 'fleet_fn.app:create_app()'`."""

import time
from collections.abc import Callable

from flask import Flask

from fleet_fn.clocks import Clocks
from fleet_fn.observability import log, tracing
from fleet_fn.parts import Parts
from fleet_fn.settings import Settings
from fleet_fn.web.routes import make_app


def create_app(settings: Settings | None = None, *, now: Callable[[], float] = time.time) -> Flask:
    """Return the application that the settings describe.

    Args:
        settings: the settings; by default, those of the environment.
        now: wall clock, in seconds since 1970.

    Raises:
        SettingsError: a setting is missing or invalid.

    """
    settings = settings or Settings.from_environment()
    log.configure(settings.log_level, settings.log_format)
    tracing.configure()
    parts = Parts(settings, Clocks(wall=now))
    return make_app(settings, parts.updater, parts.previewer)
