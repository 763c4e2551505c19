"""The Kubernetes API with Tekton's objects: a strict fake, and the real API server where `make peers` has built it."""

import base64
import contextlib
import itertools
import json
import re
import secrets
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import parse_qs, unquote, urlsplit

import httpx2
import pytest
import trustme
import yaml
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from tests.support.http import Request, Response, Server

#: Programs of `make peers`, and the folder beside them with Tekton's CRDs.
KUBE_APISERVER: Final = "kube-apiserver"
CRDS: Final = "tekton-crds"
#: Tekton's code around our manifests; see `tests/peers/tekton`.
PEER_TEKTON: Final = "peer-tekton"
TEKTON: Final = "/apis/tekton.dev/v1"
_START_SECONDS: Final = 90


class Api(Protocol):
    """What tests do with either."""

    def kubeconfig(self, path: Path, *, user: str = "admin", namespace: str | None = None) -> Path:
        """Writes a kubeconfig for a user, `admin` or `nobody`."""

    def request(self, method: str, path: str, body: object = None, content_type: str = "application/json") -> Any:
        """Does something as an admin; returns the answer's JSON."""


def put_pipeline(api: Api, namespace: str, pipeline: Mapping[str, Any]) -> None:
    api.request("POST", f"{TEKTON}/namespaces/{namespace}/pipelines", pipeline)


