"""Configuration of plain `gunicorn 'fleet_fn.app:create_app()'`.

gunicorn reads it from its working directory.
"""

from fleet_fn.web.server import (  # noqa: F401
    bind,
    child_exit,
    control_socket_disable,
    forwarded_allow_ips,
    forwarder_headers,
    graceful_timeout,
    keepalive,
    on_exit,
    on_starting,
    post_fork,
    post_worker_init,
    pre_fork,
    threads,
    when_ready,
    worker_class,
    worker_connections,
    worker_exit,
    worker_tmp_dir,
    workers,
)
