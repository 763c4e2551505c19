"""Description of a firmware by its builder: `{"version", "size", "checksum"}`."""

import re
from typing import Final, NamedTuple

from fleet_fn.errors import PermanentError
from fleet_fn.oci.manifest import read_json_object

#: Bound on a description, which is short; an archive or a folder may hold any file under its name.
MAX_METADATA_BYTES: Final = 64 * 1024


class Metadata(NamedTuple):
    """The description of a firmware: a claim until the bytes are verified against it."""

    version: str
    #: Bytes.
    size: int
    #: SHA-256, 32 bytes.
    checksum: bytes


def read_metadata(content: bytes, what: str) -> Metadata:
    """Parse the JSON description of a firmware; `what` names it in reasons.

    Raises:
        PermanentError: `content` is no such description; the reason says why.

    """
    value = read_json_object(content, what)
    version, size, checksum = value.get("version"), value.get("size"), value.get("checksum")
    if not isinstance(version, str) or not version:
        raise PermanentError(f"{what} has no version")
    if type(size) is not int or size < 0:
        raise PermanentError(f"{what} has no size")
    return Metadata(version, size, _read_checksum(checksum, what))


def _read_checksum(checksum: object, what: str) -> bytes:
    """Return the bytes of a SHA-256 in hexadecimal, after `sha256:` or alone."""
    algorithm, colon, digits = checksum.rpartition(":") if isinstance(checksum, str) else ("", "", "")
    if colon and algorithm != "sha256":
        raise PermanentError(f"{what} has a checksum with {algorithm[:20]!r} before the colon: only sha256 is taken")
    if not re.fullmatch(r"[A-Fa-f0-9]{64}", digits):
        raise PermanentError(f"{what} has no checksum that is a SHA-256 in hexadecimal")
    return bytes.fromhex(digits)
