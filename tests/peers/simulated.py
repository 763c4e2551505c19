"""A simulated device, `fleet-fn device`, as a process between sandbox and function."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.peers.cloud import PASSWORD, Cloud
from tests.support.function import ROOT

_PATIENCE_SECONDS: Final = 90.0
#: Pauses of a device are divided by this.
_SPEED: Final = 50


@contextmanager
def device(cloud: Cloud, application: str, name: str, folder: Path, *options: str) -> Iterator["Device"]:
    """Run a device until the block ends; its output is in `folder`."""
    command = [sys.executable, "-m", "fleet_fn", "device", "--url", cloud.url, "--speed", str(_SPEED)]
    command += ["--application", application, "--device", name, *options]
    log = folder / f"{name}.log"
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "DEVICE_PASSWORD": PASSWORD}
    with (
        log.open("ab") as output,
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output) as process,
    ):
        try:
            yield Device(process, log)
        finally:
            process.terminate()


class Device:
    """A device that runs."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self._process = process
        self._log = log

    def wait_until(self, is_so: Callable[[], bool]) -> None:
        """Wait until something is so, while the device runs."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not is_so():
            assert time.monotonic() < deadline, f"this did not come about; the device says:\n{self.said}"
            assert self._process.poll() is None, self.said
            time.sleep(0.1)  # between two looks; the deadline ends it

    def end(self) -> None:
        """Wait until the device ends by itself, as one with `--once` does, told to stay."""
        assert self._process.wait(_PATIENCE_SECONDS) == 0, self.said

    @property
    def said(self) -> str:
        """Its output so far."""
        return self._log.read_text()[-3000:]
