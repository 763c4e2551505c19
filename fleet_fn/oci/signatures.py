"""Check signatures of manifests, as cosign makes them with a key.

There are two forms. The bundle is a DSSE envelope with an in-toto statement (sigstore bundle specification 0.3; DSSE
1.0; in-toto attestation framework 1.0). Simple signing, the older form, is a JSON text whose signature stands in an
annotation (cosign's signature specification). A detached signature of a file is a text with base64, raw bytes, or a
bundle (`cosign sign-blob`).

Nothing in a signature is believed before it verifies. With a key the check needs no log and no clock, and a signature
never expires.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any, Final

from fleet_fn.errors import PermanentError
from fleet_fn.oci.manifest import read_json_object
from fleet_fn.oci.signature_keys import PublicKey

#: Media type of a bundle, and the artifact type of the manifest that holds it.
BUNDLE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
CONTENT_ANNOTATION: Final = "dev.sigstore.bundle.content"
CONTENT: Final = "dsse-envelope"
PREDICATE_ANNOTATION: Final = "dev.sigstore.bundle.predicateType"
#: Says that an in-toto statement is a signature of its subject, rather than a claim about it.
PREDICATE: Final = "https://sigstore.dev/cosign/sign/v1"
STATEMENT: Final = "https://in-toto.io/Statement/v1"
PAYLOAD: Final = "application/vnd.in-toto+json"
#: Media type of a layer in simple signing, the annotation with its signature, and the type that its text names.
SIMPLE_SIGNING: Final = "application/vnd.dev.cosign.simplesigning.v1+json"
SIGNATURE_ANNOTATION: Final = "dev.cosignproject.cosign/signature"
_SIMPLE_SIGNING_TYPE: Final = "cosign container image signature"
#: Bounds on a bundle or a text, on a signature, and on the signatures in one bundle. Bundles with a log entry and a
#: chain of certificates have some 10 KiB.
MAX_SIGNED_BYTES: Final = 128 * 1024
_MAX_SIGNATURE_BYTES: Final = 2048
_MAX_SIGNATURES: Final = 8

ANOTHER_KEY: Final = "signed by another key"
ANOTHER_DIGEST: Final = "signature of another digest"


class BadSignatureError(Exception):
    """A signature does not count; the text says why, in one line."""


def dsse_encoding(payload_type: str, payload: bytes) -> bytes:
    """Return the bytes that are signed for a payload (DSSE 1.0, "PAE")."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def may_sign(annotations: Mapping[str, str]) -> bool:
    """Return whether a bundle may be a signature, rather than a claim such as an SBOM.

    The annotations are those of the manifest that has it, or of its entry in a list.
    """
    return annotations.get(PREDICATE_ANNOTATION, PREDICATE) == PREDICATE


def check_bundle(bundle: bytes, digest: str, keys: Sequence[PublicKey]) -> PublicKey:
    """Return the key by which a bundle signs the manifest with `digest`.

    Raises:
        BadSignatureError: it is malformed, or signs something else, or is by none of `keys`.

    """
    value = _read(bundle, "bundle")
    if value.get("mediaType") != BUNDLE:
        raise BadSignatureError("bundle of another media type")
    envelope = value.get("dsseEnvelope")
    if not isinstance(envelope, dict):
        raise BadSignatureError("bundle without a DSSE envelope")
    if envelope.get("payloadType") != PAYLOAD:
        raise BadSignatureError("envelope of another payload type")
    signatures = envelope.get("signatures")
    if not isinstance(signatures, list) or not 1 <= len(signatures) <= _MAX_SIGNATURES:
        raise BadSignatureError(f"envelope without signatures, or with more than {_MAX_SIGNATURES}")
    payload = _decode(envelope.get("payload"), MAX_SIGNED_BYTES)
    signed = dsse_encoding(PAYLOAD, payload)
    found = [_decode(entry.get("sig") if isinstance(entry, dict) else None) for entry in signatures]
    key = _find_key(keys, found, signed)
    statement = _read(payload, "statement")
    if statement.get("_type") != STATEMENT:
        raise BadSignatureError("statement of another type")
    if statement.get("predicateType") != PREDICATE:
        raise BadSignatureError("statement with another predicate than that of a signature")
    subjects = statement.get("subject")
    if not isinstance(subjects, list) or digest not in map(_digest_of_subject, subjects):
        raise BadSignatureError(ANOTHER_DIGEST)
    return key


