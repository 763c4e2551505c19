"""gunicorn's configuration: recommended settings, hooks at the start and the end."""

import errno
import gc
import itertools
import math
import os
import resource
import socket
import sys
from contextlib import closing, suppress
from pathlib import Path
from threading import Timer
from typing import Any, Final

from fleet_fn.observability import log, metrics
from fleet_fn.observability.metrics_folder import Folder, take_slot
from fleet_fn.settings import MAX_WAITING, SPARE_THREADS, WORK_SHARE, Settings, SettingsError
from fleet_fn.web.balance import Board, Share
from fleet_fn.web.processor import Processor

#: Open files that a worker should be allowed, and those that each of its threads may need for upstreams and firmware.
#: A worker without a descriptor for a new connection ends, and loses the events that it answers.
_WANTED_DESCRIPTORS: Final = 8192
_DESCRIPTORS_PER_THREAD: Final = 4
#: A worker without an event loads its counters after this time.
_METRICS_DELAY_SECONDS: Final = 1.0
#: A parameter of glibc's mallopt(3), and its value.
_M_ARENA_MAX: Final = -8
_ARENAS: Final = 2


#: The metrics folder, if one could be made.
_metrics: Final[list[Folder]] = []
#: Number of the first worker's CPU. By chance: the servers in a node's containers have the same process id.
_first_cpu: Final = int.from_bytes(os.urandom(2))
#: Numbers of connections of the workers.
_board: Final = Board()


def on_starting(server: Any) -> None:
    """End gunicorn with one line if a setting is invalid or the address unusable.

    No worker has run by then.
    """
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
        # Answering devices is worth more than counting.
        _complain(f"the folder for metrics cannot be made, so /metrics shows one worker at a time: {error}")
    log.keep_pipes_from_blocking()
    _bound_arenas()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft not in (_descriptors(), resource.RLIM_INFINITY):
        resource.setrlimit(resource.RLIMIT_NOFILE, (_descriptors(), hard))


def _check_address(settings: Settings) -> None:
    """Check that the server can listen on its address.

    gunicorn would try for 5 s, and name no variable.

    Raises:
        SettingsError: the server cannot listen there.

    """
    host, port = settings.host, settings.port
    try:
        with closing(socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            probe.listen()  # two sockets may be bound to the same address as long as neither listens
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
    """Return whether gunicorn is about to bind the address of the settings.

    It does not if it inherits sockets.
    """
    inherits = os.environ.keys() & {"GUNICORN_FD", "LISTEN_FDS"}
    return not inherits and getattr(server, "address", None) == [(_settings.host, _settings.port)]


def when_ready(server: object) -> None:  # noqa: ARG001 - gunicorn's signature
    """Enable the master's garbage collector, except for loaded modules; they stay."""
    gc.freeze()
    gc.enable()


def child_exit(server: Any, worker: Any) -> None:
    """Remove an ended worker's connections, gauges and damaged metrics files.

    A server that stops has closed its sockets, so its metrics are read no more.
    """
    _board.leave(worker.slot)
    if not server.LISTENERS:
        return
    for folder in _metrics:
        try:
            folder.clean(worker.slot)
        except Exception as error:  # noqa: BLE001 - the server goes on, whatever files the worker left
            _complain(f"counts of worker {worker.pid} are lost: {error}")


def on_exit(server: object) -> None:  # noqa: ARG001 - gunicorn's signature
    """Remove the metrics folder."""
    for folder in _metrics:
        folder.remove()


def pre_fork(server: Any, worker: Any) -> None:
    """Give a worker the first slot that no living worker has."""
    taken = {other.slot for other in server.WORKERS.values()}
    worker.slot = next(slot for slot in itertools.count() if slot not in taken)
    _board.enter(worker.slot)


def post_fork(server: object, worker: Any) -> None:  # noqa: ARG001 - gunicorn's signature
    """Set a worker's slot, its share of the connections, and its time for a request.

    Disable its garbage collector while modules load.
    """
    take_slot(worker.slot)
    worker.share = Share(_board, worker.slot)
    worker.request_seconds = _settings.event_deadline_seconds * WORK_SHARE
    gc.disable()


def post_worker_init(worker: Any) -> None:
    """Enable the garbage collector, except for loaded modules; they stay.

    Choose a CPU. Begin to take events from the MQTT integration, if the settings name applications.
    """
    if _settings.mqtt_applications:
        from fleet_fn.web.subscriber import Subscriber  # late: few functions subscribe

        worker.subscriber = Subscriber(worker.app.wsgi(), _settings)
        worker.subscriber.start()
    gc.freeze()
    gc.enable()
    if hasattr(worker, "processor"):  # a worker of another class never looks for a better CPU
        worker.processor = Processor(_first_cpu + worker.slot)
    timer = Timer(_METRICS_DELAY_SECONDS, metrics.load)
    timer.daemon = True
    timer.start()


def worker_exit(server: object, worker: Any) -> None:  # noqa: ARG001 - gunicorn's signature
    """Let a worker's subscription finish."""
    if subscriber := getattr(worker, "subscriber", None):
        subscriber.finish_stop()


def _complain(text: str) -> None:
    """Write a line to stderr, if stderr can be written to."""
    with suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(f"fleet_fn: {text}\n")


def _bound_arenas() -> None:
    """Limit glibc to two memory arenas, unless the environment sets another number.

    Freed memory stays in its arena, and glibc uses up to eight arenas per CPU. With this many threads, memory would
    grow for hours. Python's threads run one at a time, so two arenas suffice.
    """
    import ctypes  # late: nothing else needs it

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt and "MALLOC_ARENA_MAX" not in os.environ:
        mallopt(_M_ARENA_MAX, _ARENAS)


def _descriptors() -> int:
    """Return the number of descriptors that a worker gets.

    It is the worker's limit, raised to the wanted number if the system allows that.
    """
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, hard = (sys.maxsize if limit == resource.RLIM_INFINITY else limit for limit in limits)
    return max(soft, min(hard, _WANTED_DESCRIPTORS))


try:
    _settings = Settings.from_environment()
except SettingsError:
    # `on_starting` reports the error: there, gunicorn lets the process end without a traceback.
    _settings = Settings(drogue_api_url="")

worker_class = "fleet_fn.web.worker.ThreadWorker"
bind = _settings.address
workers = _settings.workers
threads = _settings.threads + MAX_WAITING + SPARE_THREADS
worker_connections = max(threads, min(threads + 1000, _descriptors() - _DESCRIPTORS_PER_THREAD * threads))
# Seconds; longer than deliverers keep an idle connection. So they close it, and no event meets a closed connection.
keepalive = 120
# Events in flight when the platform stops a pod get their answer.
graceful_timeout = math.ceil(_settings.event_deadline_seconds) + 2
# Not on disk: a slow disk would block the workers' heartbeat.
worker_tmp_dir = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - gunicorn makes it safe
# Ignore headers by which a proxy on the same host could change the request's path or address.
forwarder_headers = ""
forwarded_allow_ips = ""
control_socket_disable = True
