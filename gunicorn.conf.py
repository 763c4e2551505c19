"""What plain `gunicorn 'fleet_fn.app:create_app()'` reads from its working directory."""

from fleet_fn.server import (  # noqa: F401
    bind,
    control_socket_disable,
    forwarder_headers,
    graceful_timeout,
    keepalive,
    on_starting,
    threads,
    worker_class,
    worker_connections,
    worker_tmp_dir,
    workers,
)
