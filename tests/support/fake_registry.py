"""A registry, scripted: it serves image layouts, and says something else, or nothing, where a test wants it to."""

import hashlib
import json
import re
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from tests.support.drogue import Drogue
from tests.support.firmware import Published, publish, random_bytes
from tests.support.function import Function
from tests.support.function import running as running_function
from tests.support.http import Answer, Request, Response, Server

INDEX: Final = "application/vnd.oci.image.index.v1+json"


def less_host(reason: str) -> str:
    """A reason with HOST in the place of the registry's host and port."""
    return re.sub(r"^OCI registry [a-z0-9.]+:[0-9]+", "OCI registry HOST", reason)


class FakeRegistry:
    """A registry whose repositories are the image layouts in the folders below one folder, each test's its own."""

    def __init__(self, folder: Path, tls: ssl.SSLContext | None = None) -> None:
        self.folder = folder
        self._server = Server(self._answer, tls)
        self._is_plain = tls is None
        #: What to answer instead: by `name/manifests/1`, by `name/manifests` or `name/blobs`, by `name`, or by a path
        #: such as `/token`, whatever its query is.
        self.answers: dict[str, Answer] = {}
        #: Tags on a page of a list, at most.
        self.page_tags = 1000
        #: Whether it lists referrers (OCI 1.1), as zot does; distribution 2 and GHCR do not.
        self.has_referrers = True

    def __enter__(self) -> "FakeRegistry":
        self._server.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.__exit__()

    @property
    def url(self) -> str:
        return self._server.url

    @property
    def host(self) -> str:
        return urlsplit(self.url).netloc

    @property
    def environment(self) -> dict[str, str]:
        """The settings of a function that reads from it, without those of credentials and trust."""
        return {
            "FIRMWARE_REGISTRY": f"{self.host}/",
            "FIRMWARE_REGISTRY_INSECURE": "true" if self._is_plain else "false",
        }

    @property
    def requests(self) -> list[Request]:
        return self._server.requests

    def requests_for(self, name: str) -> list[Request]:
        """The requests for what is in a repository."""
        return [request for request in self.requests if request.path.startswith(f"/v2/{name}/")]

    def asked(self, name: str) -> list[str]:
        """The same in words: `GET manifests/1`, `GET blobs/sha256:…`."""
        return [f"{r.method} {r.path.removeprefix(f'/v2/{name}/')}" for r in self.requests_for(name)]

    def honest(self, request: Request) -> Response:
        """What a registry answers that has nothing to hide."""
        match = _PATH.fullmatch(urlsplit(request.path).path)
        if match is None:
            return Response(404)
        name, kind, reference = match.groups()
        layout = self.folder / name
        if kind == "referrers":
            return self._referrers(layout, reference, urlsplit(request.path).query)
        if kind == "tags":
            return self._list_tags(name, parse_qs(urlsplit(request.path).query))
        try:
            content = _manifest(layout, reference) if kind == "manifests" else _blob(layout, reference)
        except (OSError, LookupError):
            return Response(404, b'{"errors": [{"code": "NAME_UNKNOWN"}]}', {"Content-Type": "application/json"})
        headers = {"Docker-Content-Digest": digest_of(content), "Content-Type": "application/octet-stream"}
        if kind == "manifests":
            headers["Content-Type"] = _media_type(content)
        return Response(200, content, headers)

    def _referrers(self, layout: Path, digest: str, query: str) -> Response:
        if not self.has_referrers:
            return Response(404, b"404 page not found", {"Content-Type": "text/plain"})
        wanted = parse_qs(query).get("artifactType", [""])[0]
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [*_attached(layout, digest, wanted)]}
        headers = {"Content-Type": INDEX} | ({"OCI-Filters-Applied": "artifactType"} if wanted else {})
        return Response(200, json.dumps(index).encode(), headers)

    def _list_tags(self, name: str, query: Mapping[str, list[str]]) -> Response:
        try:
            tags = sorted(_tags(self.folder / name))
        except OSError:
            return Response(404, b'{"errors": [{"code": "NAME_UNKNOWN"}]}', {"Content-Type": "application/json"})
        size = min(int(query.get("n", ["1000"])[0]), self.page_tags)
        rest = [tag for tag in tags if tag > query.get("last", [""])[0]]
        headers = {"Content-Type": "application/json"}
        if len(rest) > size:
            headers["Link"] = f'</v2/{name}/tags/list?last={rest[size - 1]}&n={size}>; rel="next"'
        return Response(200, json.dumps({"name": name, "tags": rest[:size]}).encode(), headers)

    def _answer(self, request: Request) -> Response | None:
        path = urlsplit(request.path).path
        keys = [path]
        if match := _PATH.fullmatch(path):
            name, kind, reference = match.groups()
            keys = [f"{name}/{kind}/{reference}", f"{name}/{kind}", name]
        for key in keys:
            if key in self.answers:
                return self.answers[key](request)
        return self.honest(request)


