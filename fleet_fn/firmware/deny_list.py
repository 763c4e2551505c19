"""The list of firmware that no device gets, signed or not (`FIRMWARE_DENY`)."""

from pathlib import Path
from typing import Final

from fleet_fn.errors import PermanentError
from fleet_fn.files import read_small
from fleet_fn.oci.reference import is_digest

#: Bound on the file: some 14,000 digests.
MAX_LIST_BYTES: Final = 1024 * 1024


def load_deny_list(path: Path) -> frozenset[str]:
    """Return the digests in a file, one in each line: `sha256:…`.

    A `#` begins a remark.

    Raises:
        PermanentError: the file cannot be read, or a line is no digest. The reason begins with the path.

    """
    try:
        content = read_small(path, MAX_LIST_BYTES, str(path))
    except OSError as error:
        raise PermanentError(f"{path}: {error.strerror}") from error
    denied = set()
    for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
        digest = line.partition("#")[0].strip()
        if digest and not is_digest(digest):
            raise PermanentError(
                f"{path}, line {number}: {digest[:100]!r} is no digest, sha256: and 64 lower-case digits"
            )
        if digest:
            denied.add(digest)
    return frozenset(denied)
