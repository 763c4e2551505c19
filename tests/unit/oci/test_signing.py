"""Signing manifests: what the signature says, and keys that cannot sign."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from fleet_fn.errors import PermanentError
from fleet_fn.oci.signature_keys import load_keys, read_keys
from fleet_fn.oci.signatures import BadSignatureError, check_bundle
from fleet_fn.oci.signing import load_signing_key
from tests.support.signed import FOLDER
from tests.support.signed import KEYS as KEYS_FOLDER

DIGEST = f"sha256:{hashlib.sha256(b'manifest').hexdigest()}"
PASSWORD = "s3cret-of-the-key"

KEYS: dict[str, Any] = {
    "p256": ec.generate_private_key(ec.SECP256R1()),
    "p384": ec.generate_private_key(ec.SECP384R1()),
    "ed25519": ed25519.Ed25519PrivateKey.generate(),
    "rsa": rsa.generate_private_key(65537, 2048),
}


def pem(
    key: Any,
    format: PrivateFormat = PrivateFormat.PKCS8,
    encryption: KeySerializationEncryption | None = None,
) -> bytes:
    content: bytes = key.private_bytes(Encoding.PEM, format, encryption or NoEncryption())
    return content


def public_pem(key: Any) -> bytes:
    content: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return content


def load_reason(path: Path, password: str | None = None) -> str:
    with pytest.raises(PermanentError) as failed:
        load_signing_key(path, password)
    assert PASSWORD not in failed.value.reason
    assert failed.value.reason.startswith(f"{path}: ")
    return failed.value.reason.removeprefix(f"{path}: ")


@pytest.mark.parametrize("kind", KEYS)
def test_a_signature_is_of_the_manifest_by_the_key(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(pem(KEYS[kind]))
    bundle = load_signing_key(path, None).sign_manifest(DIGEST).content
    (key,) = read_keys(public_pem(KEYS[kind]), kind, kind)
    assert check_bundle(bundle, DIGEST, [key]) == key
    with pytest.raises(BadSignatureError, match="another digest"):
        check_bundle(bundle, f"sha256:{'0' * 64}", [key])
    (other,) = read_keys(public_pem(ec.generate_private_key(ec.SECP256R1())), "other", "other")
    with pytest.raises(BadSignatureError, match="another key"):
        check_bundle(bundle, DIGEST, [other])


@pytest.mark.parametrize("kind", KEYS)
def test_signing_again_gives_the_same_bytes(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(pem(KEYS[kind]))
    first, second = (load_signing_key(path, None).sign_manifest(DIGEST) for _ in range(2))
    assert first == second


def test_a_bundle_has_the_form_that_cosign_writes(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(pem(KEYS["p256"]))
    document = load_signing_key(path, None).sign_manifest(DIGEST)
    assert document.annotations == {
        "dev.sigstore.bundle.content": "dsse-envelope",
        "dev.sigstore.bundle.predicateType": "https://sigstore.dev/cosign/sign/v1",
    }
    bundle = json.loads(document.content)
    encoded = KEYS["p256"].public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    hint = base64.b64encode(hashlib.sha256(encoded).digest()).decode()
    assert bundle["mediaType"] == document.media_type == "application/vnd.dev.sigstore.bundle.v0.3+json"
    assert bundle["verificationMaterial"] == {"publicKey": {"hint": hint}}
    assert bundle["dsseEnvelope"]["payloadType"] == "application/vnd.in-toto+json"
    assert json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"])) == {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"digest": {"sha256": DIGEST.removeprefix("sha256:")}}],
        "predicateType": "https://sigstore.dev/cosign/sign/v1",
        "predicate": {},
    }


def test_cosign_hints_at_keys_in_the_same_way() -> None:
    """In the captured bundles."""
    hints = set()
    for blob in (FOLDER / "artifact" / "blobs" / "sha256").iterdir():
        content = blob.read_bytes()
        if content.startswith(b'{"mediaType":"application/vnd.dev.sigstore.bundle'):
            hints.add(json.loads(content)["verificationMaterial"]["publicKey"]["hint"])
    assert hints == {base64.b64encode(bytes.fromhex(key.fingerprint)).decode() for key in load_keys(KEYS_FOLDER)}


@pytest.mark.parametrize("format", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])
def test_an_encrypted_key_needs_its_password(tmp_path: Path, format: PrivateFormat) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(pem(KEYS["p256"], format, BestAvailableEncryption(PASSWORD.encode())))
    assert load_signing_key(path, PASSWORD).sign_manifest(DIGEST).content
    for missing in (None, ""):
        assert load_reason(path, missing) == "the key is encrypted; set FIRMWARE_SIGN_KEY_PASSWORD to its password"
    assert "FIRMWARE_SIGN_KEY_PASSWORD is not its password" in load_reason(path, "wrong")


def test_a_password_that_the_key_does_not_need_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(pem(KEYS["ed25519"]))
    assert load_signing_key(path, PASSWORD).sign_manifest(DIGEST).content


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no private key (PEM)"),
        (b"\xff" * 64, "no private key (PEM)"),
        (public_pem(KEYS["p256"]), "no private key (PEM)"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "no private key (PEM)"),
        (pem(ec.generate_private_key(ec.SECP521R1())), "a key on the curve secp521r1; P-256 and P-384 are taken"),
        (pem(rsa.generate_private_key(65537, 1024)), "an RSA key of 1024 bits; it needs 2048 at least"),
        (pem(ed448.Ed448PrivateKey.generate()), "a key of another kind than ECDSA, Ed25519 and RSA"),
        (pem(dsa.generate_private_key(1024)), "a key of another kind than ECDSA, Ed25519 and RSA"),
        (b"x" * 65_537, "is larger than 65536 bytes"),
        (
            b"-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED SIGSTORE PRIVATE KEY-----\n",
            "a key in cosign's own format; take the PEM key that it was imported from, or sign with cosign",
        ),
    ],
)
def test_what_is_no_signing_key_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(content)
    with pytest.raises(PermanentError) as failed:
        load_signing_key(path, None)
    assert failed.value.reason.startswith(str(path))
    assert failed.value.reason.endswith(reason)
