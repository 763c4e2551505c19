"""A registry in memory that takes what is pushed, with or without the referrers API of OCI 1.1."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from fleet_fn.oci.manifest import digest_of
from tests.support.http import Request, Response

INDEX = "application/vnd.oci.image.index.v1+json"


@dataclass
class MemoryRegistry:
    """A repository `pump`; `special` may answer in its place."""

    #: It has the referrers API, and says so with `OCI-Subject`.
    lists_referrers: bool = False
    blobs: dict[str, bytes] = field(default_factory=dict)
    #: By tag, and by digest.
    manifests: dict[str, bytes] = field(default_factory=dict)
    special: Callable[[Request], Response | None] = lambda _: None
    port: int = 0
    requests: list[Request] = field(default_factory=list)

    def __call__(self, request: Request) -> Response:
        self.requests.append(request)
        return self.special(request) or self._answer(request)

    def asked(self, *methods: str) -> list[str]:
        """The requests with these methods, in order, without what leads to the repository."""
        return [f"{r.method} {r.path.removeprefix('/v2/pump/')}" for r in self.requests if r.method in methods]

    def referrers(self, digest: str) -> list[dict[str, Any]]:
        """The list of what is attached to a manifest, wherever the registry has it."""
        if not self.lists_referrers:
            listed: list[dict[str, Any]] = json.loads(self.manifests[digest.replace(":", "-")])["manifests"]
            return listed
        found = {name: json.loads(content) for name, content in self.manifests.items() if name.startswith("sha256:")}
        return [
            {
                "mediaType": manifest["mediaType"],
                "digest": name,
                "size": len(self.manifests[name]),
                "artifactType": manifest["artifactType"],
                **({"annotations": manifest["annotations"]} if "annotations" in manifest else {}),
            }
            for name, manifest in found.items()
            if manifest.get("subject", {}).get("digest") == digest
        ]

    def _answer(self, request: Request) -> Response:
        url = urlsplit(request.path)
        kind, _, name = url.path.removeprefix("/v2/pump/").partition("/")
        if request.method == "POST":
            return Response(202, headers={"Location": "/upload/1?state=x"})
        if request.method == "PUT" and kind == "manifests":
            return self._put_manifest(name, request.body)
        if request.method == "PUT":
            (digest,) = parse_qs(url.query)["digest"]
            assert digest == digest_of(request.body)
            self.blobs[digest] = request.body
            return Response(201)
        if kind == "referrers" and self.lists_referrers:
            listed = {"schemaVersion": 2, "mediaType": INDEX, "manifests": self.referrers(name)}
            return Response(200, json.dumps(listed).encode(), {"Content-Type": INDEX})
        if kind == "tags":
            tags = [tag for tag in self.manifests if ":" not in tag]
            return Response(200, json.dumps({"name": "pump", "tags": tags}).encode())
        content = (self.manifests if kind == "manifests" else self.blobs).get(name)
        if content is None:
            return Response(404)
        headers = {"Docker-Content-Digest": digest_of(content)}
        return Response(200, b"" if request.method == "HEAD" else content, headers)

    def _put_manifest(self, name: str, content: bytes) -> Response:
        self.manifests[name] = self.manifests[digest_of(content)] = content
        subject = json.loads(content).get("subject")
        headers = {"OCI-Subject": subject["digest"]} if self.lists_referrers and subject else {}
        return Response(201, headers=headers)
