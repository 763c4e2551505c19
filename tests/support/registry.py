"""The real peers: the registry `docker-registry`, and `skopeo`, which copies images into it."""

import base64
import http.client
import json
import os
import shutil
import ssl
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

import pytest
import trustme

from fleet_fn.oci.manifest import INDEXES, MANIFESTS
from fleet_fn.sandbox.local_registry import local_registry

USER: Final = "publisher"
PASSWORD: Final = "s3cret-of-the-registry"
#: That password's (bcrypt, of the least cost).
_HASH: Final = "$2b$04$abcdefghijklmnopqrstuuTF2maMdtVv8r8joBPmdX9ZGV5oqXM36"


def missing(reason: str) -> NoReturn:
    """Skips the test that lacks something; where a result decides, the test fails."""
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def need(program: str) -> None:
    """For tests that need a program, which may not be installed."""
    if shutil.which(program) is None:
        package = {"promtool": "prometheus"}.get(program, program)
        missing(f"{program} is not installed: apt-get install {package}")


@dataclass(frozen=True)
class Answer:
    """What the registry answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class DockerRegistry:
    """A registry in a process of its own, on a port that nobody else has; deleting is allowed.

    Args:
        protected: it lets in only `USER` with `PASSWORD`, by HTTP Basic.
        realm: the URL where it says that tokens are issued; it takes none of them.
        authority: it speaks TLS, with a certificate that this one has issued for `localhost` and `127.0.0.1`.
        storage: the folder where it keeps what it gets, instead of memory.
        relative_urls: `Location` headers have no host.
        external_url: how it believes that it is reached, which its `Location` headers begin with.
        read_only: it takes nothing.

    """

    def __init__(
        self,
        *,
        protected: bool = False,
        realm: str | None = None,
        authority: trustme.CA | None = None,
        storage: Path | None = None,
        relative_urls: bool = False,
        external_url: str | None = None,
        read_only: bool = False,
    ) -> None:
        self.protected = protected
        self._realm = realm
        self._authority = authority
        self._storage = storage
        self._relative_urls = relative_urls
        self._external_url = external_url
        self._read_only = read_only
        self._stack = ExitStack()

    def __enter__(self) -> "DockerRegistry":
        with self._stack as stack:
            self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fleet-registry-")))
            self.host = stack.enter_context(local_registry(self._folder, self._settings()))
            self.port = int(self.host.rpartition(":")[2])
            assert self.get("/v2/").status == (401 if self._realm else 200)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _settings(self) -> dict[str, dict[str, Any]]:
        storage = {"filesystem": {"rootdirectory": str(self._storage)}} if self._storage else {"inmemory": {}}
        maintenance = {"readonly": {"enabled": self._read_only}}
        settings: dict[str, dict[str, Any]] = {
            "storage": {**storage, "delete": {"enabled": True}, "maintenance": maintenance},
            "http": {"relativeurls": self._relative_urls},
        }
        if self._external_url:
            settings["http"]["host"] = self._external_url
        if self.protected:
            htpasswd = self._folder / "htpasswd"
            htpasswd.write_text(f"{USER}:{_HASH}\n")
            settings["auth"] = {"htpasswd": {"realm": "tests", "path": str(htpasswd)}}
        if self._realm:
            bundle = self._folder / "issuers.pem"
            trustme.CA().cert_pem.write_to_path(bundle)
            token = {"realm": self._realm, "service": "tests", "issuer": "tests", "rootcertbundle": str(bundle)}
            settings["auth"] = {"token": token}
        if self._authority:
            certificate, key = self._folder / "certificate.pem", self._folder / "key.pem"
            issued = self._authority.issue_cert("localhost", "127.0.0.1")
            certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
            issued.private_key_pem.write_to_path(key)
            settings["http"]["tls"] = {"certificate": str(certificate), "key": str(key)}
        return settings

    @property
    def environment(self) -> dict[str, str]:
        """The settings of a function that reads from it, without those of credentials and trust."""
        return {
            "FIRMWARE_REGISTRY": f"{self.host}/",
            "FIRMWARE_REGISTRY_INSECURE": "false" if self._authority else "true",
        }

    @property
    def log(self) -> str:
        return (self._folder / "registry.log").read_text()

    def request(self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b"") -> Answer:
        """One request on a connection of its own, with the right credentials."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        if self._authority:
            context = ssl.create_default_context()
            self._authority.configure_trust(context)
            connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=30, context=context)
        basic = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        try:
            connection.request(method, path, body, {"Authorization": f"Basic {basic}", **(headers or {})})
            response = connection.getresponse()
            answer_headers = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, answer_headers, response.read())
        finally:
            connection.close()

    def get(self, path: str) -> Answer:
        return self.request("GET", path, {"Accept": ", ".join((*MANIFESTS, *INDEXES))})

    def manifest(self, name: str, tag: str) -> Answer:
        """The manifest that a tag stands at, or that has a digest; `docker-content-digest` is among the headers."""
        return self.get(f"/v2/{name}/manifests/{tag}")

    def digest(self, name: str, tag: str) -> str | None:
        """What a tag stands at."""
        return self.manifest(name, tag).headers.get("docker-content-digest")

    def blob(self, name: str, digest: str) -> bytes:
        answer = self.get(f"/v2/{name}/blobs/{digest}")
        assert answer.status == 200
        return answer.body

    def tags(self, name: str) -> set[str]:
        """The tags of a repository, which need not exist."""
        answer = self.get(f"/v2/{name}/tags/list")
        return set(answer.json["tags"] or []) if answer.status == 200 else set()

    def put_manifest(self, name: str, tag: str, media_type: str, content: bytes) -> str:
        """Puts a manifest whose blobs are there, whatever it says otherwise; returns its digest."""
        answer = self.request("PUT", f"/v2/{name}/manifests/{tag}", {"Content-Type": media_type}, content)
        assert answer.status == 201, answer.body
        return answer.headers["docker-content-digest"]

    def delete(self, name: str, digest: str) -> None:
        """Deletes a manifest, and the tags that stand at it."""
        assert self.request("DELETE", f"/v2/{name}/manifests/{digest}").status == 202


