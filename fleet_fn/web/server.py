"""How gunicorn runs the function: the settings that we recommend, and what they need before, beside and after it."""

import errno
import gc
import math
import os
import resource
import socket
import stat
import sys
from contextlib import closing, suppress
from pathlib import Path
from threading import Timer
from typing import Any, Final

from fleet_fn.observability import metrics
from fleet_fn.observability.metrics_folder import Folder
from fleet_fn.settings import MAX_WAITING, OURS, SPARE_THREADS, Settings, SettingsError

#: Files and sockets that a worker should be able to have open, and how many of them each of its threads may need for
#: upstreams and firmware. One that has none left for a connection ends, and what it works on with it.
_DESCRIPTORS: Final = 8192
_OF_A_THREAD: Final = 4
#: Seconds after which a worker that has had no event loads what it counts with.
_METRICS_AFTER: Final = 1.0
#: A parameter of glibc's mallopt(3), and its value.
_M_ARENA_MAX: Final = -8
_ARENAS: Final = 2


#: The folder for metrics, where one can be had.
_metrics: Final[list[Folder]] = []


def on_starting(server: Any) -> None:
    """End gunicorn before any worker runs, with one line, if a setting is invalid or the address is not to be had."""
    try:
        settings = Settings.from_environment()
        if _binds_anew(server):
            _check_address(settings)
    except SettingsError as error:
        _complain(str(error))
        sys.exit(2)
    try:
        _metrics.append(Folder())
    except OSError as error:
        # Nothing else needs it, and nothing that is counted is worth a device that is not answered.
        _complain(f"each worker's metrics are its own, for want of a folder: {error}")
    _keep_pipes_from_blocking()
    _bound_arenas()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft not in (_descriptors(), resource.RLIM_INFINITY):
        resource.setrlimit(resource.RLIMIT_NOFILE, (_descriptors(), hard))


def _check_address(settings: Settings) -> None:
    """Check that the server can listen on its address: gunicorn tries for 5 s, and names no variable.

    Raises:
        SettingsError: it cannot.

    """
    host, port = settings.host, settings.port
    try:
        with closing(socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            probe.listen()  # two sockets may be bound to an address, if none of them listens
    except OSError as error:
        where = settings.address
        match error.errno:
            case errno.EADDRINUSE:
                problem = f"PORT is {port}, but another process listens on {where}. Stop it, or set PORT to a free port"
            case errno.EACCES:
                problem = f"PORT is {port}, but this user may not listen on {where}. Set PORT to 1024 or above"
            case errno.EADDRNOTAVAIL:
                problem = f"HOST is {host!r}, which is no address of this machine. Set HOST to one, e.g. 127.0.0.1"
            case _:
                problem = (
                    f"HOST is {host!r}, but nothing can listen on {where}: {error.strerror}. Set HOST to 127.0.0.1"
                )
        raise SettingsError(problem) from error


def _binds_anew(server: Any) -> bool:
    """Return whether gunicorn is about to bind the address of the settings, and no other, nor takes sockets over."""
    inherits = os.environ.keys() & {"GUNICORN_FD", "LISTEN_FDS"}
    return not inherits and getattr(server, "address", None) == [(_settings.host, _settings.port)]


def child_exit(server: object, worker: Any) -> None:  # noqa: ARG001 - gunicorn's signature
    """Keep what a worker has counted that has ended."""
    for folder in _metrics:
        try:
            folder.end_worker(worker.pid)
        except Exception as error:  # noqa: BLE001 - whatever the worker left behind, the server goes on
            _complain(f"what a worker has counted is lost: {error}")


def on_exit(server: object) -> None:  # noqa: ARG001 - gunicorn's signature
    """Leave nothing behind."""
    for folder in _metrics:
        folder.remove()


def post_fork(server: object, worker: Any) -> None:  # noqa: ARG001 - gunicorn's signature
    """Tell a worker how long a request may take to come, and disable its garbage collector while modules load."""
    worker.request_seconds = _settings.event_deadline * OURS
    gc.disable()


def post_worker_init(worker: object) -> None:  # noqa: ARG001 - gunicorn's signature
    """Have a worker look for garbage from now on, and not among what it has loaded, which stays."""
    gc.freeze()
    gc.enable()
    timer = Timer(_METRICS_AFTER, metrics.load)
    timer.daemon = True
    timer.start()


def _complain(text: str) -> None:
    """Write a line to stderr, if that can be written to."""
    with suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(f"fleet_fn: {text}\n")


def _keep_pipes_from_blocking() -> None:
    """Have lines fail, rather than wait, if whatever reads stdout or stderr stalls: threads would wait for ever.

    The flag belongs to an open file, which others may share: so the pipe is opened anew.
    """
    for descriptor in (1, 2):
        with suppress(OSError):
            if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
                opened = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                os.dup2(opened, descriptor)
                os.close(opened)


def _bound_arenas() -> None:
    """Have memory come from two of glibc's arenas at most, unless the environment says otherwise.

    What is freed stays with the arena it came from, of which glibc takes eight for each CPU: with as many threads as
    these, memory would grow for hours. One at a time is what Python's threads need.
    """
    import ctypes  # here alone

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt and "MALLOC_ARENA_MAX" not in os.environ:
        mallopt(_M_ARENA_MAX, _ARENAS)


def _descriptors() -> int:
    """How many descriptors a worker has, or gets, which is as many as it may have up to those that it should have."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, hard = (sys.maxsize if limit == resource.RLIM_INFINITY else limit for limit in limits)
    return max(soft, min(hard, _DESCRIPTORS))


try:
    _settings = Settings.from_environment()
except SettingsError:
    # Told by `on_starting`, where gunicorn lets a process end without a traceback.
    _settings = Settings(drogue_api_url="", firmware_registry="")

worker_class = "fleet_fn.web.worker.ThreadWorker"
bind = _settings.address
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
forwarded_allow_ips = ""
control_socket_disable = True
