"""Gets programs of others: from apt-get, the Go module proxy, and Maven Central."""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from tests.support.cosign import PEER_REGISTRY
from tests.support.function import ROOT
from tests.support.kubernetes import CRDS, KUBE_APISERVER, PEER_TEKTON

_REGISTRY: Final = Path(__file__).parent / "registry"
_HAWKBIT: Final = Path(__file__).parent / "hawkbit"
_TEKTON: Final = Path(__file__).parent / "tekton"
_KUBERNETES: Final = Path(__file__).parent / "kubernetes"
_MAVEN_PLUGIN: Final = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1"
#: Built programs, in a folder for each version; `make clean` removes them.
_PROGRAMS: Final = ROOT / ".venv" / "peers"
_OPENED: Final = "--add-opens java.base/java.lang=ALL-UNNAMED"


class MissingError(Exception):
    """A peer cannot be had here; the message says why."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A peer that is there."""

    version: str
    #: Where its programs are.
    folders: tuple[Path, ...] = ()


class Workshop:
    """Gets peers, within a number of seconds for all of them."""

    def __init__(self, seconds: float) -> None:
        self._limit = time.monotonic() + seconds

    def installed(self, program: str, package: str) -> Peer:
        """Return a program of Debian's, by the version of its package."""
        if shutil.which(program) is None:
            raise MissingError(f"apt-get install {package}")
        asked = subprocess.run(
            ["dpkg-query", "--show", "--showformat", "${Version}", package], capture_output=True, text=True, check=False
        )
        # Without Debian's own part, and without an epoch.
        upstream = re.match(r"(?:\d+:)?([\w.]+)", asked.stdout)
        return Peer(upstream[1] if asked.returncode == 0 and upstream else "not Debian's")

    def go(self, program: str, module: str) -> Peer:
        """Return a program that Go builds from its module proxy."""
        version = module.rpartition("@")[2]
        folder = _PROGRAMS / f"{program}@{version}"
        if not (folder / program).exists():
            click.echo(f"go builds {module}: minutes, the first time")
            self._run([self._need("go", "Go: https://go.dev"), "install", module], ROOT, {"GOBIN": str(folder)})
        return Peer(version, (folder,))

    def registry(self) -> Peer:
        """Return the registry with the referrers API, which Go builds around a library."""
        go = self._need("go", "Go: https://go.dev")
        self._run([go, "build", "-o", str(_PROGRAMS / PEER_REGISTRY), "."], _REGISTRY)
        return Peer(_required(_REGISTRY, "ociregistry").rpartition("-")[2], (_PROGRAMS,))

    def tekton(self) -> Peer:
        """Return Tekton's own code around our manifests."""
        go = self._need("go", "Go: https://go.dev")
        if not (_PROGRAMS / PEER_TEKTON).exists():
            click.echo("go builds Tekton: minutes, the first time")
        self._run([go, "build", "-o", str(_PROGRAMS / PEER_TEKTON), "."], _TEKTON)
        return Peer(_required(_TEKTON, "tektoncd/triggers"), (_PROGRAMS,))

    def kube_apiserver(self) -> Peer:
        """Return Kubernetes' API server, with Tekton's CRDs beside it."""
        go = self._need("go", "Go: https://go.dev")
        self._need("etcd", "etcd: apt-get install etcd-server")
        if not (_PROGRAMS / CRDS).exists():
            module = [go, "list", "-m", "-f", "{{.Dir}}", "github.com/tektoncd/pipeline"]
            folder = Path(self._run(module, _TEKTON).strip())
            (_PROGRAMS / CRDS).mkdir(parents=True)
            for name in ("300-pipeline.yaml", "300-pipelinerun.yaml"):
                (_PROGRAMS / CRDS / name).write_bytes((folder / "config" / "300-crds" / name).read_bytes())
        if not (_PROGRAMS / KUBE_APISERVER).exists():
            click.echo("go builds kube-apiserver: ten minutes, the first time")
            program = "k8s.io/kubernetes/cmd/kube-apiserver"
            self._run([go, "build", "-o", str(_PROGRAMS / KUBE_APISERVER), program], _KUBERNETES)
        return Peer(_required(_KUBERNETES, "k8s.io/kubernetes"), (_PROGRAMS,))

    def keycloak(self, version: str) -> Peer:
        """Return Keycloak, whose distribution is at Maven Central."""
        folder = _PROGRAMS / f"keycloak-{version}" / "bin"
        if not folder.exists():
            click.echo(f"Maven fetches Keycloak {version}: 160 MB, the first time")
            artifact = f"-Dartifact=org.keycloak:keycloak-quarkus-dist:{version}:zip"
            self._maven(f"{_MAVEN_PLUGIN}:copy", artifact, f"-DoutputDirectory={_PROGRAMS}", folder=_REGISTRY)
            archive = _PROGRAMS / f"keycloak-quarkus-dist-{version}.zip"
            shutil.unpack_archive(archive, _PROGRAMS)
            archive.unlink()
            (folder / "kc.sh").chmod(0o755)  # a ZIP file's permissions are lost
        self._need("java", "Java 17")
        return Peer(version, (folder,))

    def hawkbit(self, version: str) -> Peer:
        """Return hawkBit as Maven makes it of its parts, or the one that `HAWKBIT_JAR` names."""
        java = self._need("java", "Java 17")
        if jar := os.environ.get("HAWKBIT_JAR"):
            path = Path(jar).absolute()
            if not path.is_file():
                raise click.ClickException(f"HAWKBIT_JAR: there is no file {jar}")
            version = path.stem.removeprefix("hawkbit-update-server-")
        else:
            path = _PROGRAMS / f"hawkbit-{version}" / "hawkbit.jar"
            if not path.exists():
                click.echo(f"Maven makes hawkBit {version}: a minute, the first time")
                self._make_hawkbit(path)
        folder = _PROGRAMS / f"hawkbit-{version}" / "bin"
        folder.mkdir(parents=True, exist_ok=True)
        program = folder / "hawkbit"
        program.write_text(f'#!/bin/sh\nexec {java} -Xmx512m {_OPENED} -jar "{path}" "$@"\n')
        program.chmod(0o755)
        return Peer(version, (folder,))

    def _make_hawkbit(self, jar: Path) -> None:
        """Build it outside the source tree, and put it at its place once it is whole."""
        build = _PROGRAMS / "hawkbit-build"
        shutil.rmtree(build, ignore_errors=True)
        shutil.copytree(_HAWKBIT, build)
        self._maven("package", folder=build)
        jar.parent.mkdir(parents=True, exist_ok=True)
        (build / "target" / "hawkbit.jar").replace(jar)
        shutil.rmtree(build)

    def _maven(self, *arguments: str, folder: Path) -> None:
        _PROGRAMS.mkdir(parents=True, exist_ok=True)
        self._run([self._need("mvn", "Maven"), "-q", "-B", "-ntp", *arguments], folder)

    def _need(self, program: str, what: str) -> str:
        if (found := shutil.which(program)) is None:
            raise MissingError(f"it needs {what}")
        return found

    def _run(self, command: Sequence[str], folder: Path, more: dict[str, str] | None = None) -> str:
        """Run a build, within the time that is left; return its output."""
        environment = {**os.environ, "GOFLAGS": "-mod=mod", "CGO_ENABLED": "0", **(more or {})}
        name = Path(command[0]).name
        try:
            built = subprocess.run(
                command,
                cwd=folder,
                env=environment,
                timeout=max(self._limit - time.monotonic(), 1),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise MissingError(f"{name} took too long: name more time with --build-seconds") from None
        if built.returncode:
            click.echo(built.stdout[-2000:])
            raise MissingError(f"{name} could not build it: see above")
        return built.stdout


def _required(folder: Path, module: str) -> str:
    """Return the version of a module that a folder's `go.mod` requires."""
    found = re.search(rf"{re.escape(module)} (v\S+)", (folder / "go.mod").read_text())
    assert found, module
    return found[1]
