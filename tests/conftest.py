"""What holds for all tests."""

import os
import signal

from hypothesis import settings

# Where a result decides, the same examples every time; at a developer's, new ones.
settings.register_profile("developer", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "developer")

# A shell has what it starts in the background ignore Ctrl-C, and so would whatever the tests start: they end some so.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
