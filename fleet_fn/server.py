"""How gunicorn runs the function: the settings that we recommend, and the check before anything starts."""

import math
import sys
from pathlib import Path

from fleet_fn.settings import MAX_WAITING, SPARE_THREADS, Settings, SettingsError


def on_starting(server: object) -> None:  # noqa: ARG001 - gunicorn's signature
    """Ends gunicorn before any worker runs, with one line, where a setting is missing or invalid."""
    try:
        Settings.from_environment()
    except SettingsError as error:
        sys.stderr.write(f"fleet_fn: {error}\n")
        sys.exit(1)


try:
    _settings = Settings.from_environment()
except SettingsError:
    # Told by `on_starting`, where gunicorn lets a process end without a traceback.
    _settings = Settings("", "")

worker_class = "gthread"
bind = f"0.0.0.0:{_settings.port}"
workers = _settings.workers
threads = _settings.threads + MAX_WAITING + SPARE_THREADS
worker_connections = threads + 1000
# Longer than deliverers keep an idle connection, so that it is them who close it and no event meets a closed one.
keepalive = 120
# Events in flight when the platform stops a pod get their answer.
graceful_timeout = math.ceil(_settings.event_deadline) + 2
# A file on disk could block the workers' heartbeat.
worker_tmp_dir = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - gunicorn makes it safe
# Whatever stands before the function on the same host has no word in where it is: no header names its path.
forwarder_headers = ""
control_socket_disable = True