def put_namespace(api: Api, name: str) -> None:
    api.request("POST", "/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})


def runs(api: Api, namespace: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = api.request("GET", f"{TEKTON}/namespaces/{namespace}/pipelineruns")["items"]
    return items


def set_status(api: Api, namespace: str, name: str, status: Mapping[str, Any]) -> None:
    """Stands for Tekton's controller."""
    path = f"{TEKTON}/namespaces/{namespace}/pipelineruns/{name}/status"
    api.request("PATCH", path, {"status": status}, "application/merge-patch+json")


def condition(status: str, reason: str, message: str = "", **fields: Any) -> dict[str, Any]:
    """The status of a run."""
    found = {"type": "Succeeded", "status": status, "reason": reason, "message": message}
    return {"conditions": [found | {"lastTransitionTime": "2026-11-29T12:00:00Z"}], **fields}


def children(*tasks: str) -> list[dict[str, str]]:
    """The child references of a run whose Tasks began."""
    return [
        {"apiVersion": "tekton.dev/v1", "kind": "TaskRun", "name": f"x-{task}", "pipelineTaskName": task}
        for task in tasks
    ]


def _write_kubeconfig(path: Path, cluster: Mapping[str, str], token: str, namespace: str | None) -> Path:
    context = {"cluster": "c", "user": "u", **({"namespace": namespace} if namespace else {})}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [{"name": "c", "cluster": dict(cluster)}],
        "users": [{"name": "u", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": context}],
    }
    path.write_text(yaml.safe_dump(config))
    return path


# --- The fake ---------------------------------------------------------------------------------------------------------


class FakeApi:
    """The API as far as builds use it: statuses, messages and pages are those of Kubernetes 1.34.

    Anything else that a client asks for is 404, and fails the test at the end.
    """

    def __init__(self, *, has_tekton: bool = True, tls: ssl.SSLContext | None = None) -> None:
        self.tokens = {"admin": secrets.token_hex(8), "nobody": secrets.token_hex(8)}
        self.has_tekton = has_tekton
        self.namespaces = {"default"}
        self.objects: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.unexpected: list[str] = []
        self._versions = itertools.count(1)
        self._lock = threading.Lock()
        self.server = Server(self._answer, tls)
        self._client = httpx2.Client(verify=False)  # by loopback, and this process serves

    def close(self) -> None:
        self._client.close()

    def kubeconfig(self, path: Path, *, user: str = "admin", namespace: str | None = None) -> Path:
        return _write_kubeconfig(path, {"server": self.server.url}, self.tokens.get(user, user), namespace)

    def request(self, method: str, path: str, body: object = None, content_type: str = "application/json") -> Any:
        answer = self._client.request(
            method,
            self.server.url + path,
            content=None if body is None else json.dumps(body),
            headers={"Authorization": f"Bearer {self.tokens['admin']}", "Content-Type": content_type},
        )
        assert answer.is_success, answer.text
        return answer.json()

    def _answer(self, request: Request) -> Response:
        with self._lock:
            status, found = self._find(request)
        if found is None:
            return Response(status, b"404 page not found\n", {"Content-Type": "text/plain; charset=utf-8"})
        return Response(status, json.dumps(found).encode(), {"Content-Type": "application/json"})

    def _find(self, request: Request) -> tuple[int, dict[str, Any] | None]:
        url = urlsplit(request.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        users = {f"Bearer {token}": user for user, token in self.tokens.items()}
        user = users.get(request.headers.get("Authorization", ""))
        if user is None:
            return _status(401, "Unauthorized", "Unauthorized")
        if url.path == "/api/v1/namespaces" and request.method == "POST":
            self.namespaces.add(json.loads(request.body)["metadata"]["name"])
            return 201, json.loads(request.body)
        match = re.fullmatch(rf"{TEKTON}/namespaces/([^/]+)/(pipelineruns|pipelines)(?:/([^/]+))?(/status)?", url.path)
        if not match:
            self.unexpected.append(f"{request.method} {request.path}")
        if not match or not self.has_tekton:
            return 404, None
        namespace, kind, name = match[1], match[2], unquote(match[3] or "")
        if user != "admin":
            verb = {"GET": "get" if name else "list", "POST": "create", "PATCH": "patch"}[request.method]
            named = f' "{name}"' if name else ""
            said = (
                f'{kind}.tekton.dev{named} is forbidden: User "{user}" cannot {verb} resource "{kind}" in API group '
                f'"tekton.dev" in the namespace "{namespace}"'
            )
            return _status(403, "Forbidden", said)
        if name:
            return self._one(request, (namespace, kind, name))
        return self._many(request, namespace, kind, query)

    def _one(self, request: Request, key: tuple[str, str, str]) -> tuple[int, dict[str, Any]]:
        found = self.objects.get(key)
        if found is None:
            return _status(404, "NotFound", f'{key[1]}.tekton.dev "{key[2]}" not found')
        if request.method == "PATCH":
            assert request.headers["Content-Type"] == "application/merge-patch+json"
            found = self.objects[key] = _merge(found, json.loads(request.body))
            found["metadata"]["resourceVersion"] = str(next(self._versions))
        return 200, found

    def _many(self, request: Request, namespace: str, kind: str, query: dict[str, str]) -> tuple[int, dict[str, Any]]:
        if request.method == "POST":
            return self._create(json.loads(request.body), namespace, kind)
        wanted = dict(pair.split("=") for pair in filter(None, query.get("labelSelector", "").split(",")))
        found = [
            each
            for (space, sort, _), each in sorted(self.objects.items())
            if (space, sort) == (namespace, kind) and wanted.items() <= each["metadata"].get("labels", {}).items()
        ]
        start = int(base64.b64decode(query.get("continue", "") or b"MA=="))
        end = start + int(query.get("limit", len(found)) or len(found))
        metadata = {"resourceVersion": str(next(self._versions))}
        if end < len(found):
            metadata["continue"] = base64.b64encode(str(end).encode()).decode()
        page = {"apiVersion": "tekton.dev/v1", "kind": "List", "metadata": metadata, "items": found[start:end]}
        return 200, page

    def _create(self, made: dict[str, Any], namespace: str, kind: str) -> tuple[int, dict[str, Any]]:
        if namespace not in self.namespaces:
            return _status(404, "NotFound", f'namespaces "{namespace}" not found')
        metadata = made["metadata"]
        assert made["apiVersion"] == "tekton.dev/v1"
        assert made["kind"] == {"pipelineruns": "PipelineRun", "pipelines": "Pipeline"}[kind]
        assert metadata.get("namespace", namespace) == namespace
        for key, value in metadata.get("labels", {}).items():
            prefix, _, name = key.rpartition("/")
            assert re.fullmatch(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", prefix)
            assert re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?", name)
            assert re.fullmatch(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?", value), value
        name = metadata.get("name") or f"{metadata['generateName']}{secrets.token_hex(3)[:5]}"
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        filled = {"name": name, "namespace": namespace, "creationTimestamp": now, "uid": secrets.token_hex(16)}
        made["metadata"] = {**metadata, **filled, "resourceVersion": str(next(self._versions))}
        self.objects[namespace, kind, name] = made
        return 201, made


def _status(code: int, reason: str, message: str) -> tuple[int, dict[str, Any]]:
    said = {"status": "Failure", "message": message, "reason": reason, "code": code}
    return code, {"kind": "Status", "apiVersion": "v1", "metadata": {}, **said}


def _merge(target: Any, patch: Any) -> Any:
    """A JSON Merge Patch (RFC 7396)."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merge(merged.get(key), value)
    return merged


@contextmanager
def fake_api(**options: Any) -> Iterator[FakeApi]:
    fake = FakeApi(**options)
    with fake.server, contextlib.closing(fake):
        yield fake
    assert not fake.unexpected


# --- The real one -----------------------------------------------------------------------------------------------------


class RealApi:
    """etcd and kube-apiserver with Tekton's CRDs; no controller runs, so tests write statuses."""

    def __init__(self, folder: Path, url: str, ca: trustme.CA, tokens: Mapping[str, str]) -> None:
        self._url = url
        self._tokens = tokens
        self._ca = folder / "ca.pem"
        ca.cert_pem.write_to_path(str(self._ca))
        self._client = httpx2.Client(
            base_url=url, verify=_trusting(self._ca), headers={"Authorization": f"Bearer {tokens['admin']}"}
        )

    def kubeconfig(self, path: Path, *, user: str = "admin", namespace: str | None = None) -> Path:
        cluster = {"server": self._url, "certificate-authority": str(self._ca)}
        return _write_kubeconfig(path, cluster, self._tokens.get(user, user), namespace)

    def request(self, method: str, path: str, body: object = None, content_type: str = "application/json") -> Any:
        content = None if body is None else json.dumps(body)
        answer = self._client.request(method, path, content=content, headers={"Content-Type": content_type})
        assert answer.is_success, answer.text
        return answer.json()

    def is_ready(self) -> bool:
        try:
            return self._client.get("/readyz").is_success
        except httpx2.HTTPError:
            return False

    def has_tekton(self) -> bool:
        return all(
            self._client.get(f"{TEKTON}/namespaces/default/{kind}").is_success for kind in ("pipelines", "pipelineruns")
        )

    def close(self) -> None:
        self._client.close()


def _trusting(ca: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=ca)


@contextmanager
def real_api() -> Iterator[RealApi]:
    """Runs the real API server."""
    program = shutil.which(KUBE_APISERVER)
    assert program
    crds = Path(program).parent / CRDS
    tokens = {"admin": secrets.token_hex(16), "nobody": secrets.token_hex(16)}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kubernetes-")))
        ca = trustme.CA()
        ca.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(folder / "server.pem"))
        key = rsa.generate_private_key(65537, 2048)
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (folder / "account.key").write_bytes(private)
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (folder / "account.pub").write_bytes(public)
        (folder / "tokens.csv").write_text(f'{tokens["admin"]},admin,1,"system:masters"\n{tokens["nobody"]},nobody,2\n')
        etcd, peer, port = _free_ports(3)
        log = stack.enter_context((folder / "log").open("w"))
        for command in (
            [
                "etcd",
                f"--data-dir={folder}/etcd",
                f"--listen-client-urls=http://127.0.0.1:{etcd}",
                f"--advertise-client-urls=http://127.0.0.1:{etcd}",
                f"--listen-peer-urls=http://127.0.0.1:{peer}",
            ],
            [
                program,
                f"--etcd-servers=http://127.0.0.1:{etcd}",
                "--bind-address=127.0.0.1",
                f"--secure-port={port}",
                f"--tls-cert-file={folder}/server.pem",
                f"--tls-private-key-file={folder}/server.pem",
                f"--token-auth-file={folder}/tokens.csv",
                "--authorization-mode=RBAC",
                f"--service-account-key-file={folder}/account.pub",
                f"--service-account-signing-key-file={folder}/account.key",
                "--service-account-issuer=https://kubernetes.invalid",
                "--service-cluster-ip-range=10.0.0.0/24",
                "--disable-admission-plugins=ServiceAccount",
            ],
        ):
            process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
            stack.callback(_end, process)
        api = RealApi(folder, f"https://127.0.0.1:{port}", ca, tokens)
        stack.callback(api.close)
        _wait(api.is_ready, folder / "log")
        for crd in sorted(crds.glob("*.yaml")):
            for document in yaml.safe_load_all(crd.read_text()):
                document["spec"].pop("conversion", None)  # a webhook that does not run
                api.request("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", document)
        _wait(api.has_tekton, folder / "log")
        yield api


def _free_ports(count: int) -> list[int]:
    """Ports that are free now. Neither program can choose one itself and tell."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _wait(is_there: Any, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not is_there():
        if time.monotonic() > deadline:
            pytest.fail(f"no Kubernetes API: {log.read_text()[-3000:]}")
        time.sleep(0.2)


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
