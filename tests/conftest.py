"""What holds for all tests."""

import gc
import os
import signal

from hypothesis import HealthCheck, settings

# Where a result decides, the same examples every time; at a developer's, new ones.
# How long an example takes to draw says how busy the machine is.
common = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("developer", common)
settings.register_profile("ci", common, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "developer")

# A shell has what it starts in the background ignore Ctrl-C, and so would whatever the tests start: they end some so.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests stay once they are collected. To look for garbage among thousands of them takes longer than most of them do.
gc.disable()


def pytest_collection_finish() -> None:
    """Have garbage looked for in what tests leave, and not in the tests."""
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_xdist_auto_num_workers() -> int:
    """Start two workers for each core: most of the time, a worker waits for processes, sockets and deadlines."""
    return 2 * (os.cpu_count() or 1)
