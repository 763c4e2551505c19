"""The composition root: settings become parts, and parts a WSGI application.

gunicorn runs it as `gunicorn 'fleet_fn.app:create_app()'`.
"""

import sys
import time
from collections.abc import Callable
from typing import Final

from fleet_fn.clocks import Clocks
from fleet_fn.observability import log, tracing
from fleet_fn.parts import Parts
from fleet_fn.settings import Settings, SettingsError
from fleet_fn.web.routes import make_app
from fleet_fn.web.wsgi import Application

#: Only gunicorn's command imports this module, and only the recommended settings the other.
_GUNICORN: Final = "gunicorn.app.wsgiapp"
_RECOMMENDED_SETTINGS: Final = "fleet_fn.web.server"
#: gunicorn's exit code for an application that cannot be loaded. After any other it would start workers for ever.
_CANNOT_LOAD: Final = 4


def create_app(settings: Settings | None = None, *, now: Callable[[], float] = time.time) -> Application:
    """Return the application that the settings describe.

    From then on, no write to the process's stdout or stderr waits for a reader that stalls.

    Args:
        settings: the settings; by default, those of the environment.
        now: wall clock, in seconds since 1970.

    Raises:
        SettingsError: a setting is missing or invalid.
        SystemExit: the same, under gunicorn, which would print a traceback; one line on stderr names the setting.

    """
    settings = settings or _read_settings()
    log.keep_pipes_from_blocking()
    log.configure(settings.log_level, settings.log_format)
    if _GUNICORN in sys.modules and _RECOMMENDED_SETTINGS not in sys.modules:
        log.logger.warning(
            "gunicorn runs without the recommended settings: start it in the folder of gunicorn.conf.py, or with "
            f"--config python:{_RECOMMENDED_SETTINGS}, or run `fleet-fn serve`"
            + ("; it takes no events over MQTT" if settings.mqtt_applications else "")
        )
    if settings.is_anonymous:
        log.logger.warning(
            "no credentials for Drogue Cloud are set, so it will refuse requests: set DROGUE_TOKEN and DROGUE_USER, or "
            "DROGUE_OIDC_TOKEN_URL"
        )
    if settings.workers > 1 and settings.in_sync_ttl_seconds > settings.spec_ttl_seconds:
        log.logger.warning(
            f"each registry event reaches one of {settings.workers} workers: the others notice a change of a device in "
            f"sync up to {settings.in_sync_ttl_seconds:g} s later (IN_SYNC_TTL_SECONDS); set WEB_CONCURRENCY to 1"
        )
    tracing.configure()
    parts = Parts(settings, Clocks(wall=now))
    return make_app(settings, parts.updater, parts.previewer)


def _read_settings() -> Settings:
    try:
        return Settings.from_environment()
    except SettingsError as error:
        if _GUNICORN not in sys.modules:
            raise
        sys.stderr.write(f"fleet_fn: {error}\n")
        sys.exit(_CANNOT_LOAD)
