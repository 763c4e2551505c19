"""The PipelineRun that builds a firmware.

It is data for the Pipeline of `knative/tekton`; no shell reads a word of a description.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from fleet_fn.builds.description import Build
from fleet_fn.builds.labels import annotations_of, labels_of

PIPELINE: Final = "oci-firmware"
#: Runs the builder's own build.sh in the project's folder, with the build's arguments. No word of it is foreign.
BUILD_COMMAND: Final = 'builder=$PWD/build.sh && cd "$PROJECT_DIR" && exec "$builder" "$@"'
#: Longest time of a build that names none.
TIMEOUT: Final = "1h0m0s"
#: Parameters of the Pipeline that a build's description says nothing of.
FREE_PARAMS: Final = (
    "BUILD_COMMAND",
    "GIT_IMAGE",
    "HARDWARE",
    "LATEST",
    "PAD_TO",
    "PUBLISHER_IMAGE",
    "REQUIRES",
    "SBOM_PATH",
)
#: The group that all pods of a run share, so that each user may write to the volume.
_GROUP: Final = 65532


@dataclass(frozen=True, slots=True)
class Secrets:
    """Names of Secrets in the run's namespace; None for one that is not used."""

    #: What `kubectl create secret docker-registry` makes.
    registry: str | None = None
    #: Of the type kubernetes.io/basic-auth.
    git: str | None = None
    #: A private key and known_hosts.
    ssh: str | None = None
    #: key.pem, and perhaps password.
    signing: str | None = None


@dataclass(frozen=True, slots=True)
class Order:
    """A build that is to be run: what is built, for whom, and where it goes."""

    application: str
    #: None builds the application's firmware.
    device: str | None
    build: Build
    #: Host and perhaps a path, and the repository's last name.
    registry: str
    image: str
    #: None takes the git tag.
    version: str | None = None
    insecure: bool = False
    namespace: str | None = None
    service_account: str | None = None
    secrets: Secrets = Secrets()
    storage: str = "2Gi"
    #: Further parameters of the Pipeline, of `FREE_PARAMS`.
    params: Mapping[str, str] = field(default_factory=dict)


def make_pipeline_run(order: Order) -> dict[str, Any]:
    """Return the PipelineRun of an order; Kubernetes completes its name."""
    template: dict[str, Any] = {
        "podTemplate": {
            "automountServiceAccountToken": False,
            "securityContext": {"fsGroup": _GROUP},
        }
    }
    if order.service_account:
        template = {"serviceAccountName": order.service_account, **template}
    return {
        "apiVersion": "tekton.dev/v1",
        "kind": "PipelineRun",
        "metadata": {
            "generateName": "firmware-",
            **({"namespace": order.namespace} if order.namespace else {}),
            "labels": labels_of(order.application, order.device),
            "annotations": annotations_of(order.application, order.device),
        },
        "spec": {
            "pipelineRef": {"name": PIPELINE},
            "params": [{"name": name, "value": value} for name, value in _params(order).items()],
            "workspaces": _workspaces(order),
            "taskRunTemplate": template,
            "timeouts": {"pipeline": order.build.timeout or TIMEOUT},
        },
    }


def _params(order: Order) -> dict[str, str | list[str]]:
    build = order.build
    given = {
        "GIT_REPO": build.repository,
        "GIT_REVISION": build.revision,
        "VERSION": order.version,
        "PROJECT_PATH": build.project,
        "BUILDER_IMAGE": build.builder,
        "ARTIFACT_PATH": build.artifact,
        "REGISTRY": order.registry,
        "IMAGE": order.image,
        "INSECURE": "true" if order.insecure else None,
        "BUILD_COMMAND": BUILD_COMMAND,
        **order.params,
    }
    params: dict[str, str | list[str]] = {name: value for name, value in given.items() if value is not None}
    if build.arguments:
        params["ARGS"] = list(build.arguments)
    if build.environment:
        params["ENV"] = [f"{name}={value}" for name, value in build.environment.items()]
    return params


def _workspaces(order: Order) -> list[dict[str, Any]]:
    volume = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": order.storage}}}
    workspaces: list[dict[str, Any]] = [{"name": "build", "volumeClaimTemplate": {"spec": volume}}]
    secrets = order.secrets
    if secrets.registry:
        file = {"key": ".dockerconfigjson", "path": "config.json"}
        workspaces.append({"name": "dockerconfig", "secret": {"secretName": secrets.registry, "items": [file]}})
    named = {"basic-auth": secrets.git, "ssh-directory": secrets.ssh, "signing-key": secrets.signing}
    return workspaces + [{"name": name, "secret": {"secretName": secret}} for name, secret in named.items() if secret]
