"""What reading one small input may cost."""

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

#: Of one thread, instrumented or not.
SECONDS = 1.0
MEBIBYTES = 100


@contextmanager
def bounded() -> Iterator[None]:
    """Fails where what is done within costs more time, or a higher peak of memory, than a few kilobytes should."""
    peak, started = _peak(), time.thread_time()
    yield
    assert time.thread_time() - started < SECONDS, "too much time for one input"
    assert _peak() - peak < MEBIBYTES * 1024, "too much memory for one input"


def _peak() -> int:
    """KiB that this process has had in memory at once."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
