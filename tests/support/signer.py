"""Signatures of firmware, made without the code under test; and attached as cosign does, or as an attacker would."""

import base64
import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

BUNDLE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
SIMPLE_SIGNING: Final = "application/vnd.dev.cosign.simplesigning.v1+json"
MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
INDEX: Final = "application/vnd.oci.image.index.v1+json"
PREDICATE: Final = "https://sigstore.dev/cosign/sign/v1"
PAYLOAD: Final = "application/vnd.in-toto+json"
_TAG: Final = "org.opencontainers.image.ref.name"

PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey


def encode(content: bytes) -> str:
    return base64.b64encode(content).decode()


class Signer:
    """The holder of a private key."""

    def __init__(self, key: PrivateKey | None = None) -> None:
        self.key: PrivateKey = key or ec.generate_private_key(ec.SECP256R1())

    @cached_property
    def public(self) -> bytes:
        """The public key, in PEM."""
        return self.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    @cached_property
    def hint(self) -> str:
        encoded = self.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return encode(hashlib.sha256(encoded).digest())

    def sign(self, message: bytes) -> bytes:
        if isinstance(self.key, ec.EllipticCurvePrivateKey):
            algorithm = hashes.SHA384() if self.key.key_size == 384 else hashes.SHA256()
            return self.key.sign(message, ec.ECDSA(algorithm))
        if isinstance(self.key, rsa.RSAPrivateKey):
            return self.key.sign(message, padding.PKCS1v15(), hashes.SHA256())
        return self.key.sign(message)

    def bundle(
        self, digest: str, *, payload_type: str = PAYLOAD, payload: bytes | None = None, **changes: Any
    ) -> bytes:
        """A bundle that signs the manifest with `digest`; `changes` are members of its statement."""
        statement = {
            "_type": "https://in-toto.io/Statement/v1",
            "subject": [{"digest": {"sha256": digest.partition(":")[2]}, "annotations": {}}],
            "predicateType": PREDICATE,
            "predicate": {},
            **changes,
        }
        body = json.dumps(statement).encode() if payload is None else payload
        signature = self.sign(b"DSSEv1 %d %b %d %b" % (len(payload_type), payload_type.encode(), len(body), body))
        return json.dumps(
            {
                "mediaType": BUNDLE,
                "verificationMaterial": {"publicKey": {"hint": self.hint}},
                "dsseEnvelope": {
                    "payload": encode(body),
                    "payloadType": payload_type,
                    "signatures": [{"sig": encode(signature)}],
                },
            }
        ).encode()

    def text(self, digest: str, **changes: Any) -> tuple[bytes, str]:
        """A text in simple signing, and its signature in base64; `changes` are members of `critical`."""
        critical = {
            "identity": {"docker-reference": "registry.example/sensor"},
            "image": {"docker-manifest-digest": digest},
            "type": "cosign container image signature",
            **changes,
        }
        text = json.dumps({"critical": critical, "optional": None}).encode()
        return text, encode(self.sign(text))


class Attacher:
    """Whoever may write to a repository, which is an image layout."""

    def __init__(self, layout: Path) -> None:
        self.layout = layout

    def sign(self, signer: Signer, digest: str) -> dict[str, Any]:
        """Attach a good bundle to the manifest with `digest`."""
        return self.attach(signer.bundle(digest), digest)

    def attach(self, bundle: bytes, subject: str, **changes: Any) -> dict[str, Any]:
        """Attach a bundle to a manifest, as cosign 3 does; `changes` are members of the attached manifest."""
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": BUNDLE,
            "config": self.put(b"{}", "application/vnd.oci.empty.v1+json"),
            "layers": [self.put(bundle, BUNDLE)],
            "annotations": {
                "dev.sigstore.bundle.content": "dsse-envelope",
                "dev.sigstore.bundle.predicateType": PREDICATE,
            },
            "subject": {"mediaType": MANIFEST, "digest": subject, "size": self.size(subject)},
            **changes,
        }
        described = self.put(json.dumps(manifest).encode(), MANIFEST)
        return self.enter({**described, "artifactType": manifest.get("artifactType", "")})

    def tag_signature(self, digest: str, *signed: tuple[bytes, str]) -> None:
        """Put signatures in simple signing under the tag that cosign 2 gives them."""
        layers = [
            {**self.put(text, SIMPLE_SIGNING), "annotations": {"dev.cosignproject.cosign/signature": signature}}
            for text, signature in signed
        ]
        config = self.put(b"{}", "application/vnd.oci.image.config.v1+json")
        manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers}
        self.tag(f"{digest.replace(':', '-')}.sig", self.put(json.dumps(manifest).encode(), MANIFEST))

    def tag_fallback(self, digest: str, *referrers: dict[str, Any]) -> None:
        """List referrers in an index under the fallback tag, and nowhere else."""
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": list(referrers)}
        self._edit(lambda entries: [entry for entry in entries if entry["digest"] not in _digests(referrers)])
        self.tag(digest.replace(":", "-"), self.put(json.dumps(index).encode(), INDEX))

    def tag(self, tag: str, descriptor: dict[str, Any]) -> None:
        self.enter({**descriptor, "annotations": {_TAG: tag}})

    def enter(self, entry: dict[str, Any]) -> dict[str, Any]:
        """Put an entry into the layout's index."""
        self._edit(lambda entries: [*entries, entry])
        return entry

    def put(self, content: bytes, media_type: str) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        (self.layout / "blobs" / "sha256" / digest).write_bytes(content)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}

    def read(self, digest: str) -> bytes:
        return (self.layout / "blobs" / digest.replace(":", "/", 1)).read_bytes()

    def size(self, digest: str) -> int:
        path = self.layout / "blobs" / digest.replace(":", "/", 1)
        return path.stat().st_size if path.exists() else 0

    def _edit(self, change: Any) -> None:
        file = self.layout / "index.json"
        index = json.loads(file.read_bytes())
        file.write_text(json.dumps({**index, "manifests": change(index["manifests"])}))


def _digests(entries: tuple[dict[str, Any], ...]) -> set[str]:
    return {entry["digest"] for entry in entries}
