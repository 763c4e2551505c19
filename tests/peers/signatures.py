"""Tests signatures against the real cosign, which it builds, as it does a registry with the referrers API.

python -m tests.peers.signatures [--seconds N]
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

_COSIGN: Final = "v3.1.3"
_REGISTRY: Final = Path(__file__).parent / "registry"
_TESTS: Final = "tests/integration/test_cosign.py"
#: Built programs; `make clean` removes them.
_PROGRAMS: Final = ROOT / ".venv" / "peers" / _COSIGN


@click.command()
@click.option("--seconds", type=click.IntRange(min=1), default=1800, show_default=True, help="Bound on building.")
def main(seconds: int) -> None:
    """Builds cosign and a registry from the Go module proxy, and runs the tests that need them."""
    go = shutil.which("go")
    if go is None:
        click.echo("signatures: skipped; cosign is built with Go (https://go.dev), which is not there")
        return
    _PROGRAMS.mkdir(parents=True, exist_ok=True)
    limit = time.monotonic() + seconds
    if not (_PROGRAMS / "cosign").exists():
        click.echo(f"go builds cosign {_COSIGN}: some minutes, the first time")
        _build([go, "install", f"github.com/sigstore/cosign/v3/cmd/cosign@{_COSIGN}"], ROOT, limit)
    _build([go, "build", "-o", str(_PROGRAMS / PEER_REGISTRY), "."], _REGISTRY, limit)
    environment = {**os.environ, "PATH": f"{_PROGRAMS}:{os.environ['PATH']}"}
    tests = subprocess.run([sys.executable, "-m", "pytest", "-q", "-n0", _TESTS], cwd=ROOT, env=environment)
    sys.exit(tests.returncode)


def _build(command: Sequence[str], folder: Path, limit: float) -> None:
    """Run a build, within the time that is left."""
    environment = {**os.environ, "GOBIN": str(_PROGRAMS), "GOFLAGS": "-mod=mod", "CGO_ENABLED": "0"}
    try:
        built = subprocess.run(command, cwd=folder, env=environment, timeout=max(limit - time.monotonic(), 1))
    except subprocess.TimeoutExpired as error:
        raise click.ClickException(f"{' '.join(command[:2])} took too long: name more time with --seconds") from error
    if built.returncode:
        raise click.ClickException("go could not build it: it needs the Go module proxy")


if __name__ == "__main__":
    main()
