"""How gunicorn runs the function: the settings that we recommend, and the check before anything starts."""

import math
import resource
import sys
from pathlib import Path
from typing import Final

from fleet_fn.settings import MAX_WAITING, SPARE_THREADS, Settings, SettingsError

#: Files and sockets that a worker should be able to have open, and how many of them each of its threads may need for
#: upstreams and firmware. One that has none left for a connection ends, and what it works on with it.
_DESCRIPTORS: Final = 8192
_OF_A_THREAD: Final = 4


def on_starting(server: object) -> None:  # noqa: ARG001 - gunicorn's signature
    """Ends gunicorn before any worker runs, with one line, where a setting is missing or invalid."""
    try:
        Settings.from_environment()
    except SettingsError as error:
        sys.stderr.write(f"fleet_fn: {error}\n")
        sys.exit(1)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft not in (_descriptors(), resource.RLIM_INFINITY):
        resource.setrlimit(resource.RLIMIT_NOFILE, (_descriptors(), hard))


def _descriptors() -> int:
    """How many descriptors a worker has, or gets, which is as many as it may have up to those that it should have."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, hard = (sys.maxsize if limit == resource.RLIM_INFINITY else limit for limit in limits)
    return max(soft, min(hard, _DESCRIPTORS))


try:
    _settings = Settings.from_environment()
except SettingsError:
    # Told by `on_starting`, where gunicorn lets a process end without a traceback.
    _settings = Settings("", "")

worker_class = "gthread"
bind = f"0.0.0.0:{_settings.port}"
workers = _settings.workers
threads = _settings.threads + MAX_WAITING + SPARE_THREADS
worker_connections = max(threads, min(threads + 1000, _descriptors() - _OF_A_THREAD * threads))
# Longer than deliverers keep an idle connection, so that it is them who close it and no event meets a closed one.
keepalive = 120
# Events in flight when the platform stops a pod get their answer.
graceful_timeout = math.ceil(_settings.event_deadline) + 2
# A file on disk could block the workers' heartbeat.
worker_tmp_dir = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - gunicorn makes it safe
# Whatever stands before the function on the same host has no word in where it is: no header names its path.
forwarder_headers = ""
control_socket_disable = True
