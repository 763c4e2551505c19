"""Store of firmware in a folder.

`NAME.json` describes the bytes in `NAME.bin`. `NAME.sig` is a signature of `NAME.json`.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from fleet_fn.deadline import Deadline
from fleet_fn.errors import PermanentError
from fleet_fn.files import read_small
from fleet_fn.firmware.metadata import MAX_METADATA_BYTES, read_metadata
from fleet_fn.firmware.store import Firmware, Reader, Signed
from fleet_fn.firmware.verified import VerifiedFiles
from fleet_fn.oci.manifest import digest_of
from fleet_fn.oci.reference import Reference
from fleet_fn.oci.signature_keys import PublicKey
from fleet_fn.oci.signature_search import DETACHED_FORM, Signature
from fleet_fn.oci.signatures import MAX_SIGNED_BYTES, BadSignatureError, check_detached, check_digest, read_detached

#: Upper bound for a name, which leaves room for a suffix in a file name of 255 bytes.
_MAX_NAME_BYTES: Final = 250


class FileStore:
    """Serves firmware from the files of a folder without copying them."""

    def __init__(self, folder: str | Path, files: VerifiedFiles) -> None:
        self._folder = Path(folder)
        self._files = files

    def resolve(self, reference: Reference, deadline: Deadline, known: Firmware | None = None) -> Firmware:  # noqa: ARG002 - small local files
        """Return the firmware with the name in `reference`.

        Raises:
            PermanentError: there is none, its description is malformed, or its files are links out of the folder.

        """
        name = reference.name
        description = self._description(name)
        metadata = read_metadata(description, f"{name}.json")
        search = partial(self._find_signature, name, description, metadata.checksum)
        return Firmware(
            metadata.version,
            metadata.size,
            metadata.checksum,
            "file",
            partial(self._open, name, metadata.size, metadata.checksum),
            signed=Signed(f"{self._folder}/{name}", (digest_of(description),), search),
        )

    def close(self) -> None:
        """Do nothing: files are open only while they are read."""

    @contextmanager
    def _open(self, name: str, size: int, checksum: bytes, deadline: Deadline) -> Iterator[Reader]:
        try:
            with self._files.open(self._inside(f"{name}.bin"), size, checksum, deadline) as file:
                yield file
        except FileNotFoundError as error:
            raise PermanentError(f"no file {name}.bin in FIRMWARE_DIR") from error

    def _description(self, name: str) -> bytes:
        return self._read(f"{name}.json", MAX_METADATA_BYTES)

    def _find_signature(
        self,
        name: str,
        description: bytes,
        checksum: bytes,
        keys: Sequence[PublicKey],
        deadline: Deadline,  # noqa: ARG002 - local files
    ) -> Iterator[Signature]:
        """Yield the detached signature `NAME.sig`, if there is one.

        It is of the description, which has the version and the checksum of the bytes. It may be of the bytes instead:
        then nothing vouches for the version.
        """
        file, covers = f"{name}.sig", digest_of(description)
        try:
            if os.path.lexists(self._folder / file):
                signature = read_detached(self._read(file, MAX_SIGNED_BYTES))
                if key := check_digest(signature, checksum, keys):
                    yield Signature(f"sha256:{checksum.hex()}", DETACHED_FORM, key)
                else:
                    yield Signature(covers, DETACHED_FORM, check_detached(signature, description, keys))
        except PermanentError as error:
            yield Signature(covers, DETACHED_FORM, None, error.reason)
        except BadSignatureError as error:
            yield Signature(covers, DETACHED_FORM, None, f"{file}: {error}, or of other content")

    def _read(self, file: str, limit: int) -> bytes:
        path = self._inside(file)
        try:
            return read_small(path, limit, file)
        except OSError as error:
            raise PermanentError(f"{file}: {error.strerror}") from error

    def _inside(self, file: str) -> Path:
        """Return the path of a file in the folder with all links resolved.

        Raises:
            PermanentError: there is no such file, or a link leads out of the folder.

        """
        try:
            folder = self._folder.resolve(strict=True)
        except (OSError, RuntimeError) as error:
            raise PermanentError(f"FIRMWARE_DIR: {_describe_error(error)}") from error
        try:
            path = (folder / file).resolve(strict=True)
        except FileNotFoundError as error:
            raise PermanentError(f"no file {file} in FIRMWARE_DIR") from error
        except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
            raise PermanentError(f"{file}: {_describe_error(error)}") from error
        if not path.is_relative_to(folder):
            raise PermanentError(f"{file} is a link out of FIRMWARE_DIR")
        return path


def file_reference(name: str) -> Reference:
    """Return the reference of the firmware `name`, which has to be one path component.

    Raises:
        PermanentError: `name` is not one path component.

    """
    if name in ("", ".", "..") or "/" in name or not name.isprintable() or len(name.encode()) > _MAX_NAME_BYTES:
        raise PermanentError(f"invalid file name {name[:100]!r}: it has to be one component of a path")
    return Reference("", name, None, None)


def _describe_error(error: OSError | RuntimeError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or "a loop of links"
