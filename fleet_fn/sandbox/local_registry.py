"""A temporary OCI registry on this machine.

It is CNCF's distribution, from Debian's package.
"""

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from fleet_fn.errors import PermanentError

PROGRAM: Final = "docker-registry"
#: How long the registry may take to start.
_START_SECONDS: Final = 30.0
_LISTENING: Final = re.compile(rb"listening on 127\.0\.0\.1:([0-9]+)")


@contextmanager
def local_registry(folder: Path, settings: Mapping[str, Mapping[str, Any]] | None = None) -> Iterator[str]:
    """Run a registry while the context lasts; yield its address `127.0.0.1:PORT`.

    Args:
        folder: takes its configuration and its log.
        settings: sections of its configuration (https://distribution.github.io/distribution/about/configuration/)
            that replace or complete ours. Without them, the registry keeps all in memory, and needs no credentials.

    Raises:
        PermanentError: the registry is not installed, or does not start.

    """
    program = shutil.which(PROGRAM)
    if program is None:
        raise PermanentError(f"{PROGRAM} is not installed: apt-get install {PROGRAM}, on Debian and Ubuntu")
    sections = {"storage": {"inmemory": {}, "delete": {"enabled": True}}, **(settings or {})}
    sections["http"] = {"addr": "127.0.0.1:0", **sections.get("http", {})}
    configuration, log = folder / "registry.yml", folder / "registry.log"
    configuration.write_text(json.dumps({"version": "0.1", **sections}))  # JSON is YAML too
    # Variables REGISTRY_… of the environment would change the configuration.
    environment = {"PATH": os.environ.get("PATH", os.defpath), "OTEL_TRACES_EXPORTER": "none"}
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - an installed program, and arguments of ours
            [program, "serve", str(configuration)],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        try:
            yield f"127.0.0.1:{_port(process, log)}"
        finally:
            process.terminate()
            process.wait()


def _port(process: "subprocess.Popen[bytes]", log: Path) -> int:
    """Return the port from the registry's log.

    The registry chooses the port itself: no other is sure to be free.
    """
    limit = time.monotonic() + _START_SECONDS
    while time.monotonic() < limit and process.poll() is None:
        if listening := _LISTENING.search(log.read_bytes()):
            return int(listening[1])
        time.sleep(0.02)
    raise PermanentError(f"{PROGRAM} did not start: {log.read_text(errors='replace')[-1000:]}")
