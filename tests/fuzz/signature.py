"""What a repository says of who signed a firmware, and files of keys and of denied digests.

What must hold:

- A bundle or a text counts only if what it signs are the very bytes that the real cosign signed here.
- Each reader gives what it found, or is refused for a reason of one line that is not long.
"""

import base64
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from fleet_fn.errors import PermanentError
from fleet_fn.firmware.deny_list import load_deny_list
from fleet_fn.oci.manifest import Manifest, read_manifest
from fleet_fn.oci.reference import is_digest
from fleet_fn.oci.referrers import is_attached, of_type, read_fallback
from fleet_fn.oci.signature_keys import load_keys, read_keys
from fleet_fn.oci.signatures import BUNDLE, BadSignatureError, check_bundle, check_simple_signing, read_detached
from tests.fuzz.bounds import bounded

T = TypeVar("T")

_CORPUS: Final = Path(__file__).parent / "corpus" / "signature"
#: The manifest that was signed, and the keys that signed it.
_DIGEST: Final = "sha256:6aa89d4e2574465d60f7e4cb67e08d91e58044f031ce996df42b1f6c81671937"
_KEYS: Final = load_keys(Path(__file__).parents[1] / "support" / "signed" / "keys")
#: The signature of the text, which stands in an annotation.
_SIGNATURE: Final = "MEUCIQDlbXMoiwGHUR1AvwCe1pXboSgOx8QCPi5XndtgsRxY/wIgNbWGlPdTqULwxKSOM3dnOGvdSPYE4m0rGT/g1jrCdAE="


def one_input(data: bytes) -> None:
    if _reads(lambda: check_bundle(data, _DIGEST, _KEYS)):
        assert _payload(data) in _PAYLOADS
    if _reads(lambda: check_simple_signing(data, _SIGNATURE, _DIGEST, _KEYS)):
        assert data == _TEXT
    _reads(lambda: read_detached(data))
    _reads(lambda: of_type(read_fallback(data, _DIGEST), BUNDLE))
    _reads(lambda: _is_attached(data))
    _reads(lambda: read_keys(data, "key", "key"))
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        denied = _reads(lambda: load_deny_list(Path(file.name)))
    assert denied is None or all(is_digest(digest) for digest in denied)


def _is_attached(data: bytes) -> bool:
    manifest = read_manifest(data)
    return isinstance(manifest, Manifest) and is_attached(manifest, _DIGEST)


def _reads(read: Callable[[], T]) -> T | None:
    """What is read, or None where nothing is."""
    try:
        with bounded():
            return read()
    except (PermanentError, BadSignatureError) as failed:
        assert str(failed)
        assert str(failed).isprintable()
        assert len(str(failed)) < 1100
        return None


def _payload(bundle: bytes) -> bytes:
    return base64.b64decode(json.loads(bundle)["dsseEnvelope"]["payload"].translate(str.maketrans("-_", "+/")))


_TEXT: Final = (_CORPUS / "text").read_bytes()
_PAYLOADS: Final = {_payload(file.read_bytes()) for file in _CORPUS.glob("bundle-*")}