class Skopeo:
    """Copies images, as people and pipelines do it."""

    def __init__(self, folder: Path) -> None:
        """Keeps what it needs in `folder`, and knows nothing of what the user has configured."""
        self._environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "TMPDIR": str(folder)}

    def copy(self, layout: Path, tag: str, registry: DockerRegistry, reference: str, *options: str) -> None:
        """Copies what an image layout has under a tag into a registry, as `reference` (`name:tag`).

        Args:
            layout: the layout's folder.
            tag: in the layout.
            registry: where to.
            reference: what to call it there.
            options: `--all` for an index as a whole, `--format v2s2` for Docker's media types, …

        """
        credentials = ["--dest-creds", f"{USER}:{PASSWORD}"] if registry.protected else []
        to = f"docker://{registry.host}/{reference}"
        self._run("copy", "--quiet", "--dest-tls-verify=false", *credentials, *options, f"oci:{layout}:{tag}", to)

    def fetch(self, registry: DockerRegistry, reference: str, layout: Path, tag: str) -> None:
        """Copies what a registry has into an image layout, which is made where there is none, under a tag."""
        credentials = ["--src-creds", f"{USER}:{PASSWORD}"] if registry.protected else []
        source = f"docker://{registry.host}/{reference}"
        self._run("copy", "--quiet", "--src-tls-verify=false", *credentials, source, f"oci:{layout}:{tag}")

    def _run(self, *arguments: str) -> None:
        ended = subprocess.run(
            ["skopeo", "--insecure-policy", *arguments],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert ended.returncode == 0, ended.stderr
