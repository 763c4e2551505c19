"""Public keys that signatures of firmware are checked with.

`cryptography` does the mathematics. It is imported when the first key is read: it takes 27 to 44 ms and 12 MiB, and
most functions have no keys.
"""

import hashlib
import re
from pathlib import Path
from typing import Any, Final, NamedTuple

from fleet_fn.errors import PermanentError
from fleet_fn.files import read_small

#: Bounds on a file of keys, and on the keys in a folder; each key costs up to 0.1 ms for each signature.
MAX_KEY_FILE_BYTES: Final = 64 * 1024
MAX_KEYS: Final = 64
#: Shorter RSA keys are refused (NIST SP 800-131A).
_LEAST_RSA_BITS: Final = 2048
_BLOCK: Final = re.compile(rb"-----BEGIN ([A-Z0-9 ]{1,64})-----.*?-----END \1-----", re.DOTALL)
_PUBLIC: Final = (b"PUBLIC KEY", b"RSA PUBLIC KEY")


class PublicKey(NamedTuple):
    """A public key: ECDSA on P-256 or P-384, Ed25519, or RSA of 2048 bits or more."""

    #: Name of its file, for people.
    name: str
    #: SHA-256 of its SubjectPublicKeyInfo (DER), in hexadecimal.
    fingerprint: str
    #: The key as `cryptography` has it.
    key: Any

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Return whether a signature is this key's, over `message`.

        ECDSA is taken with SHA-256, and on P-384 with SHA-384 too: cosign signs with the one and checks with the other.
        RSA is taken with SHA-256, by PKCS #1 v1.5 as cosign has it. Ed25519 is the plain one (RFC 8032), not Ed25519ph.
        """
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        if isinstance(self.key, Ed25519PublicKey):
            return self._tries(signature, message)
        if self._tries(signature, message, hashes.SHA256()):
            return True
        return getattr(self.key, "key_size", 0) == 384 and self._tries(signature, message, hashes.SHA384())

    def verifies_digest(self, signature: bytes, sha256: bytes) -> bool:
        """Return whether a signature is this key's, over content with a SHA-256.

        It is False for Ed25519, which needs the content itself.
        """
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

        if isinstance(self.key, Ed25519PublicKey):
            return False
        return self._tries(signature, sha256, Prehashed(hashes.SHA256()))

    def _tries(self, signature: bytes, message: bytes, algorithm: Any = None) -> bool:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

        try:
            if isinstance(self.key, ec.EllipticCurvePublicKey):
                self.key.verify(signature, message, ec.ECDSA(algorithm))
            elif isinstance(self.key, rsa.RSAPublicKey):
                self.key.verify(signature, message, padding.PKCS1v15(), algorithm)
            else:
                self.key.verify(signature, message)
        except InvalidSignature:
            return False
        return True


def load_keys(path: Path) -> tuple[PublicKey, ...]:
    """Return the keys in a PEM file, or in all files of a folder that are not hidden.

    Raises:
        PermanentError: there are none, or too many; or a file cannot be read, or is malformed. The reason begins with
            the path.

    """
    try:
        files = sorted(file for file in path.iterdir() if not file.name.startswith(".")) if path.is_dir() else [path]
        keys: dict[str, PublicKey] = {}
        for file in files:
            content = read_small(file, MAX_KEY_FILE_BYTES, str(file))
            keys.update({key.fingerprint: key for key in read_keys(content, file.name, str(file))})
    except OSError as error:
        raise PermanentError(f"{error.filename or path}: {error.strerror}") from error
    if not keys:
        raise PermanentError(f"{path}: the folder has no keys")
    if len(keys) > MAX_KEYS:
        raise PermanentError(f"{path}: {len(keys)} keys; at most {MAX_KEYS} are taken")
    return tuple(keys.values())


def read_keys(content: bytes, name: str, path: str) -> list[PublicKey]:
    """Return the public keys in a PEM text (RFC 7468), which are called `name`.

    Raises:
        PermanentError: there is none, or something else, or a key of a kind that is not taken. The reason begins with
            `path`.

    """
    if b"PRIVATE KEY-----" in content:
        raise PermanentError(f"{path}: has a private key, which belongs to the signer alone; take its public key")
    blocks = list(_BLOCK.finditer(content))
    if not blocks:
        raise PermanentError(f"{path}: has no public key (PEM)")
    if content.count(b"-----BEGIN ") != len(blocks):
        raise PermanentError(f"{path}: has a key without an end; the file was cut off, or is being written")
    if other := next((block[1] for block in blocks if block[1] not in _PUBLIC), None):
        raise PermanentError(f"{path}: has a {other.decode().lower()}; only public keys (PEM) are taken")
    return [_read_key(block[0], name, path) for block in blocks]


def _read_key(pem: bytes, name: str, path: str) -> PublicKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise PermanentError(f"{path}: has a malformed public key, or one that is not supported") from error
    if problem := unfit(key):
        raise PermanentError(f"{path}: {problem}")
    encoded = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return PublicKey(name, hashlib.sha256(encoded).hexdigest(), key)


def unfit(key: object) -> str:
    """Return why a key, public or private, is not taken; empty if it is."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(key, ec.EllipticCurvePublicKey | ec.EllipticCurvePrivateKey):
        if isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1):
            return ""
        return f"a key on the curve {key.curve.name}; P-256 and P-384 are taken"
    if isinstance(key, rsa.RSAPublicKey | rsa.RSAPrivateKey):
        bits = key.key_size
        return "" if bits >= _LEAST_RSA_BITS else f"an RSA key of {bits} bits; it needs {_LEAST_RSA_BITS} at least"
    if isinstance(key, ed25519.Ed25519PublicKey | ed25519.Ed25519PrivateKey):
        return ""
    return "a key of another kind than ECDSA, Ed25519 and RSA"
