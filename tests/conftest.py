"""What holds for all tests."""

import os

from hypothesis import settings

# Where a result decides, the same examples every time; at a developer's, new ones.
settings.register_profile("developer", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "developer")
