"""A console in gunicorn, whose clock may run fast. Run as a module, with a listening socket's descriptor and the pace.

The socket is bound already, so that CONSOLE_URL can name its port.
"""

import os
import socket
import sys
import time
import warnings

from fleet_fn.console.serve import serve_console
from fleet_fn.console.settings import ConsoleSettings


def _main(descriptor: int, pace: float) -> None:
    listener = socket.socket(fileno=descriptor)
    listener.listen(128)
    # gunicorn leaves its first object for the descriptor to the garbage collector.
    warnings.simplefilter("ignore", ResourceWarning)
    settings = ConsoleSettings.from_environment(os.environ, "127.0.0.1")
    serve_console(settings, listener.detach(), lambda: None, lambda: time.monotonic() * pace)


if __name__ == "__main__":
    _main(int(sys.argv[1]), float(sys.argv[2]))
