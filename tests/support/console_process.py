"""The console as users run it: in a process of its own."""

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tests.support.function import ROOT


@contextmanager
def serving_console(environment: Mapping[str, str], *options: str) -> Iterator[str]:
    """Run a console and yield the URL that it listens at, without a slash at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "fleet_fn", "console", "--port", "0", *options],
        cwd=ROOT,
        env=dict(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        found = re.match(r"console: (http://\S+)/ ", line)
        assert found, (line, process.communicate(timeout=10)[1])
        yield found[1]
    finally:
        process.terminate()
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors, errors
