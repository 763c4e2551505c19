"""Tests against programs of others, which it builds or fetches.

Those are cosign, oras and a registry with the referrers API for artifacts, Tekton's own code and kube-apiserver for
builds, and Keycloak for the console's sign-in.

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
from tests.support.kubernetes import CRDS, KUBE_APISERVER, PEER_TEKTON

_TOOLS: Final = {"cosign": "github.com/sigstore/cosign/v3/cmd/cosign@v3.1.3", "oras": "oras.land/oras/cmd/oras@v1.3.6"}
_REGISTRY: Final = Path(__file__).parent / "registry"
_TEKTON: Final = Path(__file__).parent / "tekton"
_KUBERNETES: Final = Path(__file__).parent / "kubernetes"
_GO_TESTS: Final = tuple(
    f"tests/integration/test_{name}.py" for name in ("cosign", "oras", "triggers", "build_command")
)
_KEYCLOAK: Final = "26.4.7"
_KEYCLOAK_TESTS: Final = ("tests/integration/console/test_keycloak.py",)
_MAVEN_PLUGIN: Final = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1"
#: Built programs, in a folder for each version; `make clean` removes them.
_PROGRAMS: Final = ROOT / ".venv" / "peers"


@click.command()
@click.option("--seconds", type=click.IntRange(min=1), default=3600, show_default=True, help="Bound on building.")
def main(seconds: int) -> None:
    """Builds the tools from the Go module proxy, fetches Keycloak, and runs the tests that need them."""
    limit = time.monotonic() + seconds
    folders: list[Path] = [_PROGRAMS]
    tests: list[str] = []
    if go := shutil.which("go"):
        folders += _build_tools(go, limit)
        tests += _GO_TESTS
    else:
        click.echo(
            "cosign, oras, Tekton, kube-apiserver: skipped; they are built with Go (https://go.dev), which is not there"
        )
    if shutil.which("java") and (maven := shutil.which("mvn")):
        folders.append(_fetch_keycloak(maven, limit))
        tests += _KEYCLOAK_TESTS
    else:
        click.echo("Keycloak: skipped; it needs Java 17, and Maven to fetch it, which are not there")
    if tests:
        environment = {**os.environ, "PATH": ":".join([*map(str, folders), os.environ["PATH"]])}
        command = [sys.executable, "-m", "pytest", "-q", "-n0", *tests]
        sys.exit(subprocess.run(command, cwd=ROOT, env=environment).returncode)


def _build_tools(go: str, limit: float) -> list[Path]:
    """Builds what Go builds, and returns the folders that the programs are in."""
    folders = []
    for program, module in _TOOLS.items():
        folders.append(_PROGRAMS / module.rpartition("/")[2])
        if not (folders[-1] / program).exists():
            click.echo(f"go builds {module}: minutes, the first time")
            _build([go, "install", module], ROOT, folders[-1], limit)
    _build([go, "build", "-o", str(_PROGRAMS / PEER_REGISTRY), "."], _REGISTRY, _PROGRAMS, limit)
    _build_cluster(go, limit)
    return folders


def _build_cluster(go: str, limit: float) -> None:
    """Builds Tekton's code around our manifests, and the API server with Tekton's CRDs beside it."""
    if not (_PROGRAMS / PEER_TEKTON).exists():
        click.echo("go builds Tekton: minutes, the first time")
    _build([go, "build", "-o", str(_PROGRAMS / PEER_TEKTON), "."], _TEKTON, _PROGRAMS, limit)
    if not (_PROGRAMS / CRDS).exists():
        module = [go, "list", "-m", "-f", "{{.Dir}}", "github.com/tektoncd/pipeline"]
        folder = subprocess.run(module, cwd=_TEKTON, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
        (_PROGRAMS / CRDS).mkdir()
        for kind in ("pipeline", "pipelinerun"):
            name = f"300-{kind}.yaml"
            (_PROGRAMS / CRDS / name).write_bytes((Path(folder) / "config" / "300-crds" / name).read_bytes())
    if shutil.which("etcd") is None:
        click.echo("kube-apiserver: skipped; it needs etcd, which is not there: apt-get install etcd-server")
    elif not (_PROGRAMS / KUBE_APISERVER).exists():
        click.echo("go builds kube-apiserver: ten minutes, the first time")
        program = "k8s.io/kubernetes/cmd/kube-apiserver"
        _build([go, "build", "-o", str(_PROGRAMS / KUBE_APISERVER), program], _KUBERNETES, _PROGRAMS, limit)


def _fetch_keycloak(maven: str, limit: float) -> Path:
    """Fetches Keycloak from Maven's repository, and returns the folder that its program is in."""
    folder = _PROGRAMS / f"keycloak-{_KEYCLOAK}" / "bin"
    if not folder.exists():
        click.echo(f"Maven fetches Keycloak {_KEYCLOAK}: 160 MB, the first time")
        artifact = f"-Dartifact=org.keycloak:keycloak-quarkus-dist:{_KEYCLOAK}:zip"
        command = [maven, "-q", "-B", f"{_MAVEN_PLUGIN}:copy", artifact, f"-DoutputDirectory={_PROGRAMS}"]
        _build(command, _REGISTRY, _PROGRAMS, limit)
        archive = _PROGRAMS / f"keycloak-quarkus-dist-{_KEYCLOAK}.zip"
        shutil.unpack_archive(archive, _PROGRAMS)
        archive.unlink()
        (folder / "kc.sh").chmod(0o755)  # a ZIP file's permissions are lost
    return folder


def _build(command: Sequence[str], folder: Path, programs: Path, limit: float) -> None:
    """Run a build, within the time that is left."""
    environment = {**os.environ, "GOBIN": str(programs), "GOFLAGS": "-mod=mod", "CGO_ENABLED": "0"}
    try:
        built = subprocess.run(command, cwd=folder, env=environment, timeout=max(limit - time.monotonic(), 1))
    except subprocess.TimeoutExpired as error:
        raise click.ClickException(f"{' '.join(command[:2])} took too long: name more time with --seconds") from error
    if built.returncode:
        raise click.ClickException(
            f"{Path(command[0]).name} failed: it needs the Go module proxy, or Maven's repository"
        )


if __name__ == "__main__":
    main()
