"""The peers: what gets each, and what drives it."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NoReturn

from tests.peers.workshop import MissingError, Peer, Workshop
from tests.support.cosign import PEER_REGISTRY

#: Set for the tests below tests/integration/peers.
MARK: Final = "FLEET_PEERS"
_UPDATES: Final = "tests/integration/peers"
_REGISTRIES: Final = f"{_UPDATES}/test_registries.py"


@dataclass(frozen=True, slots=True)
class Entry:
    """A peer of the table."""

    name: str
    #: What is driven, for the table.
    driven: str
    get: Callable[[Workshop], Peer]
    #: What runs, after Python: a module or tests.
    command: tuple[str, ...]
    seconds: float = 600
    #: Other peers that it needs.
    needs: tuple[str, ...] = ()

    @property
    def arguments(self) -> list[str]:
        """The process that drives it."""
        return [sys.executable, *self.command]

    @property
    def is_tests(self) -> bool:
        """Whether pytest runs it, whose report says what was skipped."""
        return "pytest" in self.command


def _tests(*named: str, chosen: str = "") -> tuple[str, ...]:
    options = ("-k", chosen) if chosen else ()
    return ("-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", *options, *named)


def _refused(reason: str) -> Callable[[Workshop], Peer]:
    def get(_: Workshop) -> NoReturn:
        raise MissingError(reason)

    return get


def _rust(_: Workshop) -> Peer:
    return Peer("0.12.0")


PEERS: Final = (
    Entry(
        "mosquitto",
        "updates, MQTT 5 and 3.1.1",
        lambda workshop: workshop.installed("mosquitto", "mosquitto"),
        _tests(f"{_UPDATES}/test_mosquitto.py"),
    ),
    Entry(
        "mqtt-integration",
        "",
        _refused("Drogue Cloud's services are at no registry; docs/peers.md tells of a run by hand"),
        (),
    ),
    Entry(
        "docker-registry",
        "an update",
        lambda workshop: workshop.installed("docker-registry", "docker-registry"),
        _tests(_REGISTRIES, chosen="published and docker"),
    ),
    Entry(
        "ociregistry",
        "an update, with referrers",
        Workshop.registry,
        _tests(_REGISTRIES, chosen=f"published and {PEER_REGISTRY}"),
    ),
    Entry(
        "zot",
        "",
        _refused("Go's module proxy answers 403 for zotregistry.dev/zot and its older names"),
        (),
    ),
    Entry(
        "cosign",
        "an update, signatures",
        lambda workshop: workshop.go("cosign", "github.com/sigstore/cosign/v3/cmd/cosign@v3.1.3"),
        _tests(_REGISTRIES, "tests/integration/test_cosign.py", chosen="cosign"),
        needs=("ociregistry",),
    ),
    Entry(
        "oras",
        "an update, attachments",
        lambda workshop: workshop.go("oras", "oras.land/oras/cmd/oras@v1.3.6"),
        _tests(_REGISTRIES, "tests/integration/test_oras.py", chosen="oras"),
        needs=("ociregistry",),
    ),
    Entry(
        "skopeo",
        "an update from a copy",
        lambda workshop: workshop.installed("skopeo", "skopeo"),
        _tests(_REGISTRIES, chosen="skopeo"),
        needs=("ociregistry",),
    ),
    Entry(
        "hawkBit",
        "updates, failure, window",
        lambda workshop: workshop.hawkbit("0.3.0M7"),
        _tests(f"{_UPDATES}/test_hawkbit.py"),
    ),
    Entry(
        "Tekton",
        "manifests and webhooks",
        Workshop.tekton,
        _tests("tests/integration/test_triggers.py"),
    ),
    Entry(
        "kube-apiserver",
        "builds: create, list, follow",
        Workshop.kube_apiserver,
        _tests("tests/integration/test_build_command.py"),
    ),
    Entry(
        "Keycloak",
        "sign-in to the console",
        lambda workshop: workshop.keycloak("26.4.7"),
        _tests("tests/integration/console/browser/test_keycloak.py"),
    ),
    Entry(
        "embedded-update",
        "1,600 updates, Rust devices",
        _rust,
        ("-m", "tests.peers", "device"),
        seconds=1800,
    ),
)
