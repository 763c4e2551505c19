"""What the people who built a firmware wrote beside it: `{"version", "size", "checksum"}`."""

import re
from typing import NamedTuple

from fleet_fn.errors import PermanentError
from fleet_fn.oci.manifest import read_json_object


class Metadata(NamedTuple):
    """A firmware as it is described; only its bytes can prove it."""

    version: str
    #: Bytes.
    size: int
    #: SHA-256, 32 bytes.
    checksum: bytes


def read_metadata(content: bytes, what: str) -> Metadata:
    """The description of a firmware in `content`, a piece of JSON called `what`.

    Raises:
        PermanentError: it is none; the reason tells what is wrong with it.

    """
    value = read_json_object(content, what)
    version, size, checksum = value.get("version"), value.get("size"), value.get("checksum")
    if not isinstance(version, str) or not version:
        raise PermanentError(f"{what} has no version")
    if type(size) is not int or size < 0:
        raise PermanentError(f"{what} has no size")
    if not isinstance(checksum, str) or not re.fullmatch(r"[A-Fa-f0-9]{64}", checksum):
        raise PermanentError(f"{what} has no checksum that is a SHA-256 in hexadecimal")
    return Metadata(version, size, bytes.fromhex(checksum))