@contextmanager
def running(drogue: Drogue, registry: FakeRegistry, cache: Path, **environment: str) -> Iterator[Function]:
    """Run a function that reads from `registry`, and keeps what it read in the folder `cache`."""
    settings = {**drogue.environment, **registry.environment, "FIRMWARE_CACHE_DIR": str(cache), **environment}
    with running_function(settings) as function:
        yield function
        # Before that there is one of gunicorn's own.
        written = function.errors.partition("Booting worker")[2]
        assert "Warning" not in written, "something was left open, or is deprecated"


def release(registry: FakeRegistry, drogue: Drogue, device: str, size: int = 3000) -> Published:
    """Publish version 1 of a firmware into a repository with the device's name, and have the device run it."""
    drogue.put_image("example", device, f"{device}:1")
    return publish(registry.folder, device, "1", random_bytes(size, device))


_PATH = re.compile(r"/v2/(.+)/(manifests|blobs|referrers|tags)/([^/]+)")


def _manifest(layout: Path, reference: str) -> bytes:
    if ":" in reference:
        return _blob(layout, reference)
    return _blob(layout, _tags(layout)[reference])


def _tags(layout: Path) -> dict[str, str]:
    """The digests of a layout's tags."""
    entries = json.loads((layout / "index.json").read_bytes())["manifests"]
    named = "org.opencontainers.image.ref.name"
    return {entry["annotations"][named]: entry["digest"] for entry in entries if named in entry.get("annotations", ())}


def _attached(layout: Path, digest: str, artifact_type: str) -> Iterator[dict[str, Any]]:
    """The descriptors of the manifests in a layout's index whose subject has a digest."""
    if not (layout / "index.json").exists():
        return
    for entry in json.loads((layout / "index.json").read_bytes())["manifests"]:
        try:
            manifest = json.loads(_blob(layout, entry["digest"]))
            is_attached = manifest.get("subject", {}).get("digest") == digest
        except (ValueError, AttributeError, OSError):
            continue
        kind = manifest.get("artifactType") or manifest.get("config", {}).get("mediaType", "") if is_attached else ""
        if is_attached and artifact_type in ("", kind):
            described = {key: entry[key] for key in ("mediaType", "digest", "size")}
            yield {**described, "artifactType": kind, "annotations": manifest.get("annotations", {})}


def _blob(layout: Path, digest: str) -> bytes:
    return (layout / "blobs" / digest.replace(":", "/", 1)).read_bytes()


def _media_type(manifest: bytes) -> str:
    try:
        found: str = json.loads(manifest)["mediaType"]
    except (ValueError, TypeError, KeyError):
        return "application/vnd.oci.image.manifest.v1+json"
    return found


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def changed(response: Response, *, body: bytes | None = None, **headers: str | None) -> Response:
    """`response` with another body, and other headers (`docker_content_digest=None` leaves that one out)."""
    changes = {name.replace("_", "-").title(): value for name, value in headers.items()}
    merged: Mapping[str, str | None] = {**response.headers, **changes}
    kept = {name: value for name, value in merged.items() if value is not None}
    return Response(response.status, response.body if body is None else body, kept)
