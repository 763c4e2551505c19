"""The Kubernetes API: the Pipeline, and the PipelineRuns of one namespace."""

import json
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, Self

import httpx2
import lightkube
import msgspec
import msgspec.structs
import yaml
from lightkube.config.kubeconfig import DEFAULT_KUBECONFIG, KubeConfig, SingleConfig
from lightkube.config.models import User
from lightkube.core.exceptions import ApiError, ConfigError
from lightkube.generic_resource import create_namespaced_resource
from lightkube.types import PatchType

from fleet_fn.builds.labels import selector
from fleet_fn.builds.pipeline_run import PIPELINE
from fleet_fn.builds.run import Run
from fleet_fn.errors import PermanentError, TransientError, UpstreamError

KUBERNETES: Final = "Kubernetes API"
_PIPELINE_RUN: Final = create_namespaced_resource("tekton.dev", "v1", "PipelineRun", "pipelineruns")
_PIPELINE: Final = create_namespaced_resource("tekton.dev", "v1", "Pipeline", "pipelines")
#: Time for each request, and between two readings of a run that is followed.
_REQUEST_SECONDS: Final = 15.0
_POLL_SECONDS: Final = 2.0
#: Time without an answer after which a run is not followed any longer.
_PATIENCE_SECONDS: Final = 120.0
_PAGE_OBJECTS: Final = 100
_INSTALL_TEKTON: Final = (
    "Tekton Pipelines (tekton.dev/v1) is not installed in this cluster: see https://tekton.dev/docs/installation/"
)


