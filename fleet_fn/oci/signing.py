"""Signing manifests with a private key: the bundle that cosign writes with a key.

The statement says nothing but the manifest's digest, and signatures are deterministic where `cryptography` can: signing
a manifest again with the same key gives the same bundle, which is attached once.
"""

import base64
import hashlib
from pathlib import Path
from typing import Any, Final

from fleet_fn.errors import PermanentError
from fleet_fn.files import read_small
from fleet_fn.oci.attachment import Document
from fleet_fn.oci.publication import compact_json
from fleet_fn.oci.signature_keys import MAX_KEY_FILE_BYTES, unfit
from fleet_fn.oci.signatures import (
    BUNDLE,
    CONTENT,
    CONTENT_ANNOTATION,
    PAYLOAD,
    PREDICATE,
    PREDICATE_ANNOTATION,
    STATEMENT,
    dsse_encoding,
)

#: Variable with the password of an encrypted key.
PASSWORD_VARIABLE: Final = "FIRMWARE_SIGN_KEY_PASSWORD"  # noqa: S105 - its name
#: cosign's own encryption of keys, which no library reads.
_COSIGN_KEYS: Final = (b"ENCRYPTED SIGSTORE PRIVATE KEY", b"ENCRYPTED COSIGN PRIVATE KEY")


class SigningKey:
    """A private key: ECDSA on P-256 or P-384, Ed25519, or RSA of 2048 bits or more."""

    def __init__(self, key: Any) -> None:
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        self._key = key
        encoded = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        #: SHA-256 of the public key's SubjectPublicKeyInfo (DER).
        self._fingerprint = hashlib.sha256(encoded).digest()

    @classmethod
    def generate(cls) -> "SigningKey":
        """Return a new key on P-256."""
        from cryptography.hazmat.primitives.asymmetric import ec

        return cls(ec.generate_private_key(ec.SECP256R1()))

    @property
    def public(self) -> bytes:
        """Public key, as `FIRMWARE_VERIFY_KEYS` takes it (PEM)."""
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        pem: bytes = self._key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        return pem

    def sign_manifest(self, digest: str) -> Document:
        """Return the bundle that signs the manifest with a digest."""
        statement = {
            "_type": STATEMENT,
            "subject": [{"digest": {"sha256": digest.removeprefix("sha256:")}}],
            "predicateType": PREDICATE,
            "predicate": {},
        }
        payload = compact_json(statement)
        bundle = {
            "mediaType": BUNDLE,
            "verificationMaterial": {"publicKey": {"hint": _base64(self._fingerprint)}},
            "dsseEnvelope": {
                "payload": _base64(payload),
                "payloadType": PAYLOAD,
                "signatures": [{"sig": _base64(self._sign(dsse_encoding(PAYLOAD, payload)))}],
            },
        }
        return Document(BUNDLE, compact_json(bundle), {CONTENT_ANNOTATION: CONTENT, PREDICATE_ANNOTATION: PREDICATE})

    def _sign(self, message: bytes) -> bytes:
        """Return a signature with SHA-256: cosign takes no other, not even on P-384."""
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
        from cryptography.hazmat.primitives.hashes import SHA256

        signature: bytes
        if isinstance(self._key, ec.EllipticCurvePrivateKey):
            try:
                signature = self._key.sign(message, ec.ECDSA(SHA256(), deterministic_signing=True))  # RFC 6979
            except UnsupportedAlgorithm:  # OpenSSL before 3.2
                signature = self._key.sign(message, ec.ECDSA(SHA256()))
        elif isinstance(self._key, rsa.RSAPrivateKey):
            signature = self._key.sign(message, padding.PKCS1v15(), SHA256())
        else:
            signature = self._key.sign(message)
        return signature


def load_signing_key(path: Path, password: str | None) -> SigningKey:
    """Return the private key in a PEM file.

    Args:
        path: the file.
        password: the one that the key is encrypted with; ignored if it is not.

    Raises:
        PermanentError: the file has no such key, or the password is missing or wrong; the reason begins with the path.
        OSError: the file cannot be read.

    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    content = read_small(path, MAX_KEY_FILE_BYTES, str(path))
    if any(b"-----BEGIN " + kind in content for kind in _COSIGN_KEYS):
        raise PermanentError(
            f"{path}: a key in cosign's own format; take the PEM key that it was imported from, or sign with cosign"
        )
    try:
        try:
            key = load_pem_private_key(content, None)
        except TypeError:  # it is encrypted
            if not password:
                raise PermanentError(f"{path}: the key is encrypted; set {PASSWORD_VARIABLE} to its password") from None
            key = load_pem_private_key(content, password.encode())
    except ValueError as error:
        # Not quoted: it may describe the key.
        wrong = (
            f"no private key (PEM), or {PASSWORD_VARIABLE} is not its password" if password else "no private key (PEM)"
        )
        raise PermanentError(f"{path}: {wrong}") from error
    except UnsupportedAlgorithm as error:
        raise PermanentError(f"{path}: a key, or an encryption of one, that is not supported") from error
    if problem := unfit(key):
        raise PermanentError(f"{path}: {problem}")
    return SigningKey(key)


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