def check_simple_signing(text: bytes, signature: object, digest: str, keys: Sequence[PublicKey]) -> PublicKey:
    """Return the key by which a text signs the manifest with `digest`.

    Args:
        text: the bytes of a layer in simple signing.
        signature: the value of the layer's annotation, in base64.
        digest: the manifest's.
        keys: the keys that count.

    Raises:
        BadSignatureError: see `check_bundle`.

    """
    key = _find_key(keys, [_decode(signature)], text)
    critical = _read(text, "signed text").get("critical")
    image = critical.get("image") if isinstance(critical, dict) else None
    if not isinstance(critical, dict) or critical.get("type") != _SIMPLE_SIGNING_TYPE:
        raise BadSignatureError("signed text of another type")
    if not isinstance(image, dict) or image.get("docker-manifest-digest") != digest:
        raise BadSignatureError(ANOTHER_DIGEST)
    return key


def read_detached(content: bytes) -> bytes:
    """Return the signature in a detached one: base64, raw bytes, or a bundle.

    Raises:
        BadSignatureError: it is malformed.

    """
    try:
        text = content.decode().strip()
    except UnicodeDecodeError:  # also of raw bytes that begin like a bundle
        return _raw(content)
    if text.startswith("{"):
        value = _read(content, "bundle")
        message = value.get("messageSignature")
        if value.get("mediaType") != BUNDLE or not isinstance(message, dict):
            raise BadSignatureError("bundle without a signature of a file")
        return _decode(message.get("signature"))
    try:
        return _decode("".join(text.split()))  # base64(1) and openssl write lines
    except BadSignatureError:
        return _raw(content)


def check_detached(signature: bytes, content: bytes, keys: Sequence[PublicKey]) -> PublicKey:
    """Return the key by which a detached signature signs `content`.

    Raises:
        BadSignatureError: it is by none of `keys`, or of other content.

    """
    return _find_key(keys, [signature], content)


def check_digest(signature: bytes, sha256: bytes, keys: Sequence[PublicKey]) -> PublicKey | None:
    """Return the key by which a signature signs content with a SHA-256, or None.

    The content is not needed, so Ed25519 cannot be checked, nor P-384 with SHA-384.
    """
    return next((key for key in keys if key.verifies_digest(signature, sha256)), None)


def _raw(signature: bytes) -> bytes:
    if len(signature) > _MAX_SIGNATURE_BYTES:
        raise BadSignatureError(f"signature of more than {_MAX_SIGNATURE_BYTES} bytes")
    return signature


def _find_key(keys: Sequence[PublicKey], signatures: Sequence[bytes], signed: bytes) -> PublicKey:
    for signature in signatures:
        for key in keys:
            if key.verifies(signature, signed):
                return key
    raise BadSignatureError(ANOTHER_KEY)


def _digest_of_subject(subject: object) -> str | None:
    digests = subject.get("digest") if isinstance(subject, dict) else None
    sha256 = digests.get("sha256") if isinstance(digests, dict) else None
    return f"sha256:{sha256}" if isinstance(sha256, str) else None


def _read(content: bytes, what: str) -> dict[str, Any]:
    try:
        return read_json_object(content, what)
    except PermanentError as error:
        raise BadSignatureError(error.reason) from error


def _decode(text: object, limit: int = _MAX_SIGNATURE_BYTES) -> bytes:
    """Return the bytes of base64 in either alphabet (RFC 4648), as DSSE allows."""
    if not isinstance(text, str) or len(text) > limit * 4 // 3 + 4:
        raise BadSignatureError("no signature, or one that is too long")
    try:
        return base64.b64decode(text.translate(_STANDARD), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadSignatureError("signature that is not base64") from error


_STANDARD: Final = str.maketrans("-_", "+/")