class Cluster:
    """The builds in a namespace of a cluster.

    Each method raises PermanentError if the API refuses the request, and TransientError if it is unavailable.
    """

    def __init__(
        self,
        config: SingleConfig,
        namespace: str | None,
        context: str | None = None,
        *,
        pause: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create a client.

        Args:
            config: where the cluster is, and who asks.
            namespace: None is the configuration's own.
            context: the configuration's context, if it is not the current one; only for messages.
            pause: sleeps for some seconds.
            clock: tells the time, in seconds.

        """
        self.server = config.cluster.server or ""
        self.namespace = namespace or config.namespace
        #: The option that names the context again, for this command and for kubectl.
        self.context_option = f" --context {shlex.quote(context)}" if context else ""
        self._pause = pause
        self._clock = clock
        with self._translated("connecting"):
            timeout = httpx2.Timeout(_REQUEST_SECONDS)
            self._client = lightkube.Client(config, self.namespace, timeout, field_manager="fleet-fn")

    @classmethod
    def open(cls, namespace: str | None, context: str | None) -> Self:
        """Return the builds of the configured cluster.

        KUBECONFIG names its configuration, else a pod's account is used, else ~/.kube/config.

        Raises:
            PermanentError: no cluster is configured, or its configuration is malformed.

        """
        return cls(_find_config(context), namespace, context)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def pipeline_params(self) -> frozenset[str]:
        """Return the names of the parameters that the Pipeline in the cluster takes."""
        with self._translated(f"the Pipeline {PIPELINE}"):
            found = self._client.get(_PIPELINE, PIPELINE)
        spec = found.get("spec")
        params = spec.get("params") if isinstance(spec, dict) else None
        return frozenset(param["name"] for param in params or () if isinstance(param, dict) and "name" in param)

    def create(self, pipeline_run: Mapping[str, Any]) -> Run:
        """Create a run."""
        with self._translated("creating a PipelineRun"):
            return Run.read(_plain(self._client.create(_PIPELINE_RUN.from_dict(dict(pipeline_run)))))

    def read(self, name: str) -> Run:
        """Return a run."""
        with self._translated(f"the PipelineRun {name}"):
            return Run.read(_plain(self._client.get(_PIPELINE_RUN, name)))

    def runs(self, application: str | None, device: str | None) -> list[Run]:
        """Return the runs of an application, or of a device, the newest first.

        None stands for any; then runs that were created by hand are there, too.
        """
        with self._translated("listing PipelineRuns"):
            listed = self._client.list(
                _PIPELINE_RUN, labels=dict(selector(application, device)), chunk_size=_PAGE_OBJECTS
            )
            found = [Run.read(_plain(each)) for each in listed]
        chosen = [run for run in found if application in (None, run.application) and device in (None, run.device)]
        return sorted(chosen, key=lambda run: (run.created is not None, run.created, run.name), reverse=True)

    def follow(self, name: str, fell_silent: Callable[[TransientError], object]) -> Iterator[Run]:
        """Yield a run again and again until it is over.

        The API is asked every two seconds, and not watched: a watch that a proxy drops looks like one without news.
        `fell_silent` is called with the first failure of several in a row.
        """
        answered, is_silent = self._clock(), False
        while True:
            try:
                run = self.read(name)
            except TransientError as error:
                if self._clock() - answered > _PATIENCE_SECONDS:
                    raise
                if not is_silent:
                    fell_silent(error)
                is_silent = True
            else:
                answered, is_silent = self._clock(), False
                yield run
                if run.state.is_over:
                    return
            self._pause(_POLL_SECONDS)

    def cancel(self, name: str) -> Run:
        """Let Tekton cancel a run."""
        with self._translated(f"the PipelineRun {name}"):
            change = {"spec": {"status": "Cancelled"}}
            return Run.read(_plain(self._client.patch(_PIPELINE_RUN, name, change, patch_type=PatchType.MERGE)))

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        try:
            yield
        except httpx2.HTTPStatusError as error:
            raise self._refusal(error, what) from error
        except httpx2.TimeoutException as error:
            raise TransientError(f"{KUBERNETES}: {self.server} does not answer") from error
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise TransientError(f"{KUBERNETES}: {self.server}: {error}") from error
        except (ConfigError, OSError, json.JSONDecodeError, msgspec.MsgspecError, KeyError) as error:
            raise PermanentError(f"{KUBERNETES}: {what}: {_describe(error)}") from error

    def _refusal(self, error: httpx2.HTTPStatusError, what: str) -> UpstreamError:
        """Return the error for a status, with what to do about it."""
        is_api = isinstance(error, ApiError)
        code = (error.status.code or 0) if isinstance(error, ApiError) else error.response.status_code
        message = str(error.status.message or "") if isinstance(error, ApiError) else ""
        if code == HTTPStatus.NOT_FOUND:
            return PermanentError(f"{KUBERNETES}: {self._absence(message, what) if is_api else _INSTALL_TEKTON}")
        if code == HTTPStatus.UNAUTHORIZED:
            return PermanentError(
                f"{KUBERNETES}: {self.server} refuses the credentials (401): log in again, or check KUBECONFIG"
            )
        said = f": {message}" if message else ""
        if code == HTTPStatus.FORBIDDEN:
            return PermanentError(
                f"{KUBERNETES}: no right in the namespace {self.namespace} (403){said}; ask for a Role like that in "
                "docs/build.md, or name another --namespace"
            )
        if code == HTTPStatus.TOO_MANY_REQUESTS or code >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return TransientError(f"{KUBERNETES}: answered {code} for {what}{said}")
        return PermanentError(f"{KUBERNETES}: answered {code} for {what}{said}")

    def _absence(self, message: str, what: str) -> str:
        if message.startswith("namespaces "):
            return (
                f"no namespace {self.namespace}: kubectl create namespace {self.namespace}{self.context_option}, or "
                "name another"
            )
        if PIPELINE in what:
            return (
                f"no Pipeline {PIPELINE} in the namespace {self.namespace}: kubectl apply -n {self.namespace}"
                f"{self.context_option} -k knative/tekton, or name another --namespace"
            )
        if "could not find the requested resource" in message:
            return _INSTALL_TEKTON
        return f"{what} is not in the namespace {self.namespace}"


def _find_config(context: str | None) -> SingleConfig:
    named = os.environ.get("KUBECONFIG")
    try:
        if named and os.pathsep in named:
            raise PermanentError(f"{KUBERNETES}: KUBECONFIG names several files ({named}): name one of them")
        # As kubectl, and unlike the library: a file that is named wins over the account of a pod.
        config = KubeConfig.from_file(named) if named else KubeConfig.from_env()
        found = config.get(context)
    except ConfigError as error:
        problem = str(error)
        if "not found" in problem and not named and "Context" not in problem:
            problem = f"no cluster is configured: neither KUBECONFIG nor {DEFAULT_KUBECONFIG}, and this is no pod"
        raise PermanentError(f"{KUBERNETES}: {problem}") from error
    except (OSError, AttributeError, KeyError, TypeError, yaml.YAMLError, msgspec.MsgspecError) as error:
        place = named or str(Path(DEFAULT_KUBECONFIG))
        raise PermanentError(f"{KUBERNETES}: {place} is no kubeconfig: {_describe(error)}") from error
    if found is None or not found.cluster.server:
        raise PermanentError(f"{KUBERNETES}: the kubeconfig names no server")
    return found._replace(user=_usable(found.user or User()))


def _usable(user: User) -> User:
    """Return a user whose program for credentials the library runs.

    The library refuses the protocol's v1, but reads only the token, which v1 and v1beta1 have in the same place.
    """
    if user.exec and user.exec.apiVersion == "client.authentication.k8s.io/v1":
        program = msgspec.structs.replace(user.exec, apiVersion="client.authentication.k8s.io/v1beta1")
        return msgspec.structs.replace(user, exec=program)
    return user


def _describe(error: Exception) -> str:
    """Return an error's text; a key that is missing has only its name."""
    if isinstance(error, KeyError):
        return f"{error} is missing"
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)
    return " ".join(str(error).split())  # YAML's are of several lines


def _plain(found: Any) -> dict[str, Any]:
    """Return an object of the library as JSON has it."""
    plain: dict[str, Any] = found.to_dict()
    return plain
