"""Tests artifacts against the real cosign and oras, which it builds, and a registry with the referrers API.

python -m tests.peers.tools [--seconds N]
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click

from tests.support.cosign import PEER_REGISTRY
from tests.support.function import ROOT

_TOOLS: Final = {"cosign": "github.com/sigstore/cosign/v3/cmd/cosign@v3.1.3", "oras": "oras.land/oras/cmd/oras@v1.3.6"}
_REGISTRY: Final = Path(__file__).parent / "registry"
_TESTS: Final = ("tests/integration/test_cosign.py", "tests/integration/test_oras.py")
#: Built programs, in a folder for each version; `make clean` removes them.
_PROGRAMS: Final = ROOT / ".venv" / "peers"


@click.command()
@click.option("--seconds", type=click.IntRange(min=1), default=1800, show_default=True, help="Bound on building.")
def main(seconds: int) -> None:
    """Builds the tools from the Go module proxy, and runs the tests that need them."""
    go = shutil.which("go")
    if go is None:
        click.echo("cosign and oras: skipped; they are built with Go (https://go.dev), which is not there")
        return
    limit = time.monotonic() + seconds
    folders = [_PROGRAMS]
    for program, module in _TOOLS.items():
        folders.append(_PROGRAMS / module.rpartition("/")[2])
        if not (folders[-1] / program).exists():
            click.echo(f"go builds {module}: minutes, the first time")
            _build([go, "install", module], ROOT, folders[-1], limit)
    _build([go, "build", "-o", str(_PROGRAMS / PEER_REGISTRY), "."], _REGISTRY, _PROGRAMS, limit)
    environment = {**os.environ, "PATH": ":".join([*map(str, folders), os.environ["PATH"]])}
    tests = subprocess.run([sys.executable, "-m", "pytest", "-q", "-n0", *_TESTS], cwd=ROOT, env=environment)
    sys.exit(tests.returncode)


def _build(command: Sequence[str], folder: Path, programs: Path, limit: float) -> None:
    """Run a build, within the time that is left."""
    environment = {**os.environ, "GOBIN": str(programs), "GOFLAGS": "-mod=mod", "CGO_ENABLED": "0"}
    try:
        built = subprocess.run(command, cwd=folder, env=environment, timeout=max(limit - time.monotonic(), 1))
    except subprocess.TimeoutExpired as error:
        raise click.ClickException(f"{' '.join(command[:2])} took too long: name more time with --seconds") from error
    if built.returncode:
        raise click.ClickException("go could not build it: it needs the Go module proxy")


if __name__ == "__main__":
    main()
